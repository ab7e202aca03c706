"""The index against a dictionary and a plain loop, through any sequence of operations."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from index_samples import best, sparse_score

from st_keytokens.index import HybridIndex
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

VOCAB_SIZE, DIMENSION = 6, 2
IDS = st.sampled_from(["", "a", "b", "c", "\0", "\ud800", "😀", "0", "1", "5"])
rows = st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.integers(1, 8).map(lambda n: n / 4), max_size=4)
vectors = st.tuples(*[st.integers(-3, 3)] * DIMENSION)
texts = st.none() | st.text(max_size=5)
metadata = st.none() | st.dictionaries(st.sampled_from(["n", "m"]), st.integers(0, 3), max_size=2)
documents = st.tuples(rows, vectors, metadata)


def embeddings(pairs):
    """Hybrid embeddings of ``(row, vector)`` pairs."""
    sparse = SparseEmbeddings.from_dicts([row for row, _ in pairs], VOCAB_SIZE)
    return HybridEmbeddings(np.array([vector for _, vector in pairs], np.float32).reshape(-1, DIMENSION), sparse)


class IndexMachine(RuleBasedStateMachine):
    """Operations on an index and on a dictionary; `num_operations` counts those of all machines."""

    num_operations = 0

    @initialize(kernel=st.sampled_from(["numba", "torch", "scipy"]))
    def open(self, kernel):
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.kernel = kernel
        self.index = HybridIndex(self.directory / "index", similarity="dot", kernel=kernel)
        self.model = {}  # id -> (row, vector, text, metadata), in order of insertion

    def teardown(self):
        if hasattr(self, "index"):
            self.index.verify()
            self.index.close()
            shutil.rmtree(self.directory)

    def remember(self, ids, given, strings):
        for name, (row, vector, entry), text in zip(ids, given, strings, strict=True):
            self.model.pop(name, None)
            self.model[name] = (row, vector, text, entry or {})

    @rule(pairs=st.lists(st.tuples(IDS, documents), max_size=5), strings=st.lists(st.text(max_size=5), min_size=5))
    def add(self, pairs, strings):
        ids, given, strings = [name for name, _ in pairs], [document for _, document in pairs], strings[: len(pairs)]
        arguments = {"embeddings": embeddings([d[:2] for d in given]), "metadata": [d[2] for d in given]}
        if len(set(ids)) < len(ids) or any(name in self.model for name in ids):
            with pytest.raises(ValueError, match=r"ids must be (unique|new), got"):
                self.index.add(ids, strings, **arguments)
        else:
            assert self.index.add(ids, strings, **arguments) == ids
            self.remember(ids, given, strings)

    @rule(pairs=st.dictionaries(IDS, documents, min_size=1, max_size=5))
    def replace(self, pairs):
        given = list(pairs.values())
        arguments = {"embeddings": embeddings([d[:2] for d in given]), "metadata": [d[2] for d in given]}
        self.index.add(list(pairs), on_conflict="replace", **arguments)
        self.remember(pairs, given, [None] * len(pairs))

    @rule(given=st.lists(documents, min_size=1, max_size=4))
    def add_without_ids(self, given):
        arguments = {"embeddings": embeddings([d[:2] for d in given]), "metadata": [d[2] for d in given]}
        ids = self.index.add(**arguments)
        assert len(set(ids)) == len(ids)
        assert not set(ids) & self.model.keys()
        self.remember(ids, given, [None] * len(ids))

    @rule(ids=st.lists(IDS, max_size=4))
    def delete(self, ids):
        assert self.index.delete(ids) == len(set(ids) & self.model.keys())
        for name in ids:
            self.model.pop(name, None)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete_known(self, data):
        ids = data.draw(st.sets(st.sampled_from(list(self.model))))
        assert self.index.delete(ids) == len(ids)
        for name in ids:
            del self.model[name]

    @rule()
    def compact(self):
        self.index.compact()
        with self.index._store.read() as connection:
            snapshot = self.index._current(connection)
            assert len(snapshot.dead) == 0
            assert len(snapshot.segments) <= 1

    @rule(read_only=st.booleans())
    def reopen(self, read_only):
        self.index.close()
        if read_only:
            with HybridIndex(self.directory / "index", read_only=True) as index:
                assert len(index) == len(self.model)
        self.index = HybridIndex(self.directory / "index", kernel=self.kernel)

    def allowed(self, filter):
        if isinstance(filter, dict):
            return [
                name for name, (*_, entry) in self.model.items() if "n" in entry and entry["n"] >= filter["n"]["$gte"]
            ]
        return [name for name in self.model if filter is None or name in filter]

    @rule(
        query=st.tuples(rows, vectors),
        top_k=st.integers(1, 12),
        filter=st.none() | st.sets(IDS) | st.integers(0, 3).map(lambda n: {"n": {"$gte": n}}),
    )
    def search(self, query, top_k, filter):
        given, names = embeddings([query]), self.allowed(filter)
        sparse = {name: sparse_score(query[0], self.model[name][0]) for name in names}
        dense = {name: float(np.dot(query[1], self.model[name][1])) for name in names}
        (hits,) = self.index.search(given, mode="sparse", top_k=top_k, filter=filter)
        assert [(hit.id, hit.score) for hit in hits] == best(sparse, top_k)
        for hit in hits:
            assert (hit.text, hit.metadata) == self.model[hit.id][2:]
            assert sum(term.contribution for term in self.index.explain(given, hit)) == hit.score
        (hits,) = self.index.search(given, mode="dense", top_k=top_k, filter=filter)
        assert [(hit.id, hit.score) for hit in hits] == sorted(dense.items(), key=lambda pair: -pair[1])[:top_k]
        (hits,) = self.index.search(given, top_k=top_k, filter=filter)
        assert len(hits) == len({hit.id for hit in hits}) == min(top_k, len(names))
        for hit in hits:
            known = {"dense": dense[hit.id], **({"sparse": sparse[hit.id]} if sparse[hit.id] > 0 else {})}
            assert hit.scores == known

    @invariant()
    def holds_the_documents(self):
        if not hasattr(self, "index"):
            return
        IndexMachine.num_operations += 1
        assert len(self.index) == len(self.model)
        for name, document in zip(self.model, self.index.get(list(self.model)), strict=True):
            assert (document.id, document.text, document.metadata) == (name, *self.model[name][2:])
