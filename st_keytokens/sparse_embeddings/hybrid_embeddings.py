"""Dense and sparse embeddings of the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from st_keytokens.sparse_embeddings.sparse_embeddings import SparseEmbeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
