"""OpenSearch: the server of ST_KEYTOKENS_OPENSEARCH_URL, or a small one here that keeps the same contract."""

from __future__ import annotations

import os

import numpy as np
import pytest
from conformance import query
from search_server_cases import NAMES, NumberFormatConformance, SearchServerErrors, index_name, server_address

pytest.importorskip("opensearchpy", reason="needs opensearch-py")

import opensearchpy

from st_keytokens import SparseEmbeddings
from st_keytokens.engines import Records, Retry
from st_keytokens.engines.opensearch import OpenSearchEngine, SeismicField
from st_keytokens.engines.search_server import RELATIVE_ERROR, feature_weights

URL = "ST_KEYTOKENS_OPENSEARCH_URL"
MAX_CLAUSES = 1024


@pytest.fixture(scope="module", autouse=True)
def address():
    with server_address(URL, "opensearch") as url:
        yield url
        client = opensearchpy.OpenSearch(url)
        for name in NAMES:
            client.indices.delete(index=name, ignore=404)
        NAMES.clear()
        client.close()


def open_rank_features(directory, collection, **arguments):
    name = index_name(directory, collection)
    return OpenSearchEngine(name, os.environ[URL], retry=Retry(first_wait=0.01), **arguments)


def open_seismic(directory, collection):
    return open_rank_features(directory, collection, seismic=SeismicField(max_weight=1000))


class WithinTheClauses:
    """A query has at most 1,024 terms by default."""

    max_terms = MAX_CLAUSES

    def temporary_errors(self):
        refused = opensearchpy.TransportError(429, "circuit_breaking_exception", {})
        return [refused, opensearchpy.TransportError(503, "", {}), opensearchpy.ConnectionTimeout("N/A", "slow", None)]


class TestRankFeatures(WithinTheClauses, NumberFormatConformance):
    opener = "test_opensearch:open_rank_features"
    tolerance = RELATIVE_ERROR
    rounded = staticmethod(feature_weights)


@pytest.mark.slow
class TestSeismicInSmallSegments(WithinTheClauses, NumberFormatConformance):
    opener = "test_opensearch:open_seismic"
    tolerance = 2 * RELATIVE_ERROR  # cut to nine bits, as the weights are sent unrounded

    @staticmethod
    def rounded(weights):
        return (weights.view(np.uint32) >> 15 << 15).view(np.float32)


class TestOpenSearchErrors(SearchServerErrors):
    flavour = "opensearch"

    def open(self, url, **arguments):
        return OpenSearchEngine("index", url, **arguments)

    def test_a_dimension_beyond_the_limit(self, server):
        with pytest.raises(ValueError, match="embedding_dimension must be at most 16000 for OpenSearch, got 16001"):
            self.open(server.url).create(vocab_size=9, embedding_dimension=16_001)

    def test_a_client_that_was_passed_stays_open(self, server):
        client = opensearchpy.OpenSearch(server.url)
        engine = self.open(client)
        engine.create(vocab_size=9)
        engine.upsert(Records(["a"], SparseEmbeddings.from_dicts([{1: 1.0}], 9)))
        engine.close()
        client.indices.refresh(index="index")
        assert client.count(index="index")["count"] == 1
        client.close()

    def test_queries_of_more_terms_than_a_server_takes(self, engine):
        with pytest.raises(ValueError, match=r"queries must be what OpenSearch can answer, got status 400: maxClause"):
            engine.search(query(dict.fromkeys(range(MAX_CLAUSES + 1), 1.0)), mode="sparse")


def as_few_terms(sparse, size=2**15):
    """With terms whose numbers differ by a multiple of a field's size in one, as few as a tokenizer has."""
    rows = [{int(term) % size: float(weight) for term, weight in zip(*row, strict=True)} for row in sparse]
    return SparseEmbeddings.from_dicts(rows, size)


class TestSeismicField:
    """Segments of any size are searched approximately: bytes, without the clusters that leave documents out."""

    @pytest.fixture
    def server(self):
        from fake_search_server import FakeSearchServer

        with FakeSearchServer("opensearch") as server:
            yield server

    def opened(self, server, **arguments):
        return OpenSearchEngine("index", server.url, seismic=SeismicField(**arguments))

    def test_scores_are_within_the_stated_error(self, server, abstracts):
        documents, queries = map(as_few_terms, (abstracts.embeddings.sparse, abstracts.queries.sparse))
        engine = self.opened(server, max_weight=float(documents.values.max()), approximate_threshold=0)
        engine.create(vocab_size=documents.vocab_size)
        engine.upsert(Records(abstracts.ids, documents))
        engine.flush()
        exact = queries.scores(documents)
        errors, bounds = [], []
        for row, hits in enumerate(engine.search(queries, top_k=120)):
            assert len(hits) > 20
            indices, weights = queries.row(row)
            for hit in hits:
                number = abstracts.ids.index(hit.id)
                terms, values = documents.row(number)
                _, own, others = np.intersect1d(indices, terms, return_indices=True)
                largest = float(weights.max())
                bounds.append(engine.seismic.score_error(weights[own], values[others], largest))
                errors.append(abs(hit.score - exact[row, number]))
        assert max(errors) > 0
        assert all(error <= bound * (1 + 1e-6) for error, bound in zip(errors, bounds, strict=True))

    def test_nothing_is_cut(self, server):
        engine = self.opened(server, max_weight=2.0, approximate_threshold=0)
        engine.create(vocab_size=9)
        with pytest.raises(ValueError, match=r"weights must be at most 2\.0 \(max_weight\), got 2\.5 in 'b'"):
            engine.upsert(Records(["a", "b"], SparseEmbeddings.from_dicts([{1: 2.0}, {1: 2.5}], 9)))
        engine.upsert(Records(["a"], SparseEmbeddings.from_dicts([{1: 2.0, 2: 1.0}], 9)))
        engine.flush()
        (hits,) = engine.search(SparseEmbeddings.from_dicts([{1: 640.0, 2: 1000.0}], 9))
        assert [hit.score for hit in hits] == [pytest.approx(2280, rel=0.01)]

    def test_all_terms_of_a_query_and_all_hits_count(self, server):
        engine = self.opened(server, max_weight=1.0, approximate_threshold=0)
        engine.create(vocab_size=100)
        rows = [{number: 1.0} for number in range(60)]
        engine.upsert(Records([str(number) for number in range(60)], SparseEmbeddings.from_dicts(rows, 100)))
        engine.flush()
        asked = SparseEmbeddings.from_dicts([{number: 1.0 + number / 100 for number in range(60)}], 100)
        (hits,) = engine.search(asked, top_k=60)
        assert len(hits) == 60
        (hits,) = engine.search(asked, top_k=60, filter=["3", "57"])
        assert [hit.id for hit in hits] == ["57", "3"]

    def test_vocabularies_whose_terms_would_be_confused(self, server):
        with pytest.raises(ValueError, match="vocab_size must be at most 32768 for a sparse_vector field, got 151936"):
            self.opened(server, max_weight=1.0).create(vocab_size=151_936)
        self.opened(server, max_weight=1.0).create(vocab_size=32_768)

    def test_an_index_with_another_field(self, server):
        self.opened(server, max_weight=1.0).create(vocab_size=9)
        for other in (self.opened(server, max_weight=2.0), OpenSearchEngine("index", server.url)):
            with pytest.raises(ValueError, match=r"must have the field .*, got .*\. Pass its seismic="):
                other.count()
        assert self.opened(server, max_weight=1.0).count() == 0

    def test_bad_values(self):
        with pytest.raises(ValueError, match="max_weight must be finite and >= "):
            SeismicField(max_weight=0.0)
        with pytest.raises(ValueError, match="approximate_threshold must be >= 0, got -1"):
            SeismicField(max_weight=1.0, approximate_threshold=-1)
        with pytest.raises(ValueError, match="heap_factor must be finite and >= "):
            SeismicField(max_weight=1.0, heap_factor=0.0)
