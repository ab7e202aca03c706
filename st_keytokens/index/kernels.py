"""Exact scoring of sparse queries, term at a time, by numba, torch or scipy: the same products in the same order.

A score is the float32 sum of query weight times document weight over the shared terms, in ascending order of term id.
The kernels agree to the last bit but for what a compiler may fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import scipy.sparse
import torch

from st_keytokens.index.segments import BLOCK, Postings
from st_keytokens.shared.checks import check_choice

if TYPE_CHECKING:
    from numpy.typing import NDArray


__all__ = ["Kernel", "KernelName", "Ranking", "best_rows", "padded", "sparse_kernel"]

KernelName = Literal["auto", "numba", "torch", "scipy"]

Ranking = tuple["NDArray[np.int64]", "NDArray[np.float32]"]
Accumulate = Callable[["Postings", "NDArray[np.int32]", "NDArray[np.float32]", "NDArray[np.float32]"], None]
Select = Callable[["NDArray[np.float32]", "NDArray[np.bool_] | None", int], Ranking]
Best = Callable[
    [
        Sequence["Postings"],
        "NDArray[np.int32]",
        "NDArray[np.float32]",
        "NDArray[np.float32]",
        "NDArray[np.bool_] | None",
        int,
    ],
    Ranking,
]


@dataclass(frozen=True)
class Kernel:
    """How sparse scores are computed.

    Attributes:
        name: ``"numba"``, ``"torch"`` or ``"scipy"``.
        accumulate: Adds a query's products with one segment's postings to that segment's part of the scores.
        best: The rows with the best scores above 0, and these scores, best first, ties by row. Takes the postings of
            consecutive rows; the query's term ids, ascending, and their weights; work space, :func:`padded` to the
            number of rows, that is overwritten; a mask of the rows that may be found, padded alike, or None for all;
            and how many rows at most.
    """

    name: str
    accumulate: Accumulate
    best: Best


def _best_by(accumulate: Accumulate, select: Select) -> Best:
    """:attr:`Kernel.best` by all segments' scores, and the best of these."""

    def best(
        segments: Sequence[Postings],
        terms: NDArray[np.int32],
        weights: NDArray[np.float32],
        scores: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
        limit: int,
    ) -> Ranking:
        scores.fill(0)
        start = 0
        for postings in segments:
            stop = start + postings.num_rows
            accumulate(postings, terms, weights, scores[start:stop])
            start = stop
        return select(scores, mask, min(limit, start))

    return best


def padded(num_rows: int) -> int:
    """Length of a score buffer for so many rows: the next multiple of the kernels' block."""
    return -(-num_rows // BLOCK) * BLOCK


def best_rows(scores: NDArray[np.float32], rows: NDArray[np.int64], limit: int) -> Ranking:
    """The best ``limit`` of ``rows`` (ascending) by falling score, ties by row, and their scores.

    >>> best_rows(np.array([1, 3, 2, 3], dtype=np.float32), np.arange(4), 3)
    (array([1, 3, 2]), array([3., 3., 2.], dtype=float32))
    """
    found = scores[rows]
    if len(rows) > limit:
        at_least = found >= np.partition(found, len(rows) - limit)[len(rows) - limit]
        rows, found = rows[at_least], found[at_least]
    order = (-found).argsort(kind="stable")[:limit]
    return rows[order], found[order]


def sparse_kernel(name: KernelName = "auto") -> Kernel:
    """The kernel of that name; ``"auto"`` is numba where it is installed and torch elsewhere.

    Raises:
        ValueError: If there is no such kernel.
        ImportError: If numba is wanted by name and not installed.
    """
    check_choice("kernel", name, get_args(KernelName))
    if name in ("auto", "numba"):
        try:
            return _numba_kernel()
        except ImportError as err:
            if name == "numba":
                raise ImportError('kernel "numba" needs numba: pip install "st-keytokens[numba]"') from err
    if name == "scipy":
        return Kernel("scipy", _scipy_accumulate, _best_by(_scipy_accumulate, _best_positive))
    return Kernel("torch", _torch_accumulate, _best_by(_torch_accumulate, _best_positive))


def _numba_kernel() -> Kernel:
    from st_keytokens.index import numba_kernels

    no_mask = np.empty(0, np.uint8)

    def accumulate(
        postings: Postings, terms: NDArray[np.int32], weights: NDArray[np.float32], scores: NDArray[np.float32]
    ) -> None:
        numba_kernels.accumulate(
            postings.terms, postings.indptr, postings.gaps, postings.weights, terms, weights, scores
        )

    def select(scores: NDArray[np.float32], mask: NDArray[np.bool_] | None, limit: int) -> Ranking:
        return numba_kernels.select(  # type: ignore[no-any-return]
            scores, no_mask if mask is None else mask.view(np.uint8), limit
        )

    best_of_several = _best_by(accumulate, select)

    def best(
        segments: Sequence[Postings],
        terms: NDArray[np.int32],
        weights: NDArray[np.float32],
        scores: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
        limit: int,
    ) -> Ranking:
        if len(segments) != 1:
            return best_of_several(segments, terms, weights, scores, mask, limit)
        postings = segments[0]
        num_rows = postings.num_rows
        return numba_kernels.search(  # type: ignore[no-any-return]
            postings.terms,
            postings.indptr,
            postings.gaps,
            postings.weights,
            terms,
            weights,
            scores,
            num_rows,
            no_mask if mask is None else mask.view(np.uint8),
            min(limit, num_rows),
        )

    return Kernel("numba", accumulate, best)


def _torch_accumulate(
    postings: Postings, terms: NDArray[np.int32], weights: NDArray[np.float32], scores: NDArray[np.float32]
) -> None:
    sums = torch.from_numpy(scores)
    for position, weight in zip(*postings.shared(terms, weights), strict=True):
        rows, row_weights = postings.of_term(position)
        sums.index_add_(0, torch.from_numpy(rows), torch.from_numpy(row_weights * weight))


def _scipy_accumulate(
    postings: Postings, terms: NDArray[np.int32], weights: NDArray[np.float32], scores: NDArray[np.float32]
) -> None:
    positions, shared_weights = postings.shared(terms, weights)
    query = scipy.sparse.csr_matrix(
        (shared_weights, positions, [0, len(positions)]), shape=(1, len(postings.terms)), dtype=np.float32
    )
    product = query @ postings.matrix
    scores[product.indices] = product.data


def _best_positive(scores: NDArray[np.float32], mask: NDArray[np.bool_] | None, limit: int) -> Ranking:
    return best_rows(scores, np.flatnonzero(scores > 0 if mask is None else (scores > 0) & mask), limit)
