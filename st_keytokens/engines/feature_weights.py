"""Weights as Lucene's feature fields keep them: nine significant bits of a float32.

Elasticsearch's ``sparse_vector`` and OpenSearch's ``rank_features`` are such fields. They cut off what is beyond the
ninth bit, which would make every weight up to 2^-8 too small; rounding to nine bits before halves the error, and
leaves the engine nothing to cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RELATIVE_ERROR", "feature_weights"]

RELATIVE_ERROR = 2.0**-9
_CUT_BITS = 15
_SMALLEST, _LARGEST = 0x0080_0000, 0x7F7F_8000  # the bits of the smallest normal float32, and of the largest kept one


def feature_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round weights to what a feature field keeps exactly.

    Args:
        weights: Positive and finite, any shape.

    Returns:
        Weights of the same shape, each within ``RELATIVE_ERROR`` of its original, and so is any sum of their products
        with query weights. Weights below 2^-126, which no such field takes, become 2^-126; those above the largest
        that nine bits hold become that one.

    Source:
        Lucene, ``org.apache.lucene.document.FeatureField``: the float's bits, shifted right by 15, are the term
        frequency.

    >>> feature_weights(np.array([1.0, 1.0 + 2.0**-8, 1.0 + 2.0**-9, 0.3], np.float32)).tolist()
    [1.0, 1.00390625, 1.0, 0.2998046875]
    """
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    is_odd = bits >> _CUT_BITS & 1  # a weight in the middle goes to the even neighbour
    rounded = bits + (1 << _CUT_BITS - 1) - 1 + is_odd >> _CUT_BITS << _CUT_BITS
    kept: NDArray[np.uint32] = np.clip(rounded, _SMALLEST, _LARGEST).astype(np.uint32)
    return kept.view(np.float32)
