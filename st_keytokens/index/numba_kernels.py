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

from st_keytokens.index.kernels import BLOCK

__all__ = ["accumulate", "candidates"]


def _accumulate(
    terms: Any, indptr: Any, documents: Any, weights: Any, query_terms: Any, query_weights: Any, scores: Any
) -> None:
    """Add the products of one query with one segment's postings to ``scores``, in ascending order of terms.

    A row beyond the segment, which only an altered file can hold, is passed over.
    """
    num_rows = np.uint32(scores.shape[0])
    for position in range(query_terms.shape[0]):
        term = np.searchsorted(terms, query_terms[position])
        if term == terms.shape[0] or terms[term] != query_terms[position]:
            continue
        weight = query_weights[position]
        for posting in range(np.uint64(indptr[term]), np.uint64(indptr[term + 1])):
            row = np.uint32(documents[posting])
            if row < num_rows:
                scores[row] += weight * weights[posting]


def _candidates(scores: Any, mask: Any, limit: int) -> Any:
    """Rows that may be among the best ``limit``: those above 0 and at or above a bound that so many rows reach.

    Rows outside the mask are left out. The bound is the ``limit``-th best of the blocks' maxima. Floats that are not
    negative order as their bits do, and maxima of integers compile to vector instructions.
    """
    num_blocks = scores.shape[0] // BLOCK
    has_mask = mask.shape[0] > 0
    bits = scores.view(np.int32)
    maxima = np.empty(num_blocks, np.float32)
    maxima_bits = maxima.view(np.int32)
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
        maxima_bits[block] = best
    bound = np.int32(1)  # the bits of the smallest float above 0
    if num_blocks > limit:
        bound = max(bound, np.partition(maxima, num_blocks - limit).view(np.int32)[num_blocks - limit])
    found = np.empty(np.sum(maxima_bits >= bound) * BLOCK, np.int64)
    count = 0
    for block in range(num_blocks):
        if maxima_bits[block] >= bound:
            for row in range(block * BLOCK, (block + 1) * BLOCK):
                if bits[row] >= bound and (not has_mask or mask[row]):
                    found[count] = row
                    count += 1
    return found[:count]


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
        *map(_input, (types.int32, types.int64, types.int32, types.float32, types.int32, types.float32)), _scores
    ),
    _accumulate,
)
candidates = _compiled(types.int64[::1](_scores, _input(types.uint8), types.int64), _candidates)
