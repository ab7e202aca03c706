"""Multi-process encoding: sentence-transformers' own worker pool, with both vectors in one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module


def subchain(model: SentenceTransformer, modules: Sequence[torch.nn.Module]) -> SentenceTransformer:
    """A SentenceTransformer of these modules, sharing them with ``model``, with its prompts and on its device."""
    return SentenceTransformer(
        modules=list(modules),
        device=str(model.device),
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
    )


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


def encode_with_pool(
    pool: dict[str, Any], texts: list[str], *, dimension: int, **arguments: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encodes in the pool's workers.

    Args:
        pool: From ``KeyTokenEncoder.start_multi_process_pool``.
        texts: Texts.
        dimension: Width of the dense vectors.
        **arguments: Of ``SentenceTransformer.encode``.

    Returns:
        Dense vectors ``(N, dimension)``, ids and weights ``(N, K)``.

    Raises:
        ValueError: If the pool was started by something else.
    """
    if "chain" not in pool:
        raise ValueError("pool must come from KeyTokenEncoder.start_multi_process_pool, got another one.")
    rows = pool["chain"].encode(texts, pool=pool, **arguments)
    ids, weights = np.split(rows[:, dimension:], 2, axis=1)
    return rows[:, :dimension], ids.astype(np.int64), weights
