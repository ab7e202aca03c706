"""Sparse rows by hand and at random, and the naive way to make them from a dense matrix."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from st_keytokens.sparse_embeddings import SparseEmbeddings

WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0]) | st.floats(2.0**-20, 2.0**20, width=32)


@st.composite
def dense_matrices(draw, *, min_rows=0, rows=None, columns=None):
    """Non-negative float32 matrices with many zeros and many ties."""
    if rows is None:
        rows = draw(st.integers(min_rows, 6))
    shape = rows, draw(st.integers(1, 8)) if columns is None else columns
    return draw(st_numpy.arrays(np.float32, shape, elements=WEIGHTS))


def sparse_of(dense):
    """The naive way, row by row."""
    dicts = [{column: float(value) for column, value in enumerate(row) if value} for row in dense]
    return SparseEmbeddings.from_dicts(dicts, dense.shape[1])


def example():
    return SparseEmbeddings([0, 2, 2, 5], [1, 4, 0, 2, 3], [0.5, 2.0, 1.0, 3.0, 3.0], vocab_size=5)
