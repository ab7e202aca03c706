from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sparse_samples import example

from st_keytokens.sparse_embeddings import HybridEmbeddings


class TestHybridEmbeddings:
    def test_rows_go_together(self):
        dense = np.arange(6, dtype=np.float32).reshape(3, 2)
        hybrid = HybridEmbeddings(dense, example())
        assert len(hybrid) == 3
        for rows in (slice(1, 3), [2, 0], np.array([True, False, True]), -1):
            part = hybrid[rows]
            assert_array_equal(part.dense, np.atleast_2d(dense[rows]))
            assert part.sparse == example()[rows]

    def test_without_dense(self):
        part = HybridEmbeddings(None, example())[:2]
        assert part.dense is None
        assert part.sparse == example()[:2]

    def test_equality(self):
        dense = np.ones((3, 2), np.float32)
        assert HybridEmbeddings(dense, example()) == HybridEmbeddings(dense.copy(), example())
        assert HybridEmbeddings(dense, example()) != HybridEmbeddings(2 * dense, example())
        assert HybridEmbeddings(dense, example()) != HybridEmbeddings(None, example())
        assert HybridEmbeddings(None, example()) == HybridEmbeddings(None, example())
        assert HybridEmbeddings(None, example()) != "something else"

    def test_wrong_input(self):
        with pytest.raises(ValueError, match=r"dense must have shape \(3, dimension\), got \(2, 2\)"):
            HybridEmbeddings(np.ones((2, 2), np.float32), example())
        with pytest.raises(ValueError, match=r"dense must have shape \(3, dimension\), got \(3,\)"):
            HybridEmbeddings(np.ones(3, np.float32), example())
        with pytest.raises(TypeError, match="dense must be a numpy array of floats or None, got dtype int64"):
            HybridEmbeddings(np.ones((3, 2), np.int64), example())
        with pytest.raises(TypeError, match="dense must be a numpy array of floats or None, got list"):
            HybridEmbeddings([[1.0]], example())
        with pytest.raises(TypeError, match="sparse must be a SparseEmbeddings, got NoneType"):
            HybridEmbeddings(None, None)
