from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.testing import assert_array_equal
from sparse_samples import dense_matrices, example, sparse_of

from st_keytokens.sparse_embeddings import SparseEmbeddings


class TestConstruction:
    def test_dtypes_and_shape(self):
        sparse = example()
        assert (sparse.indptr.dtype, sparse.indices.dtype, sparse.values.dtype) == (np.int64, np.int32, np.float32)
        assert sparse.shape == (3, 5)
        assert sparse.nnz == 5
        assert len(sparse) == 3
        assert sparse.active_dims.dtype == np.int64
        assert sparse.active_dims.tolist() == [2, 0, 3]

    def test_right_dtypes_are_not_copied(self):
        indptr, indices = np.array([0, 2]), np.array([1, 4], dtype=np.int32)
        values = np.array([1, 2], dtype=np.float32)
        sparse = SparseEmbeddings(indptr, indices, values, 5)
        for mine, passed in ((sparse.indptr, indptr), (sparse.indices, indices), (sparse.values, values)):
            assert np.shares_memory(mine, passed)
            assert passed.flags.writeable

    def test_arrays_are_read_only(self):
        with pytest.raises(ValueError, match="read-only"):
            example().values[0] = -1

    def test_no_rows(self):
        sparse = SparseEmbeddings([0], [], [], 5)
        assert sparse.shape == (0, 5)
        assert sparse == SparseEmbeddings.empty(0, 5)

    def test_empty_rows_at_both_ends(self):
        assert SparseEmbeddings([0, 0, 1, 1], [2], [1.0], 3).to_dicts() == [{}, {2: 1.0}, {}]

    def test_repr(self):
        assert repr(example()) == "SparseEmbeddings(num_rows=3, vocab_size=5, nnz=5)"

    @pytest.mark.parametrize(
        "duplicate", [copy.copy, copy.deepcopy, lambda sparse: pickle.loads(pickle.dumps(sparse))]
    )
    def test_copy_and_pickle(self, duplicate):
        copied = duplicate(example())
        assert copied == example()
        assert not any(array.flags.writeable for array in (copied.indptr, copied.indices, copied.values))

    def test_trusted_arrays_are_taken_over(self):
        arrays = np.array([0, 2]), np.array([1, 4], dtype=np.int32), np.array([0.5, 2.0], dtype=np.float32)
        sparse = SparseEmbeddings.trusted(*arrays, 5)
        assert sparse.indptr is arrays[0]
        assert sparse.indices is arrays[1]
        assert sparse.values is arrays[2]
        assert not any(array.flags.writeable for array in arrays)
        assert sparse.to_dicts() == [{1: 0.5, 4: 2.0}]


class TestValidation:
    @pytest.mark.parametrize(
        ("indptr", "indices", "values", "message"),
        [
            ([], [], [], "indptr must go from 0 to the number of indices, 0, got an empty array"),
            ([1, 1], [0], [1.0], "indptr must go from 0 to the number of indices, 1, got 1 to 1"),
            ([0, 2], [0], [1.0], "indptr must go from 0 to the number of indices, 1, got 0 to 2"),
            ([0, 2, 1, 2], [0, 1], [1.0, 1.0], "indptr must not decrease, got 2 then 1 at row 1"),
            ([[0, 1]], [0], [1.0], r"indptr must have 1 dimension, got shape \(1, 2\)"),
            ([0, 1], [0], [1.0, 2.0], "values must be as many as indices, got 2 values for 1 indices"),
            ([0, 1], [-1], [1.0], r"indices must be in 0\.\.4 \(vocab_size 5\), got -1"),
            ([0, 1], [5], [1.0], r"indices must be in 0\.\.4 \(vocab_size 5\), got 5"),
            ([0, 1], [2**32], [1.0], r"indices must be in 0\.\.4 \(vocab_size 5\), got 4294967296"),
            ([0, 1, 3], [4, 3, 1], [1.0, 1.0, 1.0], "indices must increase in each row, got 3 before 1 in row 1"),
            ([0, 0, 2], [3, 3], [1.0, 1.0], "indices must be unique in each row, got 3 twice in row 1"),
            ([0, 2], [0, 1], [1.0, 0.0], r"values must be > 0, got 0\.0"),
            ([0, 2], [0, 1], [-2.0, 1.0], r"values must be > 0, got -2\.0"),
            ([0, 2], [0, 1], [1.0, np.nan], "values must be finite in float32, got nan at position 1"),
            ([0, 1], [0], [np.inf], "values must be finite in float32, got inf at position 0"),
            ([0, 1], [0], [1e300], r"values must be finite in float32, got 1e\+300 at position 0"),
            ([0, 1], [0], [1e-300], r"values must be > 0, got 0\.0"),
        ],
    )
    def test_wrong_values(self, indptr, indices, values, message):
        with pytest.raises(ValueError, match=message):
            SparseEmbeddings(indptr, indices, values, 5)

    @pytest.mark.parametrize(
        ("indptr", "indices", "values", "message"),
        [
            ([0.0, 1.0], [0], [1.0], "indptr must be integers, got dtype float64"),
            ([0, 1], [0.5], [1.0], "indices must be integers, got dtype float64"),
            ([0, 1], [True], [1.0], "indices must be integers, got dtype bool"),
            ([0, 1], [0], ["a"], "values must be numbers, got dtype <U1"),
            ([0, 1], [0], [1j], "values must be numbers, got dtype complex128"),
        ],
    )
    def test_wrong_types(self, indptr, indices, values, message):
        with pytest.raises(TypeError, match=message):
            SparseEmbeddings(indptr, indices, values, 5)

    def test_wrong_vocab_size(self):
        with pytest.raises(ValueError, match="vocab_size must be between 1 and 2147483647, got 0"):
            SparseEmbeddings([0], [], [], 0)
        with pytest.raises(ValueError, match="vocab_size must be between 1 and 2147483647, got 2147483648"):
            SparseEmbeddings([0], [], [], 2**31)
        with pytest.raises(TypeError, match="vocab_size must be an integer, got float"):
            SparseEmbeddings([0], [], [], 5.0)
        with pytest.raises(TypeError, match="vocab_size must be an integer, got bool"):
            SparseEmbeddings([0], [], [], True)

    def test_falling_ids_across_a_row_boundary_are_right(self):
        assert SparseEmbeddings([0, 1, 1, 2], [4, 4], [1.0, 1.0], 5).nnz == 2


class TestWithValues:
    def test_keeps_terms_and_checks_weights(self):
        rows = SparseEmbeddings.from_dicts([{1: 1.0}, {0: 2.0, 3: 3.0}], 4)
        assert rows.with_values([5.0, 6.0, 7.0]).to_dicts() == [{1: 5.0}, {0: 6.0, 3: 7.0}]
        assert rows.to_dicts() == [{1: 1.0}, {0: 2.0, 3: 3.0}]
        with pytest.raises(ValueError, match=r"values must be 3, one for each term, got 2"):
            rows.with_values([1.0, 2.0])
        with pytest.raises(ValueError, match=r"values must be > 0, got 0\.0"):
            rows.with_values([1.0, 0.0, 2.0])
        with pytest.raises(ValueError, match=r"values must be finite in float32, got nan at position 1"):
            rows.with_values([1.0, np.nan, 0.0])
        with pytest.raises(TypeError, match=r"values must be numbers, got dtype <U1"):
            rows.with_values(["a", "b", "c"])

    def test_the_callers_array_stays_writeable(self):
        weights = np.array([3.0], np.float32)
        changed = SparseEmbeddings.from_dicts([{1: 1.0}], 4).with_values(weights)
        assert weights.flags.writeable
        assert not changed.values.flags.writeable


class TestRows:
    @given(dense_matrices(min_rows=1), st.data())
    def test_indexing_equals_dense_indexing(self, dense, data):
        sparse = sparse_of(dense)
        index = data.draw(
            st.slices(len(dense))
            | st.lists(st.integers(-len(dense), len(dense) - 1))
            | st_numpy.arrays(bool, len(dense))
            | st.integers(-len(dense), len(dense) - 1)
        )
        assert_array_equal(sparse[index].to_scipy().toarray(), np.atleast_2d(dense[index]))

    @pytest.mark.parametrize("rows", [slice(1, None), -1, np.int64(0)])
    def test_slices_and_single_rows_are_views(self, rows):
        sparse = example()
        assert np.shares_memory(sparse[rows].values, sparse.values)

    @pytest.mark.parametrize("rows", [slice(2, 1), slice(9, 12), [], np.zeros(3, bool)])
    def test_no_rows(self, rows):
        assert example()[rows] == SparseEmbeddings.empty(0, 5)

    def test_row_and_iteration(self):
        sparse = example()
        assert [indices.tolist() for indices, _ in sparse] == [[1, 4], [], [0, 2, 3]]
        assert [values.tolist() for _, values in sparse] == [[0.5, 2.0], [], [1.0, 3.0, 3.0]]
        assert sparse.row(-1)[0].tolist() == [0, 2, 3]
        assert np.shares_memory(sparse.row(0)[1], sparse.values)

    def test_wrong_rows(self):
        with pytest.raises(IndexError, match=r"row must be in -3\.\.2, got 3"):
            example().row(3)
        with pytest.raises(IndexError, match=r"row must be in -3\.\.2, got -4"):
            example()[-4]
        with pytest.raises(IndexError, match="index 7 is out of bounds"):
            example()[[0, 7]]
        with pytest.raises(IndexError, match="boolean index did not match"):
            example()[np.ones(2, bool)]
        with pytest.raises(IndexError, match="integer"):
            example()[[0.5]]
        with pytest.raises(IndexError, match="rows must be a number, a slice or a one-dimensional array"):
            example()[np.zeros((2, 2), int)]


class TestEquality:
    def test_equal_only_in_everything(self):
        assert example() == example()
        assert example() != example()[[0, 2, 1]]
        assert example() != SparseEmbeddings(example().indptr, example().indices, example().values, vocab_size=6)
        assert example() != SparseEmbeddings(example().indptr, example().indices, example().values * 2, vocab_size=5)
        assert example() != "something else"

    def test_is_not_hashable(self):
        with pytest.raises(TypeError, match="unhashable"):
            hash(example())


class TestConcatenate:
    @given(st.lists(dense_matrices(columns=4), min_size=1, max_size=4))
    def test_equals_dense(self, parts):
        together = SparseEmbeddings.concatenate([sparse_of(part) for part in parts])
        assert together == sparse_of(np.concatenate(parts))

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="parts must hold at least one SparseEmbeddings, got none"):
            SparseEmbeddings.concatenate([])
        with pytest.raises(ValueError, match="must have one vocab_size, got 5 and 6"):
            SparseEmbeddings.concatenate([example(), SparseEmbeddings.empty(1, 6)])
        with pytest.raises(TypeError, match="must be a SparseEmbeddings, got dict"):
            SparseEmbeddings.concatenate([example(), {}])
