"""The answer that looks at no text: a corpus's most frequent terms, best first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["document_frequencies", "frequency_order"]


def document_frequencies(term_ids: Sequence[NDArray[np.int64]], vocab_size: int) -> NDArray[np.int64]:
    """In how many texts each term occurs.

    Args:
        term_ids: Term ids of each text; repetitions count once.
        vocab_size: Number of terms.

    Returns:
        int64, shape ``(vocab_size,)``.

    >>> document_frequencies([np.array([1, 1, 2]), np.array([1])], 4)
    array([0, 2, 1, 0])
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for ids in term_ids:
        counts[np.unique(ids)] += 1
    return counts


def frequency_order(frequencies: NDArray[np.int64]) -> NDArray[np.int64]:
    """The terms that occur, the most frequent one first, the smallest id first among equals.

    Args:
        frequencies: Of each term, shape ``(vocab_size,)``.

    Returns:
        int64, one id for each frequency that is not zero.

    >>> frequency_order(np.array([0, 2, 1, 2]))
    array([1, 3, 2])
    """
    order = np.argsort(-frequencies, kind="stable")
    found: NDArray[np.int64] = order[: np.count_nonzero(frequencies)]
    return found
