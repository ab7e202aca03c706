"""Qdrant: its engine embedded, the client's in-process mode, and what a server is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import EngineConformance

pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")

import httpx
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from st_keytokens.engines import QdrantEdgeEngine, QdrantEngine


class OwnClient(QdrantEngine):
    """Closes its client, since only one may have a directory open."""

    def close(self):
        self.client.close()


def open_edge(directory, collection):
    return QdrantEdgeEngine(Path(directory) / collection)


def open_in_process(directory, collection):
    return OwnClient(collection, QdrantClient(path=str(Path(directory) / collection)))


class TestQdrantEdge(EngineConformance):
    opener = "test_qdrant:open_edge"
    compares_strings = False


class TestQdrantInProcess(EngineConformance):
    opener = "test_qdrant:open_in_process"
    compares_strings = False

    def temporary_errors(self):
        busy = UnexpectedResponse(429, "Too Many Requests", b"", httpx.Headers())
        return [busy, ResourceExhaustedResponse("busy", 0), ResponseHandlingException(httpx.ConnectError("away"))]
