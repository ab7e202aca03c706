"""A uniform sample of a stream of embeddings that does not depend on batches, order or merging."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.first_component import Dense, as_tensor


class EmbeddingSample:
    """A uniform sample of a stream of embeddings that does not depend on batches, order or merging.

    The ``size`` embeddings with the smallest keyed hash of their float32 values are kept. Embeddings with equal values
    have equal hashes and enter or stay out together.

    Args:
        embedding_dimension: Width of the embeddings.
        size: Most embeddings kept.

    Attributes:
        embeddings: The sample, float32, shape ``(n, embedding_dimension)``, ascending by hash.
        priorities: Their hashes, uint64, shape ``(n,)``.

    Example:
        >>> sample = EmbeddingSample(2, size=1)
        >>> sample.update(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
        >>> sample.embeddings.shape
        (1, 2)
    """

    def __init__(self, embedding_dimension: int, size: int = 1024) -> None:
        self.size = size
        self.embeddings: NDArray[np.float32] = np.zeros((0, embedding_dimension), dtype=np.float32)
        self.priorities: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)

    def update(self, embeddings: Dense) -> None:
        """Consider a batch, shape ``(batch_size, embedding_dimension)``, any float dtype and device. Not modified."""
        rows = float32_rows(embeddings)
        digests = (hashlib.blake2b(row, digest_size=8, key=b"st-keytokens").digest() for row in rows)
        self._keep(rows, np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64))

    def merge(self, other: EmbeddingSample) -> None:
        """Consider everything that ``other`` has seen. ``other`` is not modified."""
        self._keep(other.embeddings, other.priorities)

    def _keep(self, embeddings: NDArray[np.float32], priorities: NDArray[np.uint64]) -> None:
        if len(self.priorities) == self.size:
            is_candidate = priorities < self.priorities[-1]
            embeddings, priorities = embeddings[is_candidate], priorities[is_candidate]
        if len(priorities) == 0:
            return
        merged = np.concatenate([self.priorities, priorities])
        order = np.argsort(merged, kind="stable")[: self.size]
        self.embeddings = np.concatenate([self.embeddings, embeddings])[order]
        self.priorities = merged[order]

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as tensors ``embeddings`` and ``priorities`` (their bits as int64), for safetensors."""
        return {
            "embeddings": torch.from_numpy(self.embeddings),
            "priorities": torch.from_numpy(self.priorities.view(np.int64)),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EmbeddingSample:
        """Restore what :meth:`to_tensors` gave, of a sample of the usual size.

        Raises:
            KeyError: If a tensor is missing.
        """
        sample = cls(tensors["embeddings"].shape[1])
        sample.embeddings = tensors["embeddings"].numpy()
        sample.priorities = tensors["priorities"].numpy().view(np.uint64)
        return sample


def float32_rows(embeddings: Dense) -> NDArray[np.float32]:
    """Embeddings as a C-contiguous array on the CPU.

    Args:
        embeddings: Array or tensor of floating-point numbers. Not modified.

    Returns:
        float32, of the same shape.
    """
    rows: NDArray[np.float32] = as_tensor(embeddings).to("cpu", torch.float32).contiguous().numpy()
    return rows
