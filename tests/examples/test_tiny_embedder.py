from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny-embedder"
TEXTS = ("Proteins fold into shape.", "  Proteins", "proteins", "ESN", "naïve Bayes, 3.14", "\n\nfold", "")


@pytest.mark.parametrize("part", ["embedder", "backbone"])
@pytest.mark.parametrize("text", TEXTS)
def test_transformers_splits_a_text_as_its_tokenizer_was_trained(part, text):
    """transformers 4 takes some settings from tokenizer_config.json, and leaves those of tokenizer.json."""
    trained = Tokenizer.from_file(str(TINY / part / "tokenizer.json"))
    assert AutoTokenizer.from_pretrained(TINY / part)(text).input_ids == trained.encode(text).ids


def test_vectors_are_those_of_every_version():
    """What transformers 5.24 and sentence-transformers 6.2 gave, on 2026-11-29."""
    vector = SentenceTransformer(str(TINY / "embedder"), device="cpu").encode("Proteins fold into shape.")
    np.testing.assert_allclose(vector[:3], [1.264568, 0.323257, 1.303552], atol=1e-4)
