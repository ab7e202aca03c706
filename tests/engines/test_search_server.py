"""Weights with nine significant bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from st_keytokens.engines.search_server import RELATIVE_ERROR, feature_weights

TINY = float(np.finfo(np.float32).tiny)


@given(st.lists(st.floats(TINY, 2.0**127, width=32), min_size=1))
def test_a_weight_changes_by_the_stated_error_and_has_nothing_to_cut(values):
    weights = np.array(values, np.float32)
    rounded = feature_weights(weights)
    assert np.all(np.abs(rounded.astype(np.float64) - weights) <= RELATIVE_ERROR * weights.astype(np.float64))
    assert np.all(rounded.view(np.uint32) & 0x7FFF == 0)
    assert np.array_equal(feature_weights(rounded), rounded)


def test_three_weights():
    halfway = [1 + 2.0**-9, 1 + 3 * 2.0**-9]  # between 1, 1 + 2^-8 and 1 + 2^-7: to the even neighbours
    assert feature_weights(np.array([*halfway, 3.0], np.float32)).tolist() == [1.0, 1 + 2.0**-7, 3.0]


def test_weights_that_no_field_takes():
    largest = float(np.finfo(np.float32).max)
    found = feature_weights(np.array([1e-45, TINY, largest], np.float32))
    assert found.tolist() == [TINY, TINY, (2 - 2.0**-8) * 2.0**127]
    assert feature_weights(np.array([], np.float32)).tolist() == []
