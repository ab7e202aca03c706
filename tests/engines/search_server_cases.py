"""What the tests of OpenSearch and Elasticsearch share: a server, names of indices, and errors that both have."""

from __future__ import annotations

import contextlib
import hashlib
import os
from types import SimpleNamespace

import numpy as np
import pytest
from conformance import DIMENSION, VOCAB_SIZE, EngineConformance, query, small_records
from fake_search_server import FakeSearchServer

from st_keytokens import HybridEmbeddings, HybridIndex, SparseEmbeddings
from st_keytokens.engines import Records, Retry

NAMES: set[str] = set()


@contextlib.contextmanager
def server_address(variable, flavour):
    """The address of a server, kept in a variable for other processes as well: a real one if the variable is set."""
    if url := os.environ.get(variable):
        yield url
        return
    with FakeSearchServer(flavour) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, server.url)
        yield server.url


def index_name(directory, collection):
    """A name of the directory's own; opening a collection again by its name gives the same."""
    prefix = f"keytokens-{hashlib.sha1(directory.encode()).hexdigest()[:10]}-"
    name = collection if collection.startswith(prefix) else prefix + collection
    NAMES.add(name)
    return name


class SearchServerErrors:
    """Errors of a server that can be told to make them. A subclass has ``flavour`` and ``open(url, **arguments)``."""

    @pytest.fixture
    def server(self):
        with FakeSearchServer(self.flavour) as server:
            yield server

    @pytest.fixture
    def waits(self):
        return []

    @pytest.fixture
    def engine(self, server, waits):
        engine = self.open(server.url, retry=Retry(max_attempts=4, sleep=waits.append))
        engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION)
        yield engine
        engine.close()

    def stored(self, server):
        (index,) = server.indices.values()
        return index.documents

    def test_a_request_that_is_refused_for_the_moment(self, engine, server, waits):
        server.refuse_requests = 3
        engine.upsert(small_records(["a", "b"]))
        assert set(self.stored(server)) == {"a", "b"}
        assert len(waits) == 3
        server.refuse_requests = 3
        engine.flush()
        assert engine.count() == 2

    def test_only_refused_documents_are_sent_again(self, engine, server):
        server.refuse_items = 5
        server.requests.clear()
        engine.upsert(small_records([f"d{number}" for number in range(10)]))
        assert len(self.stored(server)) == 10
        first, second = [length for _, path, _, length in server.requests if path.endswith("_bulk")]
        assert second < 0.6 * first

    def test_a_server_that_refuses_for_too_long(self, engine, server, waits):
        server.refuse_items = 1000
        with pytest.raises(RuntimeError, match=r"must answer within 4 attempts, got .*: 2 of the documents: rejected"):
            engine.upsert(small_records(["a", "b"]))
        assert len(waits) == 3
        server.refuse_items = 0
        engine.upsert(small_records(["a", "b"]))  # goes on when the server does
        assert len(self.stored(server)) == 2

    def test_connections_that_break(self, engine, server, waits):
        server.drop_connections = 2
        engine.upsert(small_records(["a"]))
        assert set(self.stored(server)) == {"a"}
        assert len(waits) == 2

    def test_a_server_that_is_away(self, server):
        waits = []
        engine = self.open("http://127.0.0.1:1", retry=Retry(max_attempts=3, sleep=waits.append))
        with pytest.raises(RuntimeError, match="must answer within 3 attempts, got Connection"):
            engine.count()
        assert len(waits) == 2
        engine.close()

    def test_a_refused_search(self, engine, server, waits):
        engine.upsert(small_records(["a"]))
        engine.flush()
        server.refuse_requests = 2
        assert [hit.id for hit in engine.search(query({0: 1.0}), mode="sparse")[0]] == ["a"]
        assert len(waits) == 2

    def test_requests_that_are_too_large_are_halved(self, engine, server):
        server.max_content_length = 2_000
        engine.upsert(small_records([f"d{number}" for number in range(40)]))
        assert len(self.stored(server)) == 40
        assert any(length > 2_000 for *_, length in server.requests)

    def test_a_document_that_is_too_large(self, engine, server):
        server.max_content_length = 2_000
        records = small_records(["small", "large"])
        with pytest.raises(
            ValueError, match=r"documents must fit into a request of .*, got 'large', which is too large"
        ):
            engine.upsert(Records(records.ids, records.embeddings, ["short", "long " * 1000]))
        assert set(self.stored(server)) == {"small"}

    def test_an_index_of_another_mapping(self, engine, server):
        (index,) = server.indices.values()
        index.mappings["properties"]["dense"]["dims"] = index.mappings["properties"]["dense"]["dimension"] = 9
        with pytest.raises(ValueError, match=r"got 2 refused, first 'a': \[dense\] has 4 dimensions"):
            engine.upsert(small_records(["a", "b"]))

    def test_an_index_of_somebody_else(self, server):
        engine = self.open(server.url)
        engine._make_index({}, {"properties": {"sparse": engine._sparse_mapping()}})
        with pytest.raises(ValueError, match=r"must be one that create\(\) made, got settings None"):
            engine.count()

    def test_somebody_else_was_faster(self, engine):
        engine._create(engine.settings)  # the error of the second one is not raised
        assert engine.count() == 0

    def test_more_hits_than_a_server_gives(self, engine):
        with pytest.raises(ValueError, match=r"top_k and depth must be at most 10000 in .*, got 10001"):
            engine.search(query({0: 1.0}), mode="sparse", top_k=10_001)

    def test_long_strings_are_kept_and_cannot_be_asked_for(self, engine):
        engine.upsert(small_records(["a", "b"], [{"s": "x" * 8192}, {"s": "x" * 8191}]))
        engine.flush()
        (hits,) = engine.search(query({0: 1.0}), mode="sparse", filter={"s": {"$exists": True}})
        assert {hit.id: len(hit.metadata["s"]) for hit in hits} == {"a": 8192, "b": 8191}
        (hits,) = engine.search(query({0: 1.0}), mode="sparse", filter={"s": "x" * 8191})
        assert [hit.id for hit in hits] == ["b"]
        with pytest.raises(ValueError, match="filter strings must have at most 8191 characters, got 8192"):
            engine.search(query({0: 1.0}), mode="sparse", filter={"s": "x" * 8192})

    def test_ids_that_are_hashed_are_like_no_other(self, engine, server):
        from st_keytokens.engines.search_server import document_id

        long = "x" * 600
        engine.upsert(small_records([long, document_id(long)]))
        engine.flush()
        assert engine.count() == 2
        assert {hit.id for hit in engine.search(query({0: 1.0}), mode="sparse")[0]} == {long, document_id(long)}
        assert all(len(key.encode()) <= 512 for key in self.stored(server))

    def test_very_small_and_large_weights(self, engine):
        engine.upsert(Records(["a"], query({1: 1e-45, 2: 2.0**48, 3: 1.0})))
        engine.flush()
        assert [hit.score for hit in engine.search(query({3: 1e-30}), mode="sparse")[0]] == [pytest.approx(1e-30)]
        assert [hit.score for hit in engine.search(query({3: 1e14}), mode="sparse")[0]] == [pytest.approx(1e14)]
        assert len(engine.search(query({1: 1.0}), mode="sparse")[0]) == 1


class NumberFormatConformance(EngineConformance):
    """Where near ties may swap, which moves reciprocal ranks, the index to compare with has rounded weights too.

    A subclass has ``rounded``, a function of weights.
    """

    @pytest.fixture
    def rounded_abstracts(self, abstracts):
        sparse = abstracts.embeddings.sparse
        weights = self.rounded(sparse.values)
        rounded = SparseEmbeddings(sparse.indptr, sparse.indices, weights, sparse.vocab_size)
        with HybridIndex() as index:
            index.add(abstracts.ids, abstracts.texts, embeddings=HybridEmbeddings(abstracts.embeddings.dense, rounded))
            yield SimpleNamespace(**{**vars(abstracts), "index": index})

    def test_scores_are_those_of_the_number_format(self, loaded, abstracts):
        """Compared in float64: sums of hundreds of products in float32, as in the index, differ by more than 1e-6."""
        documents = abstracts.embeddings.sparse
        rounded = documents.with_values(self.rounded(documents.values))
        asked = abstracts.queries.sparse.to_scipy().astype(np.float64)
        same, exact = ((asked @ rows.to_scipy().astype(np.float64).T).toarray() for rows in (rounded, documents))
        errors = []
        for row, hits in enumerate(loaded.search(abstracts.queries, mode="sparse", top_k=len(documents))):
            numbers = [abstracts.ids.index(hit.id) for hit in hits]
            assert sorted(numbers) == np.flatnonzero(same[row]).tolist()
            np.testing.assert_allclose([hit.score for hit in hits], same[row, numbers], rtol=1e-6)
            errors += [abs(hit.score / exact[row, number] - 1) for hit, number in zip(hits, numbers, strict=True)]
        assert 0 < max(errors) < self.tolerance

    def test_reciprocal_ranks_are_fused_as_in_the_index(self, loaded, rounded_abstracts):
        super().test_reciprocal_ranks_are_fused_as_in_the_index(loaded, rounded_abstracts)

    def test_hybrid_ranks_as_in_the_index_by_default(self, loaded, rounded_abstracts):
        super().test_hybrid_ranks_as_in_the_index_by_default(loaded, rounded_abstracts)

    def test_fusion_here_tells_the_sides(self, loaded, rounded_abstracts):
        super().test_fusion_here_tells_the_sides(loaded, rounded_abstracts)
