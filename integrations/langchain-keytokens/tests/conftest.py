"""The tiny embedder and real abstracts from a clone of the repository, and a count of its forward passes."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from importlib import metadata
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from langchain_core.documents import Document
from st_keytokens import KeyTokenEncoder

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def abstracts():
    """Sixty abstracts, each with its arXiv id as id and its first archive as metadata."""
    corpus = EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl"
    if not corpus.exists():
        pytest.skip("the abstracts are in a clone of the st-keytokens repository only")
    with corpus.open(encoding="utf-8") as lines:
        rows = [json.loads(next(lines)) for _ in range(60)]
    return [
        Document(
            id=row["_id"],
            page_content=row["text"],
            metadata={"archive": row["_id"].split("/")[0].split(".")[0], "position": position},
        )
        for position, row in enumerate(rows)
    ]


@pytest.fixture(scope="session")
def shared_encoder(abstracts):
    encoder = KeyTokenEncoder(EXAMPLES / "tiny-embedder" / "embedder")
    encoder.calibrate([document.page_content for document in abstracts])
    return encoder


@pytest.fixture
def encoder(request, shared_encoder):
    """The tiny embedder, calibrated; one that has seen no text yet where passes are counted."""
    if "passes" not in request.fixturenames:
        return shared_encoder
    return KeyTokenEncoder(shared_encoder.model, calibration=shared_encoder.calibration)


class Passes:
    """Texts that went through the model's first module."""

    def __init__(self):
        self.texts = 0

    def __call__(self, module, arguments):
        self.texts += len(arguments[0]["input_ids"])


@pytest.fixture
def passes(encoder):
    """Counts the texts that take a forward pass; ``passes.texts``."""
    counter = Passes()
    handle = encoder.model[0].register_forward_pre_hook(counter)
    yield counter
    handle.remove()


@pytest.fixture
def beside_the_loop(encoder):
    """Awaits a call whose forward pass waits for an event that only a running event loop sets."""

    async def run(call):
        started, go_on = threading.Event(), threading.Event()

        def wait(module, arguments):
            started.set()
            assert go_on.wait(timeout=60), "the event loop was blocked by the forward pass"

        handle = encoder.model[0].register_forward_pre_hook(wait)
        try:
            task = asyncio.create_task(call)
            while not (started.is_set() or task.done()):
                await asyncio.sleep(0.01)
            go_on.set()
            result = await task
        finally:
            handle.remove()
        assert started.is_set(), "there was no forward pass: the text was in a cache"
        return result

    return run


@pytest.fixture
def connect_milvus():
    """Makes a client's connection known by its name, as pymilvus once did and langchain-milvus 0.3 expects."""
    connected = []

    def connect(path):
        from pymilvus import MilvusClient, connections

        if metadata.version("langchain-milvus").startswith("0.3."):
            client = MilvusClient(str(path))  # all clients of one address share a connection, and with it the name
            connections.connect(client._using, uri=str(path))
            connected.append((connections, client))

    yield connect
    for connections, client in connected:
        connections.disconnect(client._using)
        client.close()
