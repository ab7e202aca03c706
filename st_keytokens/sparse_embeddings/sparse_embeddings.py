"""Sparse embeddings: conversions from and to what others use, and arithmetic on the terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch

from st_keytokens.checks import checked_float, checked_int
from st_keytokens.sparse_embeddings.array_checks import (
    check_order,
    check_range,
    first_unordered,
    float_array,
    integer_array,
    weight_array,
)
from st_keytokens.sparse_embeddings.sparse_rows import MAX_VOCAB_SIZE, SparseRows, boundaries

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from st_keytokens.vocabulary import Vocabulary


class SparseEmbeddings(SparseRows):
    """Sparse rows over a vocabulary, in compressed sparse row (CSR) form. Arrays are read-only.

    Args:
        indptr: Row boundaries, shape ``(num_rows + 1,)``, integer: row ``i`` is ``indices[indptr[i]:indptr[i + 1]]``.
        indices: Token ids, shape ``(nnz,)``, integer, strictly increasing within each row.
        values: Weights, shape ``(nnz,)``, float, finite and above zero.
        vocab_size: Number of columns.

    Attributes:
        indptr: int64, shape ``(num_rows + 1,)``.
        indices: int32, shape ``(nnz,)``.
        values: float32, shape ``(nnz,)``.
        vocab_size: Number of columns.

    Raises:
        TypeError: If an array is not of its kind of number.
        ValueError: If an array breaks one of the rules above.

    >>> SparseEmbeddings([0, 2, 2], [1, 4], [0.5, 2.0], vocab_size=5)
    SparseEmbeddings(num_rows=2, vocab_size=5, nnz=2)
    """

    @classmethod
    def from_pairs(cls, ids: ArrayLike, weights: ArrayLike, vocab_size: int) -> SparseEmbeddings:
        """Build from padded rows of (token id, weight) pairs in any order.

        Args:
            ids: Token ids, shape ``(num_rows, num_pairs)``, integer. Ids of padding are not looked at.
            weights: Weights, same shape, finite. A weight of zero or below is padding.
            vocab_size: Number of columns.

        Raises:
            TypeError: If ids are not integers or weights are not numbers.
            ValueError: If shapes differ, a weight is not finite, an id is outside the vocabulary or twice in a row.

        >>> SparseEmbeddings.from_pairs([[4, 1, 0]], [[2.0, 0.5, 0.0]], vocab_size=5).to_dicts()
        [{1: 0.5, 4: 2.0}]
        """
        vocab_size = checked_int("vocab_size", vocab_size, minimum=1, maximum=MAX_VOCAB_SIZE)
        id_array, weight_array = integer_array("ids", ids, 2), float_array("weights", weights, 2)
        if id_array.shape != weight_array.shape:
            raise ValueError(f"weights must have the shape of ids, {id_array.shape}, got {weight_array.shape}.")
        is_term = weight_array > 0
        indptr = boundaries(np.count_nonzero(is_term, axis=1))
        indices, values = id_array[is_term], weight_array[is_term]
        check_range("ids", indices, vocab_size)
        indices = indices.astype(np.int32, copy=False)
        if first_unordered(indptr, indices) is not None:
            matrix = scipy.sparse.csr_matrix((values, indices, indptr), shape=(len(id_array), vocab_size))
            matrix.sort_indices()
            indices, values = matrix.indices.astype(np.int32, copy=False), matrix.data
            check_order("ids", indptr, indices)
        return cls.trusted(indptr, indices, values, vocab_size)

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseEmbeddings:
        """Build from a two-dimensional scipy sparse matrix or array of any format; duplicates are summed.

        Raises:
            TypeError: If it is not a scipy sparse matrix of real numbers.
            ValueError: If it is not two-dimensional, or a weight is negative or not finite.

        >>> SparseEmbeddings.from_scipy(scipy.sparse.csr_matrix([[0.0, 3.0]])).to_dicts()
        [{1: 3.0}]
        """
        if not scipy.sparse.issparse(matrix):
            raise TypeError(f"matrix must be a scipy sparse matrix, got {type(matrix).__name__}.")
        if matrix.ndim != 2:
            raise ValueError(f"matrix must be two-dimensional, got shape {matrix.shape}.")
        csr = matrix.tocsr(copy=True)
        csr.sum_duplicates()
        csr.eliminate_zeros()
        return cls(csr.indptr, csr.indices, csr.data, matrix.shape[1])

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> SparseEmbeddings:
        """Build from a tensor of shape ``(num_rows, vocab_size)``: dense, COO or CSR, any device and float dtype.

        Raises:
            TypeError: If it is not a tensor.
            ValueError: If it is not two-dimensional, or a weight is negative or not finite.

        >>> SparseEmbeddings.from_torch(torch.tensor([[0.0, 3.0]])).to_dicts()
        [{1: 3.0}]
        """
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensor must be a torch.Tensor, got {type(tensor).__name__}.")
        if tensor.ndim != 2:
            raise ValueError(
                f"tensor must be two-dimensional, got shape {tuple(tensor.shape)}. Use unsqueeze(0) for a single row."
            )
        coo = tensor.detach().to(torch.float32).to_sparse().cpu()
        # _indices and _values read an uncoalesced tensor, and one made in inference mode, where coalesce() fails
        rows, columns = coo._indices().numpy()
        return cls.from_scipy(scipy.sparse.coo_matrix((coo._values().numpy(), (rows, columns)), shape=coo.shape))

    @classmethod
    def from_dicts(cls, rows: Sequence[Mapping[int, float]], vocab_size: int) -> SparseEmbeddings:
        """Build from one mapping of token id to weight per row.

        Raises:
            TypeError: If an id is not an integer or a weight is not a number.
            ValueError: If an id is outside the vocabulary, or a weight is negative or not finite.

        >>> SparseEmbeddings.from_dicts([{4: 2.0, 1: 0.5}, {}], vocab_size=5).active_dims
        array([2, 0])
        """
        vocab_size = checked_int("vocab_size", vocab_size, minimum=1, maximum=MAX_VOCAB_SIZE)
        indptr = boundaries(np.array([len(row) for row in rows], dtype=np.int64))
        ids = integer_array("ids", list(chain.from_iterable(rows)), 1)
        values = float_array("weights", list(chain.from_iterable(row.values() for row in rows)), 1)
        check_range("ids", ids, vocab_size)
        shape = (len(indptr) - 1, vocab_size)
        return cls.from_scipy(scipy.sparse.csr_matrix((values, ids.astype(np.int32), indptr), shape=shape))

    def to_scipy(self) -> scipy.sparse.csr_matrix:
        """Copy into a canonical float32 ``scipy.sparse.csr_matrix`` of the same shape."""
        return self._csr().copy()

    def to_torch(self) -> torch.Tensor:
        """Copy into a coalesced float32 COO tensor of the same shape, on the CPU."""
        rows = np.repeat(np.arange(len(self)), self.active_dims)
        pairs = torch.from_numpy(np.stack([rows, self.indices.astype(np.int64)]))
        values = torch.from_numpy(self.values.copy())
        return torch.sparse_coo_tensor(pairs, values, self.shape, is_coalesced=True, check_invariants=False)

    def to_dicts(self) -> list[dict[int, float]]:
        """Copy into one dictionary of token id to weight per row, in order of token id."""
        return [dict(zip(indices.tolist(), values.tolist(), strict=True)) for indices, values in self]

    def decode(self, vocabulary: Vocabulary, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """Readable terms of every row with their weights, heaviest first (ties: smaller token id first).

        Args:
            vocabulary: The vocabulary that the columns stand for.
            top_k: At most so many terms of each row; None for all.

        Raises:
            TypeError: If ``top_k`` is not an integer.
            ValueError: If the vocabulary has another size, or ``top_k`` is not positive.
        """
        if vocabulary.vocab_size != self.vocab_size:
            raise ValueError(
                f"vocabulary must have vocab_size {self.vocab_size}, got {vocabulary.vocab_size}. "
                "Pass the vocabulary of the model that made these embeddings."
            )
        kept = self if top_k is None else self.prune(checked_int("top_k", top_k, minimum=1))
        decoded = []
        for indices, values in kept:
            order = np.argsort(-values, kind="stable")
            strings = [vocabulary.strings[index] for index in indices[order].tolist()]
            decoded.append(list(zip(strings, values[order].tolist(), strict=True)))
        return decoded

    def prune(self, max_active_dims: int, *, by: ArrayLike | None = None) -> SparseEmbeddings:
        """Keep the largest weights of each row (ties: smaller token id first).

        Args:
            max_active_dims: How many terms a row may keep, at least 1.
            by: What ranks the terms instead of their weights, shape ``(nnz,)``, finite and not negative.

        Raises:
            TypeError: If ``max_active_dims`` is not an integer.
            ValueError: If it is not positive, or ``by`` is of another shape, negative or not finite.

        >>> SparseEmbeddings.from_dicts([{1: 0.5, 2: 3.0, 4: 2.0}], vocab_size=5).prune(2).to_dicts()
        [{2: 3.0, 4: 2.0}]
        """
        limit = checked_int("max_active_dims", max_active_dims, minimum=1)
        keys = self.values if by is None else np.asarray(by, dtype=np.float32) + np.float32(0)  # no -0
        if keys.shape != self.values.shape or not np.isfinite(keys).all() or (keys < 0).any():
            raise ValueError(f"by must be {self.nnz} finite numbers, none negative, got shape {keys.shape}.")
        counts = self.active_dims
        if self.nnz == 0 or counts.max() <= limit:
            return self
        # Floats from zero on order as their bits: a stable sort of (row, falling weight) ranks every row's terms.
        rows = np.repeat(np.arange(len(self)), counts)
        falling = rows.astype(np.uint64) << np.uint64(32) | ~keys.view(np.uint32)
        ranks = np.arange(self.nnz) - np.repeat(self.indptr[:-1], counts)
        is_kept = np.zeros(self.nnz, dtype=np.bool_)
        is_kept[np.argsort(falling, kind="stable")[ranks < limit]] = True
        indptr = boundaries(np.minimum(counts, limit))
        return self.trusted(indptr, self.indices[is_kept], self.values[is_kept], self.vocab_size)

    def add(self, other: SparseEmbeddings, *, weight: float = 1.0, other_weight: float = 1.0) -> SparseEmbeddings:
        """Sum term by term: ``weight * self + other_weight * other``, in float32.

        Args:
            other: Sparse embeddings of the same shape.
            weight: Factor of these weights, finite, at least 0.
            other_weight: Factor of the other's weights, finite, at least 0.

        Raises:
            TypeError: If ``other`` is not a SparseEmbeddings or a factor not a number.
            ValueError: If shapes differ, a factor is negative or not finite, or a sum overflows float32.

        >>> one = SparseEmbeddings.from_dicts([{1: 1.0}], vocab_size=5)
        >>> one.add(SparseEmbeddings.from_dicts([{1: 1.0, 2: 1.0}], vocab_size=5), other_weight=0.5).to_dicts()
        [{1: 1.5, 2: 0.5}]
        """
        self._check_vocabulary(other)
        if len(self) != len(other):
            raise ValueError(f"other must have {len(self)} rows, got {len(other)}.")
        factors = checked_float("weight", weight, minimum=0), checked_float("other_weight", other_weight, minimum=0)
        with np.errstate(over="ignore", under="ignore"):  # an overflow is refused, an underflow leaves the term out
            total = self._csr(factors[0]) + other._csr(factors[1])
        total.eliminate_zeros()
        indices, values = total.indices.astype(np.int32, copy=False), weight_array("values", total.data)
        return self.trusted(total.indptr.astype(np.int64), indices, values, self.vocab_size)

    def scores(self, other: SparseEmbeddings) -> NDArray[np.float32]:
        """Dot products of all rows with all of the other's rows.

        Args:
            other: Sparse embeddings over the same vocabulary.

        Returns:
            float32 array of shape ``(len(self), len(other))``.

        Raises:
            TypeError: If ``other`` is not a SparseEmbeddings.
            ValueError: If vocabulary sizes differ.

        >>> one = SparseEmbeddings.from_dicts([{1: 2.0}], vocab_size=5)
        >>> one.scores(SparseEmbeddings.from_dicts([{1: 3.0}, {2: 1.0}], vocab_size=5))
        array([[6., 0.]], dtype=float32)
        """
        self._check_vocabulary(other)
        return np.asarray((self._csr() @ other._csr().T).toarray(), dtype=np.float32)

    def _csr(self, factor: float = 1.0) -> scipy.sparse.csr_matrix:
        """A scipy matrix of the same terms, which are not copied, with weights times a factor."""
        values = self.values if factor == 1.0 else self.values * np.float32(factor)
        return scipy.sparse.csr_matrix((values, self.indices, self.indptr), shape=self.shape)
