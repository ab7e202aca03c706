"""A uniform sample of a stream of embeddings that does not depend on batches, order or merging."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


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

    def update(self, embeddings: NDArray[np.float32]) -> None:
        """Consider a batch, C-contiguous float32, shape ``(batch_size, embedding_dimension)``. Not modified."""
        digests = (hashlib.blake2b(row, digest_size=8, key=b"st-keytokens").digest() for row in embeddings)
        self._keep(embeddings, np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64))

    def merge(self, other: EmbeddingSample) -> None:
        """Consider everything that ``other`` has seen."""
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
