"""Postings: which rows hold a term, and with which weight. Term by term, 8 bytes a posting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.sparse_embeddings import SparseEmbeddings

__all__ = ["Postings"]


@dataclass(frozen=True, eq=False)
class Postings:
    """Sparse embeddings by term, for the terms that occur.

    Attributes:
        num_rows: Number of rows that the postings are about.
        terms: Term ids, ascending, int32, shape ``(num_terms,)``.
        indptr: Boundaries, int64, shape ``(num_terms + 1,)``: term ``t`` has the postings ``indptr[t]:indptr[t + 1]``.
        documents: Row of each posting, ascending within a term, int32, shape ``(num_postings,)``.
        weights: Weight of each posting, float32, same shape.
    """

    num_rows: int
    terms: NDArray[np.int32]
    indptr: NDArray[np.int64]
    documents: NDArray[np.int32]
    weights: NDArray[np.float32]

    @classmethod
    def from_sparse(cls, embeddings: SparseEmbeddings) -> Postings:
        """Turn rows of terms into terms of rows.

        >>> from st_keytokens.sparse_embeddings import SparseEmbeddings
        >>> postings = Postings.from_sparse(SparseEmbeddings.from_dicts([{7: 0.5}, {2: 1.0, 7: 2.0}], vocab_size=9))
        >>> [array.tolist() for array in (postings.terms, postings.indptr, postings.documents, postings.weights)]
        [[2, 7], [0, 1, 3], [1, 0, 1], [1.0, 0.5, 2.0]]
        """
        parts = (embeddings.values, embeddings.indices, embeddings.indptr)
        columns = scipy.sparse.csr_matrix(parts, shape=embeddings.shape).tocsc()
        return cls._made(len(embeddings), np.arange(embeddings.vocab_size), columns)

    @classmethod
    def _made(cls, num_rows: int, terms: NDArray[Any], compressed: Any) -> Postings:
        """Keep the terms that have postings, in the dtypes of the format."""
        is_used = np.diff(compressed.indptr) > 0
        indptr = np.append(compressed.indptr[:-1][is_used], compressed.indptr[-1])
        return cls(
            num_rows,
            terms[is_used].astype(np.int32),
            indptr.astype(np.int64),
            compressed.indices.astype(np.int32, copy=False),
            compressed.data,
        )

    @classmethod
    def merged(cls, parts: Sequence[Postings]) -> Postings:
        """Put the rows of several postings under one another."""
        terms = np.unique(np.concatenate([part.terms for part in parts]))
        widened = []
        for part in parts:
            counts = np.zeros(len(terms) + 1, np.int64)
            counts[1 + np.searchsorted(terms, part.terms)] = np.diff(part.indptr)
            arrays = (part.weights, part.documents, np.cumsum(counts))
            widened.append(scipy.sparse.csr_matrix(arrays, shape=(len(terms), part.num_rows)))
        return cls._made(sum(part.num_rows for part in parts), terms, scipy.sparse.hstack(widened, format="csr"))

    def kept(self, is_kept: NDArray[np.bool_]) -> Postings:
        """Keep some rows, given as a mask, and number them anew."""
        has_posting = is_kept[self.documents]
        numbers = np.cumsum(is_kept, dtype=np.int32) - 1
        num_before = np.zeros(len(has_posting) + 1, np.int64)
        np.cumsum(has_posting, out=num_before[1:])
        arrays = (self.weights[has_posting], numbers[self.documents[has_posting]], num_before[self.indptr])
        num_rows = int(np.count_nonzero(is_kept))
        return self._made(num_rows, self.terms, scipy.sparse.csr_matrix(arrays, shape=(len(self.terms), num_rows)))

    def shared(
        self, terms: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Positions among these terms of those that occur here, and their weights."""
        positions = np.searchsorted(self.terms, terms)
        is_shared = positions < len(self.terms)
        is_shared[is_shared] = self.terms[positions[is_shared]] == terms[is_shared]
        return positions[is_shared], weights[is_shared]

    def of_term(self, position: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows and weights of the term at a position."""
        span = slice(self.indptr[position], self.indptr[position + 1])
        return self.documents[span], self.weights[span]

    def weight(self, term: int | np.int32, row: int) -> float:
        """Weight of a term in a row; 0 where the row does not hold it."""
        position = int(np.searchsorted(self.terms, term))
        if position == len(self.terms) or self.terms[position] != term:
            return 0.0
        documents, weights = self.of_term(position)
        place = int(np.searchsorted(documents, row))
        return float(weights[place]) if place < len(documents) and documents[place] == row else 0.0

    @cached_property
    def matrix(self) -> Any:
        """A scipy CSR matrix of shape ``(num_terms, num_rows)`` over the same arrays.

        Raises:
            ValueError: If a posting names a row that does not exist.
        """
        matrix = scipy.sparse.csr_matrix(
            (self.weights, self.documents, self.indptr), shape=(len(self.terms), self.num_rows)
        )
        matrix.check_format(full_check=True)
        return matrix
