"""An encoder, dense vectors and what they should become, shared by the tests of bulk conversion."""

from __future__ import annotations

import json

import numpy as np
import pytest

from st_keytokens import KeyTokenEncoder


@pytest.fixture(scope="session")
def encoder(llama_embedder, sentences):
    """A calibrated encoder of 640 tokens and 32 dimensions."""
    encoder = KeyTokenEncoder(llama_embedder, cache_size=0, max_active_dims=12)
    encoder.calibrate(sentences, show_progress_bar=False)
    return encoder


@pytest.fixture(scope="session")
def model(encoder, tmp_path_factory):
    """The directory of this encoder."""
    folder = tmp_path_factory.mktemp("model")
    encoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dense(encoder, sentences):
    """The vectors of fifty sentences."""
    return np.asarray(encoder.model.encode(sentences), dtype=np.float32)


@pytest.fixture(scope="session")
def ids():
    return [f"s{i}" for i in range(50)]


@pytest.fixture
def corpus(sentences, ids, tmp_path):
    """The sentences as JSON Lines, in another order than that of the vectors."""
    path = tmp_path / "corpus.jsonl"
    rows = [{"_id": identifier, "text": text} for identifier, text in zip(ids, sentences, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    return path
