"""Compressed sparse rows: the arrays, their rules, and choosing among the rows.

Rows are sorted by token id, ids are unique within a row, and every weight is a finite float32 above zero, so two equal
sets of weights are equal arrays, and a row is ready for any engine that takes indices and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from st_keytokens.checks import checked_int
from st_keytokens.sparse_embeddings.array_checks import (
    check_order,
    check_pointers,
    check_range,
    integer_array,
    weight_array,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

MAX_VOCAB_SIZE = 2**31 - 1  # token ids are int32


class SparseRows:
    """The rows of :class:`SparseEmbeddings`, which adds conversions and arithmetic."""

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
        self._set(pointers.astype(np.int64, copy=False), ids.astype(np.int32, copy=False), checked, vocab_size)

    def _set(self, indptr: NDArray[Any], indices: NDArray[Any], values: NDArray[Any], vocab_size: int) -> None:
        self.indptr, self.indices, self.values, self.vocab_size = indptr, indices, values, vocab_size
        indptr.setflags(write=False)
        indices.setflags(write=False)
        values.setflags(write=False)

    @classmethod
    def trusted(cls, indptr: NDArray[Any], indices: NDArray[Any], values: NDArray[Any], vocab_size: int) -> Self:
        """Build from arrays that are known to obey the rules, without looking at them; they become read-only.

        Args:
            indptr: int64, shape ``(num_rows + 1,)``.
            indices: int32, shape ``(nnz,)``.
            values: float32, shape ``(nnz,)``.
            vocab_size: Number of columns.
        """
        made = cls.__new__(cls)
        made._set(indptr, indices, values, vocab_size)
        return made

    def with_values(self, values: ArrayLike) -> Self:
        """The same terms with other weights.

        Args:
            values: Weights, shape ``(nnz,)``, finite and above zero.

        Raises:
            TypeError: If they are not numbers.
            ValueError: If their number differs, or one is not finite or not above zero.

        >>> from st_keytokens import SparseEmbeddings
        >>> SparseEmbeddings([0, 2], [1, 4], [0.5, 2.0], vocab_size=5).with_values([1.0, 3.0]).to_dicts()
        [{1: 1.0, 4: 3.0}]
        """
        checked = weight_array("values", values)
        if len(checked) != len(self.indices):
            raise ValueError(f"values must be {len(self.indices)}, one for each term, got {len(checked)}.")
        return self.trusted(self.indptr, self.indices, checked, self.vocab_size)

    @classmethod
    def empty(cls, num_rows: int, vocab_size: int) -> Self:
        """Build ``num_rows`` rows without any term.

        Raises:
            TypeError: If a number is not an integer.
            ValueError: If ``num_rows`` is negative or ``vocab_size`` is not positive.

        >>> from st_keytokens import SparseEmbeddings
        >>> SparseEmbeddings.empty(2, vocab_size=5)
        SparseEmbeddings(num_rows=2, vocab_size=5, nnz=0)
        """
        num_rows = checked_int("num_rows", num_rows, minimum=0)
        return cls(np.zeros(num_rows + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), vocab_size)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put the rows of several sparse embeddings under one another.

        Raises:
            TypeError: If a part is not a SparseEmbeddings.
            ValueError: If there is no part, or vocabulary sizes differ.

        >>> from st_keytokens import SparseEmbeddings
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
        return (self.row(row) for row in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_rows={len(self)}, vocab_size={self.vocab_size}, nnz={self.nnz})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseRows):
            return NotImplemented
        return self.vocab_size == other.vocab_size and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("indptr", "indices", "values")
        )

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __reduce__(self) -> tuple[Any, ...]:  # numpy alone would make the copy's arrays writeable
        return type(self).trusted, (self.indptr, self.indices, self.values, self.vocab_size)

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[Any]) -> Self:
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

        >>> from st_keytokens import SparseEmbeddings
        >>> SparseEmbeddings.from_dicts([{1: 0.5}], vocab_size=5).row(0)
        (array([1], dtype=int32), array([0.5], dtype=float32))
        """
        position = self._position(row)
        span = slice(self.indptr[position], self.indptr[position + 1])
        return self.indices[span], self.values[span]

    def _check_vocabulary(self, other: object) -> None:
        """Check that another is over the same vocabulary, as far as its size tells.

        Raises:
            TypeError: If it is not a SparseEmbeddings.
            ValueError: If its vocabulary size differs.
        """
        if not isinstance(other, SparseRows):
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

    def _span(self, start: int, stop: int) -> Self:
        """Rows in a row, as views."""
        indptr = self.indptr[start : stop + 1]
        first, last = indptr[0], indptr[-1]
        return self.trusted(indptr - first, self.indices[first:last], self.values[first:last], self.vocab_size)


def boundaries(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Row boundaries from row lengths: ``(num_rows,)`` to ``(num_rows + 1,)``."""
    indptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr
