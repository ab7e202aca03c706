"""Fixtures of the tests of retrieval."""

from __future__ import annotations

import pytest
from retrieval_samples import IDS, METADATA, TEXTS, Passes

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import Retriever


@pytest.fixture(scope="session")
def calibration(llama_embedder, sentences):
    return KeyTokenEncoder(llama_embedder).calibrate(sentences, show_progress_bar=False)


@pytest.fixture
def encoder(llama_embedder, calibration):
    return KeyTokenEncoder(llama_embedder, calibration=calibration)


@pytest.fixture
def passes(llama_embedder):
    counter = Passes()
    handle = llama_embedder[0].register_forward_hook(counter)
    yield counter
    handle.remove()


@pytest.fixture
def retriever(encoder):
    with Retriever(encoder) as retriever:
        retriever.add(TEXTS, ids=IDS, metadata=METADATA)
        yield retriever


@pytest.fixture
def sparse_retriever(encoder):
    """One whose dense side is elsewhere."""
    with Retriever(encoder, has_dense=False) as retriever:
        retriever.add(TEXTS, ids=IDS, metadata=METADATA)
        yield retriever
