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

__all__ = ["accumulate", "search", "select"]


def _place(terms: Any, term: Any) -> Any:
    """Where a term is among ascending ones, or the next larger one.

    Ids are spread evenly, as those of tokens or of hashes are, so it is near its share of the range.
    """
    last = terms.shape[0] - 1
    if last < 0 or term <= terms[0]:
        return 0
    if term > terms[last]:
        return last + 1
    high, step = last, 8  # term <= terms[high]
    guess = int(last * ((term - terms[0]) / (terms[last] - terms[0])))
    while terms[guess] >= term:  # as the first is smaller, this ends
        high = guess
        guess = max(guess - step, 0)
        step *= 4
    low = guess  # terms[low] < term
    while low + step < high:
        if terms[low + step] >= term:
            high = low + step
            break
        low += step
        step *= 4
    while high - low > 1:
        middle = (low + high) // 2
        if terms[middle] < term:
            low = middle
        else:
            high = middle
    return high


def _accumulate(
    terms: Any, indptr: Any, gaps: Any, weights: Any, query_terms: Any, query_weights: Any, scores: Any
) -> None:
    """Add the products of one query with one segment's postings to ``scores``, in ascending order of terms."""
    num_rows = np.uint64(scores.shape[0])
    size = query_terms.shape[0]
    # The first postings of all terms are read before any is used, so that the waits for memory overlap.
    bounds = np.zeros((size, 2), np.uint64)
    first_rows, first_weights = np.empty(size, np.uint16), np.empty(size, np.float32)
    for position in range(size):
        term = place(terms, query_terms[position])
        if term < terms.shape[0] and terms[term] == query_terms[position]:
            start, stop = np.uint64(indptr[term]), np.uint64(indptr[term + 1])
            if start < stop:
                bounds[position, 0], bounds[position, 1] = start, stop
                first_rows[position], first_weights[position] = gaps[start], weights[start]
    for position in range(size):
        start, stop = bounds[position, 0], bounds[position, 1]
        if start == stop:
            continue
        weight = query_weights[position]
        row = np.uint64(first_rows[position])
        if row < num_rows:
            scores[row] += weight * first_weights[position]
        for posting in range(start + np.uint64(1), stop):
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


def _bound(values: Any, count: int) -> Any:
    """The ``count``-th largest of non-negative values: the root of a heap of the largest ones so far."""
    heap = np.zeros(count, np.int32)
    for value in values:
        if value > heap[0]:
            place, child = 0, 1
            while child < count:
                if child + 1 < count and heap[child + 1] < heap[child]:
                    child += 1
                if heap[child] >= value:
                    break
                heap[place] = heap[child]
                place, child = child, 2 * child + 1
            heap[place] = value
    return heap[0]


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
    least = np.int32(1)  # the bits of the smallest float above 0
    if num_blocks > limit:
        least = max(least, bound(maxima, limit))
    keys = np.empty(np.sum(maxima >= least) * BLOCK, np.int64)
    count = 0
    for block in range(num_blocks):
        if maxima[block] >= least:
            for row in range(block * BLOCK, (block + 1) * BLOCK):
                if bits[row] >= least and (not has_mask or mask[row]):
                    keys[count] = -np.int64(bits[row]) << 32 | row
                    count += 1
    found = np.sort(smallest(keys[:count], min(count, limit))) & 0xFFFFFFFF
    return found, scores[found]


def _search(
    terms: Any,
    indptr: Any,
    gaps: Any,
    weights: Any,
    query_terms: Any,
    query_weights: Any,
    scores: Any,
    num_rows: int,
    mask: Any,
    limit: int,
) -> Any:
    """The best rows of a single segment: one call, as several would take a tenth of a search of a small index."""
    scores[:] = 0
    accumulate(terms, indptr, gaps, weights, query_terms, query_weights, scores[:num_rows])
    return select(scores, mask, limit)


def _compiled(signature: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return numba.njit(signature, nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no directory where the machine code could be cached
        return numba.njit(signature, nogil=True)(function)  # type: ignore[no-any-return]


def _input(dtype: Any) -> Any:
    return types.Array(dtype, 1, "C", readonly=True)


place = _compiled(types.int64(_input(types.int32), types.int32), _place)
_scores = types.Array(types.float32, 1, "C")
accumulate = _compiled(
    types.void(
        *map(_input, (types.int32, types.int64, types.uint16, types.float32, types.int32, types.float32)), _scores
    ),
    _accumulate,
)
smallest = _compiled(types.int64[::1](types.int64[::1], types.int64), _smallest)
bound = _compiled(types.int32(types.int32[::1], types.int64), _bound)
_ranking = types.Tuple((types.int64[::1], types.float32[::1]))
select = _compiled(_ranking(_scores, _input(types.uint8), types.int64), _select)
search = _compiled(
    _ranking(
        *map(_input, (types.int32, types.int64, types.uint16, types.float32, types.int32, types.float32)),
        _scores,
        types.int64,
        _input(types.uint8),
        types.int64,
    ),
    _search,
)
