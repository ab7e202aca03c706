"""Sparse embeddings over a vocabulary, compressed sparse rows with strict rules, and dense ones beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch

from st_keytokens.shared.checks import checked_float, checked_int

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from st_keytokens.terms.vocabulary import ReadableTerms


def integer_array(name: str, value: ArrayLike, ndim: int) -> NDArray[Any]:
    """A new view of an array of integers; one without elements becomes int64."""
    array = _array(name, value, ndim, "iu", "integers")
    return array if array.size else array.astype(np.int64)


def float_array(name: str, value: ArrayLike, ndim: int) -> NDArray[np.float32]:
    """A new view of an array of numbers, or a copy where they are not float32."""
    floats, given = _floats(name, value, ndim)
    _check_finite(name, floats, given)
    return floats


def weight_array(name: str, value: ArrayLike) -> NDArray[np.float32]:
    """As :func:`float_array`, in one dimension, all above zero and at most ``MAX_WEIGHT``."""
    floats, given = _floats(name, value, 1)
    if len(floats) and not (floats.min() > 0 and floats.max() <= MAX_WEIGHT):  # also where one is NaN
        _check_finite(name, floats, given)
        if floats.min() > 0:
            raise ValueError(_too_large(name, floats.max()))
        raise ValueError(f"{name} must be > 0, got {floats[np.argmin(floats > 0)]}. Leave such terms out.")
    return floats


def _too_large(name: str, largest: np.floating[Any]) -> str:
    return (
        f"{name} must be at most 2**48, about {MAX_WEIGHT:.2g}, so that no score overflows, got {largest}. "
        "Scale all weights."
    )


def check_pointers(indptr: NDArray[Any], nnz: int) -> None:
    """Check that row boundaries go from 0 to the number of indices and never back."""
    if not len(indptr) or indptr[0] != 0 or indptr[-1] != nnz:
        got = f"{indptr[0]} to {indptr[-1]}" if len(indptr) else "an empty array"
        raise ValueError(f"indptr must go from 0 to the number of indices, {nnz}, got {got}.")
    is_falling = indptr[1:] < indptr[:-1]
    if is_falling.any():
        row = int(np.argmax(is_falling))
        raise ValueError(f"indptr must not decrease, got {indptr[row]} then {indptr[row + 1]} at row {row}.")


def check_range(name: str, ids: NDArray[Any], vocab_size: int) -> None:
    """Check that token ids are in the vocabulary."""
    if len(ids) and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"{name} must be in 0..{vocab_size - 1} (vocab_size {vocab_size}), got {wrong}.")


def first_unordered(indptr: NDArray[Any], ids: NDArray[Any]) -> int | None:
    """Position of the first id that is not larger than the one before it in its row, or None."""
    if len(ids) < 2:
        return None
    is_wrong = ids[1:] <= ids[:-1]
    starts = indptr[1:-1]
    is_wrong[starts[(starts > 0) & (starts < len(ids))] - 1] = False
    position = int(np.argmax(is_wrong))
    return position + 1 if is_wrong[position] else None


def check_order(name: str, indptr: NDArray[Any], ids: NDArray[Any]) -> None:
    """Check that the ids of each row increase."""
    position = first_unordered(indptr, ids)
    if position is None:
        return
    row = int(np.searchsorted(indptr, position, side="right")) - 1
    if ids[position] == ids[position - 1]:
        raise ValueError(f"{name} must be unique in each row, got {ids[position]} twice in row {row}.")
    raise ValueError(
        f"{name} must increase in each row, got {ids[position - 1]} before {ids[position]} in row {row}. "
        "Use SparseEmbeddings.from_pairs or from_scipy, which sort."
    )


def _array(name: str, value: ArrayLike, ndim: int, kinds: str, rule: str) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(value).view()
    if array.size and array.dtype.kind not in kinds:
        raise TypeError(f"{name} must be {rule}, got dtype {array.dtype}.")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s' * (ndim > 1)}, got shape {array.shape}.")
    return array


def _floats(name: str, value: ArrayLike, ndim: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Numbers in float32, and as they were given."""
    given = _array(name, value, ndim, "fiu", "numbers")
    if given.dtype == np.float32:
        return given, given
    with np.errstate(over="ignore", under="ignore"):
        return given.astype(np.float32), given


def _check_finite(name: str, floats: NDArray[np.float32], given: NDArray[Any]) -> None:
    is_finite = np.isfinite(floats)
    if not is_finite.all():
        position = int(np.argmin(is_finite))
        raise ValueError(f"{name} must be finite in float32, got {given.flat[position]} at position {position}.")


def _are_weights(values: NDArray[np.float32]) -> bool:
    """Whether all are finite, above zero and not too large."""
    if not len(values):
        return True
    if len(values) > _FEW:
        return bool(0 < np.minimum.reduce(values) and np.maximum.reduce(values) <= MAX_WEIGHT)  # false for NaN too
    weights: list[float] = values.tolist()
    total = sum(weights)  # NaN if one is, which compares as false
    return 0 < min(weights) and (total <= MAX_WEIGHT or (total < math.inf and max(weights) <= MAX_WEIGHT))


MAX_VOCAB_SIZE = 2**31 - 1  # token ids are int32
_FEW = 64  # weights of a query, which Python checks in half the time of numpy
MAX_WEIGHT = 2.0**48  # the product of two rows of so many such terms is still a finite float32


class SparseEmbeddings:
    """Sparse rows over a vocabulary, in compressed sparse row (CSR) form. Arrays are read-only.

    Args:
        indptr: Row boundaries, shape ``(num_rows + 1,)``, integer: row ``i`` is ``indices[indptr[i]:indptr[i + 1]]``.
        indices: Token ids, shape ``(nnz,)``, integer, strictly increasing within each row.
        values: Weights, shape ``(nnz,)``, float, above zero and at most ``MAX_WEIGHT``, 2**48, so that no score of two
            rows overflows.
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

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    vocab_size: int

    def __init__(self, indptr: ArrayLike, indices: ArrayLike, values: ArrayLike, vocab_size: int) -> None:
        vocab_size = checked_int("vocab_size", vocab_size, minimum=1, maximum=MAX_VOCAB_SIZE)
        pointers, ids = integer_array("indptr", indptr, 1), integer_array("indices", indices, 1)
        checked = weight_array("values", values)
        check_pointers(pointers, len(ids))
        if len(checked) != len(ids):
            raise ValueError(f"values must be as many as indices, got {len(checked)} values for {len(ids)} indices.")
        check_range("indices", ids, vocab_size)
        check_order("indices", pointers, ids)
        self.indptr, self.indices = pointers.astype(np.int64, copy=False), ids.astype(np.int32, copy=False)
        self.values, self.vocab_size = checked, vocab_size
        for array in (self.indptr, self.indices, self.values):
            array.setflags(write=False)

    @classmethod
    def trusted(
        cls, indptr: NDArray[Any], indices: NDArray[Any], values: NDArray[Any], vocab_size: int
    ) -> SparseEmbeddings:
        """Build from arrays that are known to obey the rules, without looking at them; they become read-only.

        Args:
            indptr: int64, shape ``(num_rows + 1,)``.
            indices: int32, shape ``(nnz,)``.
            values: float32, shape ``(nnz,)``.
            vocab_size: Number of columns.
        """
        made = cls.__new__(cls)
        made.indptr, made.indices, made.values, made.vocab_size = indptr, indices, values, vocab_size
        indptr.setflags(write=False)
        indices.setflags(write=False)
        values.setflags(write=False)
        return made

    @classmethod
    def empty(cls, num_rows: int, vocab_size: int) -> SparseEmbeddings:
        """Build ``num_rows`` rows without any term.

        Raises:
            TypeError: If a number is not an integer.
            ValueError: If ``num_rows`` is negative or ``vocab_size`` is not positive.

        >>> SparseEmbeddings.empty(2, vocab_size=5)
        SparseEmbeddings(num_rows=2, vocab_size=5, nnz=0)
        """
        num_rows = checked_int("num_rows", num_rows, minimum=0)
        size = checked_int("vocab_size", vocab_size, minimum=1, maximum=MAX_VOCAB_SIZE)
        return cls.trusted(np.zeros(num_rows + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), size)

    @classmethod
    def from_pairs(cls, ids: ArrayLike, weights: ArrayLike, vocab_size: int) -> SparseEmbeddings:
        """Build from padded rows of (token id, weight) pairs in any order.

        Args:
            ids: Token ids, shape ``(num_rows, num_pairs)``, integer. Ids of padding are not looked at.
            weights: Weights, same shape, finite, at most ``MAX_WEIGHT``. A weight of zero or below is padding.
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
        if weight_array.size and weight_array.max() > MAX_WEIGHT:
            raise ValueError(_too_large("weights", weight_array.max()))
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

    @classmethod
    def concatenate(cls, parts: Sequence[SparseEmbeddings]) -> SparseEmbeddings:
        """Put the rows of several sparse embeddings under one another.

        Raises:
            TypeError: If a part is not a SparseEmbeddings.
            ValueError: If there is no part, or vocabulary sizes differ.

        >>> SparseEmbeddings.concatenate([SparseEmbeddings.empty(2, 5), SparseEmbeddings.empty(1, 5)]).shape
        (3, 5)
        """
        if not parts:
            raise ValueError("parts must hold at least one SparseEmbeddings, got none. Use SparseEmbeddings.empty.")
        for part in parts:
            parts[0]._check_vocabulary(part)
        return cls.trusted(
            boundaries(np.concatenate([part.active_dims for part in parts])),
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.values for part in parts]),
            parts[0].vocab_size,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and vocabulary size."""
        return len(self), self.vocab_size

    @property
    def nnz(self) -> int:
        """Number of stored weights."""
        return len(self.indices)

    @property
    def active_dims(self) -> NDArray[np.int64]:
        """Number of terms of each row, int64, shape ``(num_rows,)``."""
        return self.indptr[1:] - self.indptr[:-1]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __iter__(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        if len(self.indptr) == 2:  # one row, as of a query: all there is
            return iter([(self.indices, self.values)])
        return ((self.indices[start:stop], self.values[start:stop]) for start, stop in pairwise(self.indptr.tolist()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_rows={len(self)}, vocab_size={self.vocab_size}, nnz={self.nnz})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseEmbeddings):
            return NotImplemented
        return self.vocab_size == other.vocab_size and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("indptr", "indices", "values")
        )

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __reduce__(self) -> tuple[Any, ...]:  # numpy alone would make the copy's arrays writeable
        return type(self).trusted, (self.indptr, self.indices, self.values, self.vocab_size)

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[Any]) -> SparseEmbeddings:
        """Rows by number (one row), slice (both views where the step is 1), integer array or boolean mask."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            return self._span(start, max(start, stop))
        if isinstance(rows, (int, np.integer)):
            start = self._position(rows)
            return self._span(start, start + 1)
        chosen = np.arange(len(self))[rows]
        if chosen.ndim != 1:
            raise IndexError(f"rows must be a number, a slice or a one-dimensional array, got {rows!r}.")
        counts = self.active_dims[chosen]
        indptr = boundaries(counts)
        positions = np.arange(indptr[-1]) + np.repeat(self.indptr[chosen] - indptr[:-1], counts)
        return self.trusted(indptr, self.indices[positions], self.values[positions], self.vocab_size)

    def row(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Token ids and weights of one row, as views.

        Raises:
            IndexError: If there is no such row.

        >>> SparseEmbeddings.from_dicts([{1: 0.5}], vocab_size=5).row(0)
        (array([1], dtype=int32), array([0.5], dtype=float32))
        """
        position = self._position(row)
        span = slice(self.indptr[position], self.indptr[position + 1])
        return self.indices[span], self.values[span]

    def with_values(self, values: ArrayLike) -> SparseEmbeddings:
        """The same terms with other weights.

        Args:
            values: Weights, shape ``(nnz,)``, above zero and at most ``MAX_WEIGHT``.

        Raises:
            TypeError: If they are not numbers.
            ValueError: If their number differs, or one is not finite, not above zero or too large.

        >>> SparseEmbeddings([0, 2], [1, 4], [0.5, 2.0], vocab_size=5).with_values([1.0, 3.0]).to_dicts()
        [{1: 1.0, 4: 3.0}]
        """
        checked = weight_array("values", values)
        if len(checked) != len(self.indices):
            raise ValueError(f"values must be {len(self.indices)}, one for each term, got {len(checked)}.")
        return self.trusted(self.indptr, self.indices, checked, self.vocab_size)

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
            ValueError: If shapes differ, a factor is negative or not finite, or a sum is above ``MAX_WEIGHT``.

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
        # Over the terms that occur: a transposed matrix has a pointer for each of its rows, which are the terms.
        terms, places = np.unique(np.concatenate([self.indices, other.indices]), return_inverse=True)
        one, two = (
            scipy.sparse.csr_array((rows.values, columns, rows.indptr), shape=(len(rows), len(terms)))
            for rows, columns in zip((self, other), np.split(places, [len(self.indices)]), strict=True)
        )
        return np.asarray((one @ two.T).toarray(), dtype=np.float32)

    def decode(self, vocabulary: ReadableTerms, top_k: int | None = None) -> list[list[tuple[str, float]]]:
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

    def check_weights(self, name: str) -> None:
        """Check the weights of rows that were made by :meth:`trusted`.

        Args:
            name: What errors call them.

        Raises:
            ValueError: If one is not finite, not above zero or above ``MAX_WEIGHT``.

        >>> SparseEmbeddings.from_dicts([{1: 0.5}], vocab_size=5).check_weights("embeddings")
        """
        if not _are_weights(self.values):
            weight_array(f"weights of {name}", self.values)

    def _check_vocabulary(self, other: object) -> None:
        """Check that another is over the same vocabulary, as far as its size tells.

        Raises:
            TypeError: If it is not a SparseEmbeddings.
            ValueError: If its vocabulary size differs.
        """
        if not isinstance(other, SparseEmbeddings):
            raise TypeError(f"sparse embeddings must be a SparseEmbeddings, got {type(other).__name__}.")
        if other.vocab_size != self.vocab_size:
            raise ValueError(
                f"sparse embeddings must have one vocab_size, got {self.vocab_size} and {other.vocab_size}. "
                "Embeddings of different models cannot be combined."
            )

    def _position(self, row: int) -> int:
        """Number of a row counted from the first."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row must be in -{len(self)}..{len(self) - 1}, got {row}.")
        return row % len(self)

    def _span(self, start: int, stop: int) -> SparseEmbeddings:
        """Rows in a row, as views."""
        indptr = self.indptr[start : stop + 1]
        first, last = indptr[0], indptr[-1]
        return self.trusted(indptr - first, self.indices[first:last], self.values[first:last], self.vocab_size)

    def _csr(self, factor: float = 1.0) -> scipy.sparse.csr_matrix:
        """A scipy matrix of the same terms, which are not copied, with weights times a factor."""
        values = self.values if factor == 1.0 else self.values * np.float32(factor)
        return scipy.sparse.csr_matrix((values, self.indices, self.indptr), shape=self.shape)


def boundaries(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Row boundaries from row lengths: ``(num_rows,)`` to ``(num_rows + 1,)``."""
    indptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr


@dataclass(frozen=True, eq=False)
class HybridEmbeddings:
    """Dense and sparse embeddings of the same texts.

    Attributes:
        dense: Dense embeddings, float, shape ``(num_rows, embedding_dimension)``, or None where they were not wanted.
        sparse: Sparse embeddings of the same rows.

    Raises:
        TypeError: If ``dense`` is not an array of floats, or ``sparse`` not a SparseEmbeddings.
        ValueError: If the numbers of rows differ.

    >>> len(HybridEmbeddings(dense=None, sparse=SparseEmbeddings.empty(2, vocab_size=5))[:1])
    1
    """

    dense: NDArray[Any] | None
    sparse: SparseEmbeddings

    def __post_init__(self) -> None:
        if not isinstance(self.sparse, SparseEmbeddings):
            raise TypeError(f"sparse must be a SparseEmbeddings, got {type(self.sparse).__name__}.")
        if self.dense is None:
            return
        if not isinstance(self.dense, np.ndarray) or self.dense.dtype.kind != "f":
            is_array = isinstance(self.dense, np.ndarray)
            got = f"dtype {self.dense.dtype}" if is_array else type(self.dense).__name__
            raise TypeError(f"dense must be a numpy array of floats or None, got {got}.")
        if self.dense.ndim != 2 or len(self.dense) != len(self.sparse):
            raise ValueError(f"dense must have shape ({len(self.sparse)}, dimension), got {self.dense.shape}.")

    def __len__(self) -> int:
        return len(self.sparse)

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[Any]) -> HybridEmbeddings:
        """Rows by number (one row), slice, integer array or boolean mask."""
        sparse = self.sparse[rows]
        if self.dense is None:
            return HybridEmbeddings(None, sparse)
        dense = self.dense[rows]
        return HybridEmbeddings(dense[None] if dense.ndim == 1 else dense, sparse)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HybridEmbeddings):
            return NotImplemented
        if self.dense is None or other.dense is None:
            return self.dense is other.dense and self.sparse == other.sparse
        return np.array_equal(self.dense, other.dense) and self.sparse == other.sparse

    __hash__ = None  # type: ignore[assignment]  # compared by value
