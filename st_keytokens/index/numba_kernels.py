"""The compiled loops of sparse search. Imported only where numba is installed and wanted.

Signatures are declared, so everything compiles at import, once: the machine code is cached on disk. Indices are
unsigned, which spares numba the test for negative ones and halves the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from st_keytokens.index.segments import BLOCK

__all__ = ["accumulate", "select"]


def _accumulate(
    terms: Any, indptr: Any, gaps: Any, weights: Any, query_terms: Any, query_weights: Any, scores: Any
) -> None:
    """Add the products of one query with one segment's postings to ``scores``, in ascending order of terms."""
    num_rows = np.uint64(scores.shape[0])
    for position in range(query_terms.shape[0]):
        term = np.searchsorted(terms, query_terms[position])
        if term == terms.shape[0] or terms[term] != query_terms[position]:
            continue
        weight = query_weights[position]
        row = np.uint64(0)
        for posting in range(np.uint64(indptr[term]), np.uint64(indptr[term + 1])):
            row += np.uint64(gaps[posting])
            if row < num_rows:  # else the file was altered
                scores[row] += weight * weights[posting]


def _smallest(keys: Any, count: int) -> Any:
    """The ``count`` smallest keys, in any order; reorders all. Compiles in a fiftieth of numba's own partition."""
    first, last = 0, keys.shape[0] - 1
    while first < last:
        pivot = keys[(first + last) // 2]
        low, high = first, last
        while low <= high:
            while keys[low] < pivot:
                low += 1
            while keys[high] > pivot:
                high -= 1
            if low <= high:
                keys[low], keys[high] = keys[high], keys[low]
                low += 1
                high -= 1
        if count - 1 <= high:
            last = high
        elif count - 1 >= low:
            first = low
        else:
            break
    return keys[:count]


def _select(scores: Any, mask: Any, limit: int) -> Any:
    """The best ``limit`` rows above 0 and inside the mask, best first, ties by row, and their scores."""
    # The limit-th best of the blocks' maxima is a bound that so many rows reach. Floats that are not negative order as
    # their bits do, and maxima of integers compile to vector instructions. A candidate's key is its score's bits,
    # negated, and its row (below 2 ** 32): keys are unique, and ascend as ranks do.
    num_blocks = scores.shape[0] // BLOCK
    has_mask = mask.shape[0] > 0
    bits = scores.view(np.int32)
    maxima = np.empty(num_blocks, np.int32)
    for block in range(num_blocks):
        rows = bits[block * BLOCK : (block + 1) * BLOCK]
        best = np.int32(0)
        if has_mask:
            allowed = mask[block * BLOCK : (block + 1) * BLOCK]
            for row in range(BLOCK):
                best = max(best, rows[row] * allowed[row])
        else:
            for row in range(BLOCK):
                best = max(best, rows[row])
        maxima[block] = best
    bound = np.int64(1)  # the bits of the smallest float above 0
    if num_blocks > limit:
        bound = max(bound, -smallest(-maxima.astype(np.int64), limit).max())
    keys = np.empty(np.sum(maxima >= bound) * BLOCK, np.int64)
    count = 0
    for block in range(num_blocks):
        if maxima[block] >= bound:
            for row in range(block * BLOCK, (block + 1) * BLOCK):
                if bits[row] >= bound and (not has_mask or mask[row]):
                    keys[count] = -np.int64(bits[row]) << 32 | row
                    count += 1
    found = np.sort(smallest(keys[:count], min(count, limit))) & 0xFFFFFFFF
    return found, scores[found]


def _compiled(signature: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return numba.njit(signature, nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no directory where the machine code could be cached
        return numba.njit(signature, nogil=True)(function)  # type: ignore[no-any-return]


def _input(dtype: Any) -> Any:
    return types.Array(dtype, 1, "C", readonly=True)


_scores = types.Array(types.float32, 1, "C")
accumulate = _compiled(
    types.void(
        *map(_input, (types.int32, types.int64, types.uint16, types.float32, types.int32, types.float32)), _scores
    ),
    _accumulate,
)
smallest = _compiled(types.int64[::1](types.int64[::1], types.int64), _smallest)
_ranking = types.Tuple((types.int64[::1], types.float32[::1]))
select = _compiled(_ranking(_scores, _input(types.uint8), types.int64), _select)
