"""Randomly initialised models in the shape of Qwen3-Embedding-0.6B, whose speed does not depend on their weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import Qwen3Config, Qwen3Model

from st_keytokens import Calibration, KeyTokenEncoder

TINY = Path(__file__).resolve().parents[1] / "tiny-embedder" / "embedder"
VOCAB_SIZE, DIMENSION = 151_936, 1024


def qwen3_shaped(dtype: torch.dtype, max_seq_length: int, layers: int = 28) -> SentenceTransformer:
    """Qwen3-Embedding-0.6B, or fewer layers of it, with the tiny embedder's tokenizer extended to as many tokens."""
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=DIMENSION,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        Qwen3Model(config).to(dtype).save_pretrained(folder)
        write_tokenizer(Path(folder))
        transformer = Transformer(folder, model_kwargs={"dtype": dtype})
        for parameter in transformer.parameters():  # mapped from the file, whose pages the system may drop
            parameter.data = parameter.data.clone()
    transformer.max_seq_length = max_seq_length
    return SentenceTransformer(modules=[transformer, Pooling(DIMENSION, "lasttoken"), Normalize()], device="cpu")


def write_tokenizer(folder: Path) -> None:
    """The tiny embedder's tokenizer and tokens that no text has, a third of them case or space variants."""
    tokenizer = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = tokenizer["model"]["vocab"]
    first = len(tokens)
    for token_id in range(first, VOCAB_SIZE):
        number, form = divmod(token_id - first, 3)
        tokens[(f"Ġw{number}", f"ĠW{number}", f"w{number}x")[form]] = token_id
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes((TINY / "tokenizer_config.json").read_bytes())


def sample_embeddings(rows: int, dimension: int) -> np.ndarray:
    """Random directions, float32 ``(rows, dimension)``."""
    sample = np.random.default_rng(0).normal(size=(rows, dimension)).astype(np.float32)
    return sample / np.linalg.norm(sample, axis=1, keepdims=True)


def calibrated(model: SentenceTransformer) -> KeyTokenEncoder:
    """The encoder of a model, without memory, calibrated on random vectors."""
    encoder = KeyTokenEncoder(model, cache_size=0)
    sample = sample_embeddings(2000, encoder.head.lm_head_dimension)
    encoder.head.set_calibration(Calibration.fit_embeddings(sample, show_progress_bar=False))
    return encoder
