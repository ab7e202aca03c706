"""How alike the two texts of a pair are: by their dense vectors, by their key tokens, and by their own words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

__all__ = ["PAIR_MEASURES", "cosine_overlap", "weighted_jaccard"]

Measure = Callable[[HybridEmbeddings, SparseEmbeddings, SparseEmbeddings], NDArray[np.float64]]
"""From embeddings, decoded terms and counts of literal terms, of texts and then of the others, to a value a pair."""


def weighted_jaccard(sparse: SparseEmbeddings) -> NDArray[np.float64]:
    """Overlap of rows with the same number of rows below them: sum of the smaller weights over that of the larger.

    Args:
        sparse: Shape ``(2 n, vocab_size)``.

    Returns:
        Shape ``(n,)``, 0 to 1; 0 where both rows are empty.

    >>> weighted_jaccard(SparseEmbeddings.from_dicts([{1: 2.0, 2: 1.0}, {1: 1.0, 3: 2.0}], vocab_size=5))
    array([0.2])
    """
    matrix = sparse.to_scipy().astype(np.float64)
    half = len(sparse) // 2
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    smaller = np.asarray(matrix[:half].minimum(matrix[half:]).sum(axis=1)).ravel()
    larger = sums[:half] + sums[half:] - smaller
    return _quotients(smaller, larger)


def cosine_overlap(sparse: SparseEmbeddings) -> NDArray[np.float64]:
    """Cosine of rows with the same number of rows below them.

    Args:
        sparse: Shape ``(2 n, vocab_size)``.

    Returns:
        Shape ``(n,)``, 0 to 1; 0 where a row is empty.

    >>> cosine_overlap(SparseEmbeddings.from_dicts([{1: 3.0, 2: 4.0}, {1: 2.0}], vocab_size=5)).round(6)
    array([0.6])
    """
    matrix = sparse.to_scipy().astype(np.float64)
    half = len(sparse) // 2
    products = np.asarray(matrix[:half].multiply(matrix[half:]).sum(axis=1)).ravel()
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    both = lengths[:half] * lengths[half:]
    return _quotients(products, both)


PAIR_MEASURES: dict[str, Measure] = {
    "dense cosine": lambda both, decoded, counts: _dense_cosine(both.dense),
    "decoded cosine": lambda both, decoded, counts: cosine_overlap(decoded),
    "decoded Jaccard": lambda both, decoded, counts: weighted_jaccard(decoded),
    "sparse cosine": lambda both, decoded, counts: cosine_overlap(both.sparse),
    "literal Jaccard": lambda both, decoded, counts: weighted_jaccard(counts),
}
"""Measures of a pair by name: of the dense vectors; of the decoded key tokens, by the cosine and by the weighted
Jaccard index of their weights; of the sparse vectors that search uses; and of the counts of the texts' own tokens, for
which no model is needed."""


def _dense_cosine(dense: NDArray[np.float32] | None) -> NDArray[np.float64]:
    if dense is None:
        raise ValueError("embeddings must have a dense part, got none.")
    vectors = dense.astype(np.float64)
    half = len(vectors) // 2
    lengths = np.linalg.norm(vectors, axis=1)
    both = lengths[:half] * lengths[half:]
    return _quotients((vectors[:half] * vectors[half:]).sum(axis=1), both)


def _quotients(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotients; 0 where there is nothing to divide by."""
    found: NDArray[np.float64] = np.zeros(len(parts))
    np.divide(parts, wholes, out=found, where=wholes > 0)
    return found
