"""What every engine must do. A test module makes a subclass of EngineConformance and says how to open a collection.

``opener`` names a function of the test module, ``"test_some_engine:open_some_engine"``, called with a directory that
is the subclass's own and the name of a collection. It is called in other processes too, so the module must be
importable with nothing but this folder on the path.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from st_keytokens import HybridEmbeddings, HybridIndex, SparseEmbeddings, reciprocal_rank_fusion
from st_keytokens.bulk import ShardWriter
from st_keytokens.engines import Records, Retry, load

VOCAB_SIZE, DIMENSION = 3000, 4
NUM_ROWS, ROWS_PER_BATCH = 600, 20
NUMBERS = itertools.count()

IDS = [
    "a", "A", "1", "01", "1.0", "-1", "true", "null", "", " ", "a b", "a/b", "../a", "a\\b", "a\nb", "\t", "\x01",
    'a"b', "a'b", "a;--", "%s", "{a}", "$id", "_id", "ü", "u\u0308", "日本語", "😀", "\u202e", "x" * 600, "é" * 3000,
]  # fmt: skip
METADATA = [
    {"year": 1999, "language": "en", "is_draft": False},
    {"year": 2005, "language": "de", "is_draft": True},
    {"year": 2005.0, "language": "EN"},
    {"year": 2024.5, "language": None},
    {"year": "2005", "language": "français"},
    {"year": True, "language": 1},
    {"year": 1, "language": ""},
    {"year": None, "language": "a\"b\\c'd"},
    {"year": [2005, 1999], "language": ["en", "de"]},
    {"year": [], "language": {"en": 1}},
    {"year": {"$gte": 1}, "language": "en de"},
    {"a.b": "dotted", "a": {"b": "nested"}, "a b": "spaced", "ключ": "key", "k[0]": "bracket"},
    {"a": [{"b": "in a list"}], "tags": [None], "year": -3},
    None,
    {"year": 0, "language": "zz", "big": 2**53 + 1},
    {"year": 0.1, "big": 2**53},
]
FILTERS = [
    {"year": 2005}, {"year": 2005.0}, {"year": "2005"}, {"year": True}, {"year": None}, {"year": 0}, {"year": 0.1},
    {"year": {"$ne": 2005}}, {"year": {"$in": [2005, "2005", None]}}, {"year": {"$nin": [2005, True]}},
    {"year": {"$in": []}}, {"year": {"$nin": []}}, {"year": {"$in": [1, False]}},
    {"year": {"$gt": 1}}, {"year": {"$gte": 1}}, {"year": {"$lt": 1}}, {"year": {"$lte": 2005}},
    {"year": {"$gte": 2000, "$lt": 2010}}, {"year": {"$gt": 2024.4, "$lt": 2024.6}}, {"year": {"$gt": -1e300}},
    {"year": {"$exists": True}}, {"year": {"$exists": False}}, {"tags": {"$exists": True}},
    {"language": "en"}, {"language": "EN"}, {"language": ""}, {"language": "a\"b\\c'd"}, {"language": "français"},
    {"language": {"$in": ["en", "de", 1, None]}}, {"language": {"$nin": ["en"]}}, {"language": {"$ne": None}},
    {"a.b": "dotted"}, {"a.b": "nested"}, {"a b": "spaced"}, {"ключ": "key"}, {"k[0]": "bracket"}, {"nowhere": 1},
    {"is_draft": False}, {"is_draft": 0}, {"is_draft": {"$ne": True}}, {"big": 2**53 + 1}, {"big": 2**53},
    {"year": 2005, "language": "de"}, {}, {"$and": [{"year": {"$gte": 0}}, {"language": {"$exists": True}}]},
    {"$or": [{"year": 1999}, {"language": "zz"}, {"is_draft": True}]},
    {"$not": {"year": {"$gte": 2000}}}, {"$not": {"$or": [{"year": 1999}, {"language": {"$in": ["de", ""]}}]}},
    {"$not": {"$not": {"year": 0}}}, {"$not": {}}, {"year": {"$ne": 2005, "$exists": True}},
]  # fmt: skip
STRING_COMPARISONS = [
    {"language": {"$gte": "en"}}, {"language": {"$lt": "en"}}, {"$not": {"language": {"$gt": "a"}}},
    {"language": {"$gt": "a\"b\\c'"}}, {"year": {"$gte": "2"}},
]  # fmt: skip


def small_records(ids, metadata=None, first=1):
    """A document for each id, with a term of its own, one that all share, and a dense row."""
    rows = [{0: 1.0 + number / 64, first + number: 2.0} for number in range(len(ids))]
    dense = np.array([[1, number, number % 3, 1] for number in range(len(ids))], np.float32)
    texts = [f"text of {name:.20}" for name in ids]
    return Records(ids, HybridEmbeddings(dense, SparseEmbeddings.from_dicts(rows, VOCAB_SIZE)), texts, metadata)


def query(*rows):
    dense = np.ones((len(rows), DIMENSION), np.float32)
    return HybridEmbeddings(dense, SparseEmbeddings.from_dicts(rows, VOCAB_SIZE))


def batches(start=0, has_dense=True):
    """A stream of batches: every document has one term of its own, some have no term."""
    for first in range(start, NUM_ROWS, ROWS_PER_BATCH):
        numbers = range(first, min(first + ROWS_PER_BATCH, NUM_ROWS))
        rows = [{} if number % 50 == 7 else {number + 1: 1.0 + number} for number in numbers]
        dense = np.array([[1, number, 1, 1] for number in numbers], np.float32)
        embeddings = HybridEmbeddings(dense if has_dense else None, SparseEmbeddings.from_dicts(rows, VOCAB_SIZE))
        metadata = [{"number": number} for number in numbers]
        yield Records([f"row/{number}" for number in numbers], embeddings, [f"{n}" for n in numbers], metadata)


def written_shards(path, abstracts, shard_rows=50):
    """The abstracts as bulk conversion writes them; gives the manifest."""
    pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")
    sparse = abstracts.embeddings.sparse
    options = {"vocab_size": sparse.vocab_size, "fingerprint": abstracts.fingerprint, "shard_rows": shard_rows}
    with ShardWriter(path, **options) as writer:
        for start in range(0, len(sparse), 20):
            writer.add(abstracts.ids[start : start + 20], sparse[start : start + 20])
        return writer.finish()


class WordEncoder:
    """Counts words, each a term by its length; a dense row tells the length of the text."""

    fingerprint = "words"
    vocabulary = SimpleNamespace(vocab_size=VOCAB_SIZE)
    fusion_weights = {"dense": 0.25}  # noqa: RUF012  # read by nobody who could change it

    def encode_document(self, texts):
        dense = np.array([[1, len(text), 0, 1] for text in texts], np.float32)
        rows = [Counter(len(word) for word in text.split()) for text in texts]
        return HybridEmbeddings(dense, SparseEmbeddings.from_dicts(rows, VOCAB_SIZE))

    def encode_query(self, texts, *, is_hybrid):
        encoded = self.encode_document(texts)
        if is_hybrid:
            return encoded
        return HybridEmbeddings(None, encoded.sparse.with_values(2 * encoded.sparse.values))


def open_named(opener, directory, collection):
    module, name = opener.split(":")
    return getattr(import_module(module), name)(str(directory), collection)


def load_batches(opener, directory, collection, has_dense=True):
    """What the process does that is killed: tell every batch when it is written, and wait for leave to go on."""

    def tell(num_rows):
        os.write(1, b"%d\n" % num_rows)
        os.read(0, 1)

    with open_named(opener, directory, collection) as engine:
        engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION if has_dense else 0)
        source = functools.partial(batches, has_dense=has_dense)
        load(engine, source, progress=Path(directory) / "progress.json", on_batch=tell)


def killed_load(opener, directory, collection, num_told, milliseconds, **arguments):
    """Load in another process and kill it after some batches, when it is in the middle of the next one.

    Gives the number of documents of which it could tell.
    """
    code = (
        f"from conformance import load_batches; load_batches(*{(opener, str(directory), collection)}, **{arguments})"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    pipes = {"bufsize": 0, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, **pipes) as process:
        for _ in range(num_told):
            told = int(process.stdout.readline())
            process.stdin.write(b".")
        time.sleep(milliseconds / 1000)  # now it is writing the next batch, or done with it
        process.kill()
        assert process.wait() == -signal.SIGKILL
    return told


def assert_same_ranking(found, expected, tolerance):
    """Scores agree rank by rank, and every document has its own score: ids may differ only among ties.

    ``expected`` is a whole ranking, of which ``found`` is the beginning.
    """
    assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
    assert len({hit.id for hit in found}) == len(found)
    scores = {hit.id: hit.score for hit in expected}
    for hit, other in zip(found, expected, strict=False):
        assert hit.score == pytest.approx(other.score, rel=tolerance, abs=1e-6)
        assert hit.score == pytest.approx(scores[hit.id], rel=tolerance, abs=1e-6)


class EngineConformance:
    opener: str
    tolerance = 1e-5  # relative, of scores; what the engine's number format loses is stated where it is larger
    compares_strings = True
    max_terms = 2500

    def temporary_errors(self):
        """Errors of the engine's client that are to be waited out; none where the engine is in this process."""
        return []

    @pytest.fixture
    def open_engine(self, directory):
        """Open a new collection, or again one by its name; all are closed at the end."""
        opened = []

        def open_engine(collection=None):
            opened.append(open_named(self.opener, directory, collection or f"collection_{next(NUMBERS)}"))
            return opened[-1]

        yield open_engine
        for engine in opened:
            engine.close()

    @pytest.fixture
    def engine(self, open_engine):
        """A new collection for small records."""
        engine = open_engine()
        engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION, fingerprint="small")
        return engine

    def found_ids(self, engine, **arguments):
        (hits,) = engine.search(query({0: 1.0}), mode="sparse", top_k=100, **arguments)
        return {hit.id for hit in hits}

    # Ranking

    def test_real_abstracts_rank_as_in_the_index(self, loaded, abstracts):
        assert loaded.count() == len(abstracts.ids)
        found = loaded.search(abstracts.queries, mode="sparse", top_k=20)
        expected = abstracts.index.search(abstracts.queries, mode="sparse", top_k=len(abstracts.ids))
        for hits, others in zip(found, expected, strict=True):
            assert len(hits) == min(20, len(others))
            assert_same_ranking(hits, others, self.tolerance)
            assert all(hit.scores == {"sparse": hit.score} for hit in hits)
            assert all(hit.text == abstracts.texts[abstracts.ids.index(hit.id)] for hit in hits)

    def test_all_documents_with_a_shared_term_are_found(self, loaded, abstracts):
        (found,) = loaded.search(abstracts.queries[:1], mode="sparse", top_k=len(abstracts.ids))
        (expected,) = abstracts.index.search(abstracts.queries[:1], mode="sparse", top_k=len(abstracts.ids))
        assert {hit.id for hit in found} == {hit.id for hit in expected}

    def test_dense_ranking(self, loaded, abstracts):
        found = loaded.search(abstracts.queries, mode="dense", top_k=20)
        expected = abstracts.index.search(abstracts.queries, mode="dense", top_k=len(abstracts.ids))
        for hits, others in zip(found, expected, strict=True):
            assert len(hits) == 20
            assert_same_ranking(hits, others, max(self.tolerance, 1e-4))

    def test_reciprocal_ranks_are_fused_as_in_the_index(self, loaded, abstracts):
        whole = {"mode": "hybrid", "depth": 50}
        found = loaded.search(abstracts.queries, top_k=10, fusion="rrf", **whole)
        expected = abstracts.index.search(abstracts.queries, top_k=100, fusion="rrf", **whole)
        for hits, others in zip(found, expected, strict=True):
            assert len(hits) == 10
            assert_same_ranking(hits, others, 1e-4)

    def test_hybrid_ranks_as_in_the_index_by_default(self, loaded, abstracts):
        found = loaded.search(abstracts.queries)
        expected = abstracts.index.search(abstracts.queries, depth=100, top_k=200)
        for hits, others in zip(found, expected, strict=True):
            assert len(hits) == 10
            assert all(hit.is_hybrid for hit in hits)
            assert_same_ranking(hits, others, max(10 * self.tolerance, 1e-4))

    def test_fusion_here_tells_the_sides(self, loaded, abstracts):
        arguments = {"top_k": 10, "weights": {"dense": 0.5}, "fusion": reciprocal_rank_fusion, "depth": 100}
        found = loaded.search(abstracts.queries, **arguments)  # hybrid by default
        expected = abstracts.index.search(abstracts.queries, **{**arguments, "top_k": 200})
        for hits, others in zip(found, expected, strict=True):
            assert_same_ranking(hits, others, 1e-4)
            sides = {other.id: other.scores for other in others}
            for hit in hits:
                tolerance = max(self.tolerance, 1e-4)
                assert hit.scores == {
                    side: pytest.approx(score, rel=tolerance, abs=1e-5) for side, score in sides[hit.id].items()
                }

    def test_every_fusion_of_the_engine_finds_the_best_of_both_sides(self, loaded, abstracts):
        for fusion in loaded.server_fusions:
            for row, hits in enumerate(loaded.search(abstracts.queries, top_k=20, fusion=fusion)):
                assert len(hits) == 20
                assert all(hit.is_hybrid for hit in hits)
                assert sorted((hit.score for hit in hits), reverse=True) == [hit.score for hit in hits]
                for side in ("dense", "sparse"):
                    (best,) = loaded.search(abstracts.queries[row : row + 1], mode=side, top_k=1)
                    assert best[0].id in {hit.id for hit in hits}

    def test_hybrid_with_a_query_without_terms(self, engine):
        engine.upsert(small_records(["a", "b", "c"]))
        engine.flush()
        for fusion in dict.fromkeys((*engine.server_fusions, "rrf", "score")):
            hits, others = engine.search(query({}, {0: 1.0}), mode="hybrid", fusion=fusion)
            assert {hit.id for hit in hits} == {hit.id for hit in others} == {"a", "b", "c"}

    def test_many_queries(self, engine):
        engine.upsert(small_records([str(number) for number in range(100)]))
        engine.flush()
        found = engine.search(query(*({number + 1: 1.0} for number in range(100))).sparse, top_k=3)
        assert [[hit.id for hit in hits] for hits in found] == [[str(number)] for number in range(100)]
        assert engine.search(query()[:0], mode="sparse") == []

    def test_dot_similarity(self, open_engine):
        engine = open_engine()
        engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION, similarity="dot")
        engine.upsert(small_records(["a", "b", "c"]))
        engine.flush()
        (hits,) = engine.search(query({}), mode="dense")
        assert [(hit.id, round(hit.score, 4)) for hit in hits] == [("c", 6.0), ("b", 4.0), ("a", 2.0)]

    def test_without_dense_rows(self, open_engine):
        engine = open_engine()
        engine.create(vocab_size=VOCAB_SIZE)
        engine.upsert(Records(["a", "b"], query({1: 1.0}, {}).sparse))
        engine.flush()
        assert engine.count() == 2
        assert [[hit.id for hit in hits] for hits in engine.search(query({1: 1.0}))] == [["a"]]
        with pytest.raises(ValueError, match="queries must have dense rows of dimension 0, got 4"):
            engine.search(query({1: 1.0}), mode="dense")

    # Collections

    def test_create_again_changes_nothing(self, open_engine, engine):
        engine.upsert(small_records(["a"]))
        engine.flush()
        engine.close()
        again = open_engine(Path(engine.collection).name)
        for _ in range(2):
            again.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION, fingerprint="small")
        assert again.count() == 1

    @pytest.mark.parametrize(
        ("name", "saved", "other"),
        [
            ("vocab_size", VOCAB_SIZE, 7),
            ("embedding_dimension", DIMENSION, 0),
            ("similarity", "'cosine'", "dot"),
            ("fingerprint", "'small'", "another"),
        ],
    )
    def test_other_settings_are_refused(self, open_engine, engine, name, saved, other):
        given = {"vocab_size": VOCAB_SIZE, "embedding_dimension": DIMENSION, "similarity": "cosine"}
        engine.close()
        again = open_engine(Path(engine.collection).name)
        with pytest.raises(ValueError, match=f"{name} must be {saved}, which .* has, got {other!r}"):
            again.create(**{**given, "fingerprint": "small", name: other})

    def test_settings_are_kept(self, open_engine, engine):
        engine.close()
        again = open_engine(Path(engine.collection).name)
        assert again.settings.to_dict() == {
            "vocab_size": VOCAB_SIZE,
            "embedding_dimension": DIMENSION,
            "similarity": "cosine",
            "fingerprint": "small",
        }

    def test_a_missing_collection(self, open_engine):
        for use in (
            lambda e: e.count(),
            lambda e: e.search(query({0: 1.0})),
            lambda e: e.upsert(small_records(["a"])),
        ):
            with pytest.raises(ValueError, match=r"must be there, got none\. Call create\(\) first"):
                use(open_engine())

    def test_texts_with_an_encoder(self, open_engine):
        engine = open_engine()
        engine.encoder = encoder = WordEncoder()
        engine.create(embedding_dimension=DIMENSION)
        texts = ["one two", "three", "four five"]
        engine.upsert(Records(["a", "b", "c"], encoder.encode_document(texts), texts))
        engine.flush()
        assert engine.settings.to_dict()["fingerprint"] == "words"
        with HybridIndex(encoder=encoder) as index:
            index.add(["a", "b", "c"], texts)
            for arguments in ({"mode": "sparse"}, {}, {"fusion": "score"}, {"fusion": "rrf"}):
                found, expected = engine.search(["six"], **arguments), index.search(["six"], **arguments)
                assert [hit.id for hit in found[0]][:1] == ["a"] == [hit.id for hit in expected[0]][:1]
                assert found[0][0].score == pytest.approx(expected[0][0].score, rel=max(self.tolerance, 1e-4))
        engine.close()
        again = open_engine(Path(engine.collection).name)
        again.encoder = SimpleNamespace(vocabulary=encoder.vocabulary, fingerprint="others")
        with pytest.raises(ValueError, match="fingerprint must be 'others', which the encoder has, got 'words'"):
            again.search(["six"])

    # Documents

    def test_upsert_again_changes_nothing(self, engine):
        records = small_records(["a", "b", "c"], [{"n": 1}, None, {"n": 3}])
        for _ in range(3):
            engine.upsert(records)
        engine.flush()
        assert engine.count() == 3
        (hits,) = engine.search(query({0: 1.0}), mode="sparse")
        assert [(hit.id, hit.score, hit.metadata) for hit in hits] == [
            ("c", pytest.approx(1 + 2 / 64, rel=self.tolerance), {"n": 3}),
            ("b", pytest.approx(1 + 1 / 64, rel=self.tolerance), {}),
            ("a", pytest.approx(1.0, rel=self.tolerance), {"n": 1}),
        ]

    def test_upsert_replaces_in_full(self, engine):
        engine.upsert(small_records(["a", "b"], [{"old": 1}, {"old": 2}]))
        engine.upsert(Records(["a"], query({9: 1.0}), None, [{"new": 1}]))
        engine.upsert(Records(["b"], query({}), ["new text"]))
        engine.flush()
        assert engine.count() == 2
        assert self.found_ids(engine) == set()  # the old terms are gone
        assert engine.search(query({1: 1.0}, {2: 1.0}), mode="sparse") == [[], []]
        (hits,) = engine.search(query({9: 1.0}), mode="sparse")
        assert [(hit.id, hit.text, hit.metadata) for hit in hits] == [("a", None, {"new": 1})]
        (hits,) = engine.search(query({}), mode="dense")
        assert {hit.id: (hit.text, hit.metadata) for hit in hits} == {"a": (None, {"new": 1}), "b": ("new text", {})}

    def test_delete(self, engine):
        engine.upsert(small_records(["a", "b", "c", "d"]))
        engine.flush()
        engine.delete(["a", "nowhere", "d"])
        engine.delete([])
        engine.flush()
        assert engine.count() == 2
        assert self.found_ids(engine) == {"b", "c"}
        (hits,) = engine.search(query({}), mode="dense")
        assert {hit.id for hit in hits} == {"b", "c"}
        engine.delete(["a", "b", "c", "d"])
        engine.flush()
        assert engine.count() == 0
        assert engine.search(query({0: 1.0})) == [[]]

    def test_ids_are_kept(self, engine):
        engine.upsert(small_records(IDS))
        engine.flush()
        assert engine.count() == len(IDS)
        assert self.found_ids(engine) == set(IDS)
        for number, name in enumerate(IDS):
            (hits,) = engine.search(query({number + 1: 1.0}), mode="sparse", filter=[name])
            assert [hit.id for hit in hits] == [name]
        engine.delete(IDS[1:])
        engine.flush()
        assert self.found_ids(engine) == {IDS[0]}

    def test_texts_and_metadata_are_kept(self, engine):
        texts = ["", None, "ü 😀 \n\t\"'\\", "long " * 5000, "{}"]
        metadata = [
            {"a": {"b": [1, 2.5, None, True, "x"]}, "c.d": "e", "": ""},
            None,
            {"n": 2**53 + 1},
            {"f": 0.1},
            {},
        ]
        records = small_records(list("abcde"))
        engine.upsert(Records(records.ids, records.embeddings, texts, metadata))
        engine.flush()
        (hits,) = engine.search(query({0: 1.0}), mode="sparse")
        found = {hit.id: (hit.text, hit.metadata) for hit in hits}
        assert found == {name: (text, entry or {}) for name, text, entry in zip("abcde", texts, metadata, strict=True)}
        assert isinstance(found["c"][1]["n"], int)

    def test_documents_without_terms_are_kept(self, engine):
        engine.upsert(Records(["none", "one"], query({}, {3: 1.0}), ["no term", "a term"]))
        engine.flush()
        assert engine.count() == 2
        (hits,) = engine.search(query({}), mode="dense")
        assert {hit.id: hit.text for hit in hits} == {"none": "no term", "one": "a term"}
        assert engine.search(query({}), mode="sparse") == [[]]  # a query without terms finds nothing
        every = query(dict.fromkeys(range(self.max_terms), 1.0))
        assert [hit.id for hit in engine.search(every, mode="sparse")[0]] == ["one"]

    def test_no_term_is_dropped(self, engine):
        generator = np.random.default_rng(0)
        terms = generator.choice(VOCAB_SIZE, self.max_terms, replace=False)
        row = {
            int(term): float(weight) for term, weight in zip(terms, generator.random(len(terms)) + 0.1, strict=True)
        }
        engine.upsert(Records(["long"], query(row)))
        engine.flush()
        heaviest, lightest = max(row, key=row.get), min(row, key=row.get)
        for asked in ({heaviest: 1.0}, {lightest: 1.0}, {VOCAB_SIZE - 1: 1.0, lightest: 0.5}, row):
            expected = sum(weight * np.float32(row.get(term, 0.0)) for term, weight in asked.items())
            (hits,) = engine.search(query(asked), mode="sparse")
            assert [hit.score for hit in hits] == [pytest.approx(expected, rel=max(self.tolerance, 1e-4))]

    def test_small_requests(self, engine):
        engine.max_rows = 7
        names = [str(number) for number in range(100)]
        engine.upsert(small_records(names))
        engine.flush()
        assert engine.count() == 100
        engine.delete(names[:50])
        engine.flush()
        assert engine.count() == 50
        engine.max_rows, engine.max_bytes = 512, 1
        engine.upsert(small_records(names))
        engine.flush()
        assert engine.count() == 100

    # Filters

    @pytest.mark.parametrize("filter", FILTERS, ids=json.dumps)
    def test_filters_mean_what_they_mean_in_the_index(self, filtered, filter):
        self.check_filter(*filtered, filter)

    @pytest.mark.parametrize("filter", STRING_COMPARISONS, ids=json.dumps)
    def test_strings_compare_as_in_the_index(self, filtered, filter):
        if self.compares_strings:
            self.check_filter(*filtered, filter)
        else:
            with pytest.raises(ValueError, match=r"filter .* must have a number"):
                filtered[0].search(query({0: 1.0}), filter=filter)

    def check_filter(self, engine, index, filter):
        for mode in ("sparse", "dense", "hybrid"):
            (hits,) = engine.search(query({0: 1.0}), mode=mode, top_k=50, filter=filter)
            (expected,) = index.search(query({0: 1.0}), mode=mode, top_k=50, filter=filter)
            assert {hit.id for hit in hits} == {hit.id for hit in expected}

    def test_filter_by_ids(self, filtered):
        engine, _ = filtered
        assert self.found_ids(engine, filter=["document 3", "nowhere", "document 5"]) == {"document 3", "document 5"}
        assert self.found_ids(engine, filter=set()) == set()

    def test_filters_that_are_none(self, filtered):
        engine, _ = filtered
        with pytest.raises(TypeError, match="filter must be a dictionary or a collection of ids, got a function"):
            engine.search(query({0: 1.0}), filter=lambda document: True)
        with pytest.raises(ValueError, match="filter operators in a field must be among"):
            engine.search(query({0: 1.0}), filter={"year": {"$near": 1}})
        with pytest.raises(TypeError, match="filter must be a list of strings, got str"):
            engine.search(query({0: 1.0}), filter="a")

    # Bad input

    def test_bad_input(self, engine):
        with pytest.raises(TypeError, match="records must be Records, got dict"):
            engine.upsert({"a": 1})
        with pytest.raises(ValueError, match=f"embeddings must have vocab_size {VOCAB_SIZE}"):
            engine.upsert(Records(["a"], SparseEmbeddings.empty(1, 5)))
        with pytest.raises(ValueError, match=r"embeddings must have dense rows of dimension 4, got 0"):
            engine.upsert(Records(["a"], SparseEmbeddings.empty(1, VOCAB_SIZE)))
        with pytest.raises(ValueError, match=f"queries must have vocab_size {VOCAB_SIZE}"):
            engine.search(SparseEmbeddings.empty(1, 5))
        with pytest.raises(TypeError, match=r"queries must be embeddings where there is no encoder, got texts"):
            engine.search(["text"])
        for name, value in (("top_k", 0), ("depth", 0), ("mode", "both"), ("fusion", "best")):
            with pytest.raises(ValueError, match=f"{name} must be"):
                engine.search(query({0: 1.0}), **{name: value})
        with pytest.raises(TypeError, match="ids must be a list of strings, got str"):
            engine.delete("a")
        with pytest.raises(TypeError, match="vocab_size must be given where there is no encoder"):
            engine.create()

    def test_whole_numbers_are_kept_or_refused(self, engine):
        records = small_records(["a"], [{"n": 2**70 + 1}])
        try:
            engine.upsert(records)
        except ValueError as err:
            assert "metadata must have whole numbers of 64 bits" in str(err)  # either is right
        else:
            engine.flush()
            assert engine.search(query({0: 1.0}), mode="sparse")[0][0].metadata == {"n": 2**70 + 1}

    # Loading

    def test_what_is_refused_for_the_moment_is_written_later(self, engine, monkeypatch):
        """Refused before and after it was written, several times in a row; the waits double, and are drawn."""
        left, waits, upsert = [*self.temporary_errors(), *self.temporary_errors()], [], engine._upsert
        engine.retry = Retry(max_attempts=len(left) + 1, first_wait=0.5, sleep=waits.append)

        def refusing(records):
            if not left or len(left) % 2:
                upsert(records)
            if left:
                raise left.pop()

        monkeypatch.setattr(engine, "_upsert", refusing)
        attempts = len(left)
        engine.upsert(small_records(["a", "b", "c"]))
        engine.flush()
        assert (engine.count(), self.found_ids(engine), len(waits)) == (3, {"a", "b", "c"}, attempts)
        assert all(0 <= wait <= 0.5 * 2**number for number, wait in enumerate(waits))
        assert len(set(waits)) == len(waits)

    def test_shards_of_a_conversion_are_loaded(self, open_engine, abstracts, tmp_path):
        shards = written_shards(tmp_path / "shards", abstracts)
        engine = open_engine()
        engine.create(vocab_size=shards.vocab_size, fingerprint=shards.fingerprint)
        for expected in (len(abstracts.ids), 0):
            report = load(engine, tmp_path / "shards", progress=tmp_path / "progress.json")
            assert (report.num_loaded, engine.count()) == (expected, len(abstracts.ids))
        found = engine.search(abstracts.queries.sparse, top_k=20)
        ranked = abstracts.index.search(abstracts.queries, mode="sparse", top_k=len(abstracts.ids))
        for hits, others in zip(found, ranked, strict=True):
            assert len(hits) == min(20, len(others))
            assert_same_ranking(hits, others, self.tolerance)

    def test_shards_of_another_encoder_are_refused(self, engine, abstracts, tmp_path):
        written_shards(tmp_path / "shards", abstracts)
        with pytest.raises(ValueError, match=r"shards must be of the encoder small, which .* has, got "):
            load(engine, tmp_path / "shards")
        assert engine.count() == 0

    @pytest.mark.parametrize(("num_told", "milliseconds"), [pytest.param(1, 0, marks=pytest.mark.slow), (8, 5)])
    def test_a_load_that_was_killed_goes_on(self, tmp_path, num_told, milliseconds):
        name = f"collection_{next(NUMBERS)}"
        told = killed_load(self.opener, tmp_path, name, num_told, milliseconds)
        with open_named(self.opener, tmp_path, name) as engine:
            self.check_resumed(engine, tmp_path / "progress.json", told)

    def check_resumed(self, engine, progress, num_told):
        report = load(engine, batches, progress=progress)
        assert report.num_skipped in (num_told, num_told + ROWS_PER_BATCH)  # killed before it could tell of a batch
        assert report.num_loaded == NUM_ROWS - report.num_skipped
        assert engine.count() == NUM_ROWS
        numbers = [number for number in range(NUM_ROWS) if number % 50 != 7]
        found = engine.search(query(*({number + 1: 1.0} for number in numbers)), mode="sparse")
        for number, hits in zip(numbers, found, strict=True):
            assert [(hit.id, hit.text, hit.metadata) for hit in hits] == [
                (f"row/{number}", str(number), {"number": number})
            ]
            assert hits[0].score == pytest.approx(1.0 + number, rel=self.tolerance)
        without = [f"row/{number}" for number in range(7, NUM_ROWS, 50)]
        (hits,) = engine.search(query({}), mode="dense", filter=without, top_k=50)
        assert {hit.id for hit in hits} == set(without)
