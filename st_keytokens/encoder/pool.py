"""Multi-process encoding: sentence-transformers' own worker pool, with both vectors in one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import Module

from st_keytokens.encoder.forward_pass import ForwardPass, Role
from st_keytokens.sparse_embeddings import SparseEmbeddings

_LOW = 1 << 16


class PackOutputs(Module):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """Joins dense vector, key token ids and weights into one row, since a pool's workers return one array.

    The ids travel as two numbers each, since float32 is exact up to 2**24.
    """

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Replaces ``sentence_embedding`` by the joined row."""
        ids = features["key_token_ids"]
        parts = (features["sentence_embedding"], ids // _LOW, ids % _LOW, features["key_token_weights"])
        features["sentence_embedding"] = torch.cat([part.float() for part in parts], dim=1)
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Nothing to save: it only lives in a pool."""


def start_pool(forward_pass: ForwardPass, target_devices: list[str] | None, fingerprint: str) -> dict[str, Any]:
    """Starts workers, each with a copy of the model and its head; the model itself moves to the CPU."""
    chain = forward_pass.chain([*forward_pass.before, forward_pass.head, *forward_pass.after, PackOutputs()])
    return {**chain.start_multi_process_pool(target_devices), "chain": chain, "fingerprint": fingerprint}


def check_pool(pool: dict[str, Any], fingerprint: str) -> None:
    """Checks that a pool was started with an encoder as it is now.

    Raises:
        ValueError: If something else started it, or the encoder has changed since.
    """
    if "chain" not in pool:
        raise ValueError("pool must come from KeyTokenEncoder.start_multi_process_pool, got another one.")
    if pool["fingerprint"] != fingerprint:
        raise ValueError(
            "pool must have been started with the encoder as it is now, got an older one. Start a new pool."
        )


def encode_with_pool(
    pool: dict[str, Any],
    forward_pass: ForwardPass,
    texts: list[str],
    role: Role,
    prompt: str | None,
    batch_size: int,
    show_progress_bar: bool,
) -> tuple[np.ndarray, SparseEmbeddings]:
    """What ``ForwardPass.both`` gives, made by the pool's workers."""
    head = forward_pass.head
    dense = np.zeros((len(texts), forward_pass.embedding_dimension), dtype=np.float32)
    k = min(head.query_max_active_dims if role == "query" else head.max_active_dims, head.vocab_size)
    ids, weights = np.zeros((len(texts), k), dtype=np.int64), np.zeros((len(texts), k), dtype=np.float32)
    full = np.flatnonzero(forward_pass.has_tokens(texts, prompt))  # a text without tokens would stop a worker
    if len(full):
        rows = pool["chain"].encode(
            [texts[i] for i in full],
            pool=pool,
            task=role,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
        vectors, high, low, found = np.split(
            rows, [rows.shape[1] - 3 * k, rows.shape[1] - 2 * k, rows.shape[1] - k], axis=1
        )
        dense[full] = vectors[:, : dense.shape[1]]
        ids[full], weights[full] = high.astype(np.int64) * _LOW + low.astype(np.int64), found
    return dense, SparseEmbeddings.from_pairs(ids, weights, head.vocab_size)
