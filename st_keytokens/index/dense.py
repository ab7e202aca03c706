"""Dense rows: memory-mapped, searched exactly, block by block, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_keytokens.index.kernels import best_rows
from st_keytokens.index.segments import DenseRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Similarity", "best_dense", "checked_dense"]

Similarity = Literal["cosine", "dot"]
_SCORE_BYTES = 1 << 26


def checked_dense(name: str, dense: NDArray[Any], dtype: str) -> DenseRows:
    """Dense rows in a dtype, C-contiguous, with their norms.

    Raises:
        ValueError: If a row's squared norm is not a finite float32, so that a score might not be.

    >>> checked_dense("embeddings", np.array([[3.0, 4.0], [0.0, 0.0]]), "float32").norms
    array([5., 1.], dtype=float32)
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        rows = np.ascontiguousarray(dense, dtype=dtype)
        made = DenseRows(rows, np.empty(len(rows), np.float32))
        for place, block in made.blocks():
            made.norms[place] = np.sqrt(np.einsum("ij,ij->i", block, block))
    if not np.isfinite(made.norms).all():
        row = int(np.argmin(np.isfinite(made.norms)))
        raise ValueError(f"{name} must have finite values and squared norms in {dtype}, but row {row} has not.")
    made.norms[made.norms == 0] = 1
    return made


def best_dense(
    parts: Sequence[DenseRows], queries: DenseRows, similarity: Similarity, rows: NDArray[np.int64], limit: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Find the rows most similar to each query.

    Args:
        parts: Consecutive rows.
        queries: The queries, float32.
        similarity: ``"dot"``, or ``"cosine"``, which is 0 where a vector is all zeros.
        rows: Numbers of the rows that may be found, ascending.
        limit: At most so many.

    Yields:
        Rows and scores of each query, best first, ties by row.
    """
    is_cosine = similarity == "cosine"
    vectors = queries.rows / queries.norms[:, None] if is_cosine else queries.rows
    num_rows = sum(len(part.rows) for part in parts)
    step = max(1, _SCORE_BYTES // (4 * max(1, num_rows)))
    for first in range(0, len(vectors), step):
        group = vectors[first : first + step]
        scores = np.empty((len(group), num_rows), np.float32)
        start = 0
        for part in parts:
            for place, block in part.blocks():
                np.matmul(group, block.T, out=scores[:, start + place.start : start + place.stop])
            stop = start + len(part.rows)
            if is_cosine:
                scores[:, start:stop] /= part.norms
            start = stop
        yield from (best_rows(row, rows, limit) for row in scores)
