"""Elasticsearch: the server of ST_KEYTOKENS_ELASTICSEARCH_URL, or a small one here that keeps the same contract."""

from __future__ import annotations

import os

import pytest
from conformance import query
from search_server_cases import NAMES, NumberFormatConformance, SearchServerErrors, index_name, server_address

pytest.importorskip("elasticsearch", reason="needs elasticsearch")

import elastic_transport
import elasticsearch

from st_keytokens import SparseEmbeddings
from st_keytokens.engines import Records, Retry
from st_keytokens.engines.elasticsearch import ElasticsearchEngine
from st_keytokens.engines.search_server import RELATIVE_ERROR, feature_weights

URL = "ST_KEYTOKENS_ELASTICSEARCH_URL"


@pytest.fixture(scope="module", autouse=True)
def address():
    with server_address(URL, "elasticsearch") as url:
        yield url
        with elasticsearch.Elasticsearch(url) as client:
            for name in NAMES:
                client.options(ignore_status=404).indices.delete(index=name)
        NAMES.clear()


def open_elasticsearch(directory, collection):
    return ElasticsearchEngine(index_name(directory, collection), os.environ[URL], retry=Retry(first_wait=0.01))


class TestElasticsearch(NumberFormatConformance):
    opener = "test_elasticsearch:open_elasticsearch"
    tolerance = RELATIVE_ERROR
    rounded = staticmethod(feature_weights)

    def temporary_errors(self):
        node = elastic_transport.NodeConfig("http", "localhost", 9200)
        answers = [
            elastic_transport.ApiResponseMeta(n, "1.1", elastic_transport.HttpHeaders(), 0.1, node) for n in (429, 503)
        ]
        refused = [elasticsearch.ApiError("busy", meta, {}) for meta in answers]
        return [*refused, elasticsearch.ConnectionTimeout("slow"), elasticsearch.ConnectionError("away")]


class TestElasticsearchErrors(SearchServerErrors):
    flavour = "elasticsearch"

    def open(self, url, **arguments):
        return ElasticsearchEngine("index", url, **arguments)

    def test_a_dimension_beyond_the_limit(self, server):
        with pytest.raises(ValueError, match="embedding_dimension must be at most 4096 for Elasticsearch, got 4097"):
            self.open(server.url).create(vocab_size=9, embedding_dimension=4097)

    def test_pruning_is_off_in_the_mapping_and_in_every_query(self, engine, server):
        (index,) = server.indices.values()
        assert index.mappings["properties"]["sparse"]["index_options"] == {"prune": False}
        # a term in every document, light in the query: what pruning leaves out
        rows = [{0: 4.0, number + 1: 1.0} for number in range(100)]
        engine.upsert(Records([str(number) for number in range(100)], query(*rows)))
        engine.flush()
        asked = {0: 0.1, 1: 1.0}
        (hits,) = engine.search(query(asked), mode="sparse", top_k=100)
        assert [hits[0].score, hits[1].score, len(hits)] == [pytest.approx(1.4), pytest.approx(0.4), 100]
        vector = {str(term): weight for term, weight in asked.items()}
        body = {"sparse_vector": {"field": "sparse", "query_vector": vector, "prune": True}}
        pruned = engine._client.search(index="index", query=body, size=100)["hits"]["hits"]
        assert [hit["_score"] for hit in pruned] == [pytest.approx(1.0)]

    def test_a_client_that_was_passed_stays_open(self, server):
        with elasticsearch.Elasticsearch(server.url) as client:
            engine = self.open(client)
            engine.create(vocab_size=9)
            engine.upsert(Records(["a"], SparseEmbeddings.from_dicts([{1: 1.0}], 9)))
            engine.close()
            client.indices.refresh(index="index")
            assert client.count(index="index")["count"] == 1

    def test_candidates(self, server):
        engine = ElasticsearchEngine("index", server.url, num_candidates=50)
        assert engine._dense_query([1.0], 10, None)["knn"]["num_candidates"] == 50
        assert engine._dense_query([1.0], 100, None)["knn"]["num_candidates"] == 100
        assert self.open(server.url)._dense_query([1.0], 9_000, None)["knn"]["num_candidates"] == 10_000
