"""Multi-process encoding: sentence-transformers' own worker pool, with both vectors in one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import Module

from st_keytokens.forward_pass import ForwardPass, Role
from st_keytokens.sparse_embeddings import SparseEmbeddings


class PackOutputs(Module):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """Joins dense vector, key token ids and weights into one row, since a pool's workers return one array.

    The ids travel as float32, which is exact up to 2**24.
    """

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Replaces ``sentence_embedding`` by the joined row."""
        parts = (features["sentence_embedding"], features["key_token_ids"], features["key_token_weights"])
        features["sentence_embedding"] = torch.cat([part.float() for part in parts], dim=1)
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Nothing to save: it only lives in a pool."""


def start_pool(forward_pass: ForwardPass, target_devices: list[str] | None) -> dict[str, Any]:
    """Starts workers, each with a copy of the model and its head; the model itself moves to the CPU."""
    chain = forward_pass.chain([*forward_pass.before, forward_pass.head, *forward_pass.after, PackOutputs()])
    chain.truncate_dim = None
    return {**chain.start_multi_process_pool(target_devices), "chain": chain}


def encode_with_pool(
    pool: dict[str, Any],
    forward_pass: ForwardPass,
    texts: list[str],
    role: Role,
    prompt: str | None,
    batch_size: int,
    show_progress_bar: bool,
) -> tuple[np.ndarray, SparseEmbeddings]:
    """What ``ForwardPass.both`` gives, made by the pool's workers.

    Raises:
        ValueError: If the pool was started by something else.
    """
    if "chain" not in pool:
        raise ValueError("pool must come from KeyTokenEncoder.start_multi_process_pool, got another one.")
    vocab_size = forward_pass.head.vocab_size
    if not texts:
        empty = np.zeros((0, forward_pass.embedding_dimension), dtype=np.float32)
        return empty, SparseEmbeddings.empty(0, vocab_size)
    rows = pool["chain"].encode(
        texts, pool=pool, task=role, prompt=prompt, batch_size=batch_size, show_progress_bar=show_progress_bar
    )
    dimension = forward_pass.model.get_embedding_dimension() or forward_pass.pooled_dimension
    ids, weights = np.split(rows[:, dimension:], 2, axis=1)
    dense = np.ascontiguousarray(rows[:, : forward_pass.embedding_dimension])
    return dense, SparseEmbeddings.from_pairs(ids.astype(np.int64), weights, vocab_size)
