"""Cross moments of embeddings and literal terms: what ties a corpus's words to its embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.calibration.embedding_sample import float32_rows
from st_keytokens.checks import checked_int
from st_keytokens.first_component import Dense

_SATURATION = 1.2  # k1 of BM25
_BLOCK_DOCUMENTS = 2048  # bounds the products that are added at once
_BLOCK_TERMS = 8192
_GROWTH = 1.5


class TermCrossMoments:
    """Sums ``TᵀX`` over documents, for embeddings ``X`` and saturated frequencies ``T`` of literal terms.

    A term that occurs ``tf`` times in a document counts ``tf (k1 + 1) / (tf + k1)`` there, as in BM25 without
    normalisation by length, with ``k1 = 1.2``. Sums are float32, and only terms that occur have any: memory is
    ``4 d`` bytes a term, at most half as much again while they grow, and as much as all of them for a moment then.

    Args:
        embedding_dimension: Width ``d`` of the embeddings, at least 1.
        vocab_size: Size ``V`` of the vocabulary, at least 1.

    Attributes:
        weights: Sum of each term's saturated frequencies, float64, shape ``(V,)``; 0 for a term that does not occur.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If one is below 1.

    Example:
        >>> cross_moments = TermCrossMoments(2, vocab_size=4)
        >>> counts = scipy.sparse.csr_array([[0, 1, 0, 0], [0, 1, 0, 1]])
        >>> cross_moments.update(np.array([[1.0, 0.0], [3.0, 2.0]]), counts)
        >>> cross_moments.term_ids.tolist(), cross_moments.rows(cross_moments.term_ids).tolist()
        ([1, 3], [[4.0, 2.0], [3.0, 2.0]])
    """

    def __init__(self, embedding_dimension: int, vocab_size: int) -> None:
        embedding_dimension = checked_int("embedding_dimension", embedding_dimension, minimum=1)
        vocab_size = checked_int("vocab_size", vocab_size, minimum=1)
        self.weights: NDArray[np.float64] = np.zeros(vocab_size)
        self._row_numbers: NDArray[np.int64] = np.full(vocab_size, -1)
        self._row_count = 0
        self._rows: NDArray[np.float32] = np.zeros((0, embedding_dimension), dtype=np.float32)

    @property
    def term_ids(self) -> NDArray[np.int64]:
        """Terms that occur, ascending."""
        return np.flatnonzero(self._row_numbers >= 0)

    def rows(self, term_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """A copy of the sums of terms that occur, shape ``(len(term_ids), d)``."""
        rows: NDArray[np.float32] = self._rows[self._row_numbers[term_ids]]
        return rows

    def update(self, embeddings: Dense, counts: scipy.sparse.csr_array) -> None:
        """Add documents.

        Args:
            embeddings: Shape ``(batch_size, d)``, any float dtype and device. Not modified.
            counts: Their terms, as :func:`count_matrix` gives them, shape ``(batch_size, V)``. Not modified.
        """
        for start in range(0, len(embeddings), _BLOCK_DOCUMENTS):
            block = counts[start : start + _BLOCK_DOCUMENTS]
            frequencies = block.data * (_SATURATION + 1) / (block.data + _SATURATION)
            term_ids, columns = np.unique(block.indices, return_inverse=True)
            narrow = scipy.sparse.csr_array(
                (frequencies.astype(np.float32), columns, block.indptr), shape=(block.shape[0], len(term_ids))
            )
            self._add(term_ids, narrow.T @ float32_rows(embeddings[start : start + _BLOCK_DOCUMENTS]))
            self.weights[term_ids] += np.bincount(columns, weights=frequencies, minlength=len(term_ids))

    def merge(self, other: TermCrossMoments) -> None:
        """Add everything that ``other``, of the same sizes, has seen. ``other`` is not modified."""
        term_ids = other.term_ids
        for start in range(0, len(term_ids), _BLOCK_TERMS):
            block = term_ids[start : start + _BLOCK_TERMS]
            self._add(block, other.rows(block))
        self.weights += other.weights

    def _add(self, term_ids: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        new = term_ids[self._row_numbers[term_ids] < 0]
        needed = self._row_count + len(new)
        if needed > len(self._rows):
            capacity = max(needed, min(len(self.weights), int(_GROWTH * needed)))
            grown = np.zeros((capacity, self._rows.shape[1]), dtype=np.float32)
            grown[: self._row_count] = self._rows[: self._row_count]
            self._rows = grown
        self._row_numbers[new] = np.arange(self._row_count, needed)
        self._row_count = needed
        self._rows[self._row_numbers[term_ids]] += rows

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as tensors ``weights`` and ``rows``, those of terms that occur, by ascending term."""
        return {
            "weights": torch.from_numpy(self.weights.copy()),
            "rows": torch.from_numpy(self.rows(self.term_ids)),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TermCrossMoments:
        """Restore what :meth:`to_tensors` gave.

        Raises:
            KeyError: If a tensor is missing.
            ValueError: If the tensors do not fit together.
        """
        weights: NDArray[Any] = tensors["weights"].numpy()
        rows: NDArray[Any] = tensors["rows"].numpy()
        term_ids = np.flatnonzero(weights)
        if len(rows) != len(term_ids):
            raise ValueError(f"tensors must hold a row for each weight that is not 0, got {len(rows)} rows.")
        cross_moments = cls(rows.shape[1], len(weights))
        cross_moments.weights, cross_moments._rows, cross_moments._row_count = weights, rows, len(rows)
        cross_moments._row_numbers[term_ids] = np.arange(len(rows))
        return cross_moments
