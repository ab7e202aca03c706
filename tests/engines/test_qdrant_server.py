"""What Qdrant's own client sends to a server for us, and what we make of the answers: no server is run here.

The bodies are those of Qdrant's REST reference (https://api.qdrant.tech), written out.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conformance import query, small_records

pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")

from qdrant_client import QdrantClient

from st_keytokens import HybridEmbeddings, SparseEmbeddings
from st_keytokens.engines import QdrantEngine, Records, Retry
from st_keytokens.engines.qdrant import point_id

SETTINGS = {"vocab_size": 3000, "embedding_dimension": 4, "similarity": "cosine", "fingerprint": "f"}
CONFIG = {
    "params": {"vectors": {"dense": {"size": 4, "distance": "Cosine"}}, "sparse_vectors": {"sparse": {}}},
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
    "optimizer_config": {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1000,
        "default_segment_number": 0,
        "flush_interval_sec": 5,
    },
}
POINT = {"id": point_id("a"), "version": 3, "score": 0.5, "payload": {"id": "a", "text": None, "metadata": {"n": 1}}}


class Server(ThreadingHTTPServer):
    """Answers as documented, after the failures that are planned, and keeps what it was sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.metadata, self.requests, self.failures = None, [], []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method, path, body):
        operation = path.removeprefix("/collections/abstracts")
        if operation == "/exists":
            return {"exists": self.metadata is not None}
        if (method, operation) == ("GET", ""):
            config = {**CONFIG, "metadata": self.metadata}
            return {
                "status": "green",
                "optimizer_status": "ok",
                "segments_count": 1,
                "config": config,
                "payload_schema": {},
            }
        if (method, operation) == ("PUT", ""):
            self.metadata = body["metadata"]
            return True
        if operation == "/points/count":
            return {"count": 7}
        if operation == "/points/query/batch":
            return [{"points": [POINT]} for _ in body["searches"]]
        return {"operation_id": 1, "status": "completed"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        server = self.server
        path, _, arguments = self.path.partition("?")
        server.requests.append((self.command, path, arguments, body))
        is_change = self.command == "PUT" or path.endswith(("/delete", "/batch", "/count"))
        status, headers = server.failures.pop(0) if server.failures and is_change else (200, {})
        if status == 200:
            answer = {"result": server.answer(self.command, path, body), "status": "ok", "time": 0.0}
        else:
            answer = {"result": None, "status": {"error": f"planned {status}"}, "time": 0.0}
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = handle_any

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def engine(server, waits):
    client = QdrantClient(url=server.url, check_compatibility=False)
    engine = QdrantEngine("abstracts", client, retry=Retry(max_attempts=3, sleep=waits.append, uniform=min))
    engine.create(**SETTINGS)
    yield engine
    client.close()


def last(server):
    return server.requests[-1]


class TestBodies:
    def test_create(self, server, engine):
        (made,) = [request for request in server.requests if request[0] == "PUT"]
        assert made == (
            "PUT",
            "/collections/abstracts",
            "",
            {
                "vectors": {"dense": {"size": 4, "distance": "Cosine"}},
                "sparse_vectors": {"sparse": {}},
                "metadata": {"keytokens": SETTINGS},
            },
        )
        assert engine.settings.to_dict() == SETTINGS

    def test_options_of_create(self, server):
        client = QdrantClient(url=server.url, check_compatibility=False)
        options = {"shard_number": 4, "on_disk_payload": True}
        QdrantEngine("abstracts", client, options=options).create(vocab_size=9, similarity="dot")
        (made,) = [request[3] for request in server.requests if request[0] == "PUT"]
        assert made["vectors"] == {}
        assert (made["shard_number"], made["on_disk_payload"]) == (4, True)
        client.close()

    def test_upsert(self, server, engine):
        rows = SparseEmbeddings.from_dicts([{7: 0.5, 2: 1.25}, {}], 3000)
        dense = small_records(["a", "b"]).hybrid.dense
        engine.upsert(Records(["a", "b"], HybridEmbeddings(dense, rows), ["t", None], [{"n": 1, "tags": []}, None]))
        assert last(server) == (
            "PUT",
            "/collections/abstracts/points",
            "wait=true",
            {
                "points": [
                    {
                        "id": point_id("a"),
                        "vector": {"dense": [1, 0, 0, 1], "sparse": {"indices": [2, 7], "values": [1.25, 0.5]}},
                        "payload": {
                            "id": "a",
                            "text": "t",
                            "metadata": {"n": 1, "tags": []},
                            "empty_lists": ["tags"],
                        },
                    },
                    {
                        "id": point_id("b"),
                        "vector": {"dense": [1, 1, 1, 1]},
                        "payload": {"id": "b", "text": None, "metadata": {}},
                    },
                ]
            },
        )

    def test_delete_and_count(self, server, engine):
        engine.delete(["a"])
        assert last(server) == (
            "POST",
            "/collections/abstracts/points/delete",
            "wait=true",
            {"points": [point_id("a")]},
        )
        assert engine.count() == 7
        assert last(server) == ("POST", "/collections/abstracts/points/count", "", {"exact": True})

    def test_sparse_search(self, server, engine):
        hits = engine.search(query({3: 1.0}, {}, {4: 0.5, 2: 2.0}), mode="sparse", top_k=5, filter={"n": {"$gte": 1}})
        searches = last(server)[3]["searches"]
        assert last(server)[:2] == ("POST", "/collections/abstracts/points/query/batch")
        filter = {
            "must": [{"key": "metadata.n", "range": {"gte": 1.0}}, {"is_empty": {"key": "metadata.n[]"}}],
        }
        shared = {"using": "sparse", "filter": filter, "limit": 5, "with_payload": True}
        assert searches == [
            {"query": {"nearest": {"indices": [3], "values": [1.0]}}, **shared},
            {"query": {"nearest": {"indices": [2, 4], "values": [2.0, 0.5]}}, **shared},
        ]
        assert [[hit.id for hit in found] for found in hits] == [["a"], [], ["a"]]  # the query without terms: nothing
        assert (hits[0][0].score, hits[0][0].metadata, hits[0][0].scores) == (0.5, {"n": 1}, {"sparse": 0.5})

    def test_dense_search(self, server, engine):
        engine.exact = True
        engine.search(query({}), mode="dense", top_k=5)
        assert last(server)[3]["searches"] == [
            {
                "query": {"nearest": [1, 1, 1, 1]},
                "using": "dense",
                "params": {"exact": True},
                "limit": 5,
                "with_payload": True,
            }
        ]

    @pytest.mark.parametrize(
        ("fusion", "weights", "body"),
        [
            ("rrf", None, {"rrf": {"k": 61}}),
            ("rrf", {"sparse": 1}, {"rrf": {"k": 61}}),
            ("dbsf", None, {"fusion": "dbsf"}),
        ],
    )
    def test_hybrid_search(self, server, engine, fusion, weights, body):
        arguments = {"top_k": 5, "depth": 50, "fusion": fusion, "weights": weights, "filter": ["a"]}
        engine.search(query({3: 1.0}), mode="hybrid", **arguments)
        shared = {"filter": {"must": [{"has_id": [point_id("a")]}]}, "limit": 50}
        assert last(server)[3]["searches"] == [
            {
                "prefetch": [
                    {"query": {"nearest": [1, 1, 1, 1]}, "using": "dense", **shared},
                    {"query": {"nearest": {"indices": [3], "values": [1.0]}}, "using": "sparse", **shared},
                ],
                "query": body,
                "limit": 5,
                "with_payload": True,
            }
        ]

    def test_a_fusion_without_weights(self, engine):
        with pytest.raises(ValueError, match="weights must be None for fusion='dbsf'"):
            engine.search(query({3: 1.0}), fusion="dbsf", weights={"dense": 2})


class TestFailures:
    def test_a_busy_server_is_asked_again(self, server, engine, waits):
        server.failures = [(429, {"Retry-After": 4}), (503, {})]
        engine.upsert(small_records(["a"]))
        assert waits == [4, 0]
        puts = [request for request in server.requests if request[1].endswith("/points")]
        assert len(puts) == 3
        assert puts[0] == puts[1] == puts[2]

    def test_a_server_that_stays_busy(self, server, engine, waits):
        server.failures = [(503, {})] * 3
        with pytest.raises(RuntimeError, match=r"within 3 attempts, got UnexpectedResponse: .*503"):
            engine.count()
        assert len(waits) == 2

    def test_what_the_server_refuses_is_told_at_once(self, server, engine, waits):
        server.failures = [(400, {})]
        with pytest.raises(Exception, match=r"planned 400"):
            engine.search(query({3: 1.0}))
        assert waits == []

    def test_no_server(self, server, engine, waits):
        server.shutdown()
        server.server_close()
        engine.client.close()
        engine.client = QdrantClient(url=server.url, check_compatibility=False)
        with pytest.raises(RuntimeError, match="within 3 attempts, got ResponseHandlingException"):
            engine.count()
        assert len(waits) == 2

    def test_somebody_else_makes_the_collection_first(self, server):
        client = QdrantClient(url=server.url, check_compatibility=False)
        server.failures = [(409, {})]
        QdrantEngine("abstracts", client).create(**SETTINGS)
        client.close()

    def test_a_collection_of_somebody_else(self, server):
        client = QdrantClient(url=server.url, check_compatibility=False)
        server.metadata = {}
        with pytest.raises(
            ValueError, match=r"collection 'abstracts' must be one that create\(\) made, got settings None"
        ):
            QdrantEngine("abstracts", client).create(**SETTINGS)
        client.close()
