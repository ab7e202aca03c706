"""Literal terms of documents: checked and counted, and how many documents hold each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.checks import checked_int


class TermCounts:
    """Document frequencies of literal terms, and how many terms there were.

    Args:
        vocab_size: Size ``V`` of the vocabulary, at least 1.

    Attributes:
        document_frequencies: Number of documents that hold each term, int64, shape ``(V,)``.
        total: Number of terms in all documents, with repetition.

    Raises:
        TypeError: If ``vocab_size`` is not an integer.
        ValueError: If ``vocab_size`` is below 1.

    Example:
        >>> terms = TermCounts(4)
        >>> terms.update(count_matrix([np.array([1, 1, 2]), np.array([2])], 4))
        >>> terms.document_frequencies.tolist(), terms.total
        ([0, 1, 2, 0], 4)
    """

    def __init__(self, vocab_size: int) -> None:
        vocab_size = checked_int("vocab_size", vocab_size, minimum=1)
        self.document_frequencies: NDArray[np.int64] = np.zeros(vocab_size, dtype=np.int64)
        self.total = 0

    def update(self, counts: scipy.sparse.csr_array) -> None:
        """Add documents, as :func:`count_matrix` gives them, shape ``(batch_size, V)``. Not modified."""
        self.document_frequencies += np.bincount(counts.indices, minlength=counts.shape[1])
        self.total += int(counts.data.sum())

    def merge(self, other: TermCounts) -> None:
        """Add everything that ``other``, of the same vocabulary, has seen. ``other`` is not modified."""
        self.document_frequencies += other.document_frequencies
        self.total += other.total

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as CPU tensors ``document_frequencies`` and ``total`` (int64 scalar)."""
        return {
            "document_frequencies": torch.from_numpy(self.document_frequencies.copy()),
            "total": torch.tensor(self.total, dtype=torch.int64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TermCounts:
        """Restore what :meth:`to_tensors` gave.

        Raises:
            KeyError: If a tensor is missing.
        """
        frequencies = tensors["document_frequencies"]
        terms = cls(len(frequencies))
        terms.document_frequencies[:] = frequencies.numpy()
        terms.total = int(tensors["total"])
        return terms


def count_matrix(term_ids: Sequence[NDArray[Any]], vocab_size: int) -> scipy.sparse.csr_array:
    """Count the terms of each document.

    Args:
        term_ids: Terms of each document, with repetition, integers in ``[0, vocab_size)``.
        vocab_size: Size of the vocabulary.

    Returns:
        Counts of the terms that occur, int64, shape ``(len(term_ids), vocab_size)``; ids of a row ascending.

    Raises:
        TypeError: If term ids are not integers.
        ValueError: If a term id is out of range.

    Example:
        >>> count_matrix([np.array([3, 1, 3]), np.array([], dtype=int)], 4).toarray().tolist()
        [[0, 1, 0, 2], [0, 0, 0, 0]]
    """
    rows = [np.asarray(terms) for terms in term_ids]
    for terms in rows:
        if len(terms) and not np.issubdtype(terms.dtype, np.integer):
            raise TypeError(f"term_ids must be integers, got {terms.dtype}.")
    lengths = np.array([len(terms) for terms in rows], dtype=np.int64)
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *rows], dtype=np.int64, casting="unsafe")
    documents = np.repeat(np.arange(len(rows)), lengths)
    is_wrong = (ids < 0) | (ids >= vocab_size)
    if is_wrong.any():
        wrong = int(np.argmax(is_wrong))
        raise ValueError(
            f"term_ids must be in [0, {vocab_size}), got {ids[wrong]} in document {documents[wrong]} of this batch. "
            "Use the vocabulary of this model."
        )
    pairs, counts = np.unique(documents * vocab_size + ids, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(len(rows) + 1) * vocab_size)
    return scipy.sparse.csr_array((counts, pairs % vocab_size, starts), shape=(len(rows), vocab_size))
