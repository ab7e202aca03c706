"""Fixtures shared by all tests: the trained tiny embedder and real abstracts, offline and on one thread."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from sentence_transformers import SentenceTransformer
from st_keytokens import KeyTokenEncoder

torch.set_num_threads(1)

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"

SENTENCES = (
    "Stars form when clouds of gas and dust collapse under their own gravity.",
    "The telescope measured the light of distant galaxies.",
    "Proteins fold into the shape that decides what they do in a cell.",
    "Vaccines teach the immune system to recognise a virus.",
    "Superconductors carry an electric current without any loss.",
    "The theorem holds for every finite group, but the proof is long.",
    "Neural networks learn to recognise images from labelled examples.",
    "Sparse vectors store only the few weights that are not zero.",
)


@pytest.fixture(scope="session")
def model():
    """The tiny embedder. Whoever registers a hook removes it."""
    if not (EXAMPLES / "tiny-embedder" / "embedder").is_dir():
        pytest.skip("needs the tiny embedder of the st-keytokens repository")
    return SentenceTransformer(str(EXAMPLES / "tiny-embedder" / "embedder"), device="cpu")


@pytest.fixture(scope="session")
def abstracts():
    """Forty real abstracts, CC0, by id."""
    with (EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line, _ in zip(lines, range(40), strict=False)]
    return {str(uuid.uuid5(uuid.NAMESPACE_URL, document["_id"])): document["text"] for document in documents}


@pytest.fixture(scope="session")
def calibration(model, abstracts):
    return KeyTokenEncoder(model).calibrate(list(abstracts.values()), show_progress_bar=False)


@pytest.fixture(scope="session")
def encoder(model, calibration):
    """An encoder that remembers. Do not change its settings."""
    return KeyTokenEncoder(model, calibration=calibration)


@pytest.fixture(scope="session")
def lookup_encoder(model, calibration):
    """One that looks sparse queries up. Do not change its settings."""
    return KeyTokenEncoder(model, calibration=calibration, query="lookup")


@pytest.fixture
def fresh_encoder(model, calibration):
    """An encoder that nobody has asked anything yet."""
    return KeyTokenEncoder(model, calibration=calibration)


class Passes:
    """Counts the texts that went through the transformer."""

    def __init__(self):
        self.texts = 0

    def __call__(self, module, arguments, output):
        self.texts += len(arguments[0]["input_ids"])

    def take(self):
        """The count since the last call."""
        texts, self.texts = self.texts, 0
        return texts


@pytest.fixture
def passes(model):
    counter = Passes()
    handle = model[0].register_forward_hook(counter)
    yield counter
    handle.remove()
