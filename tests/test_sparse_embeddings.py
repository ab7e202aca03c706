from __future__ import annotations

import copy
import pickle
import time

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.testing import assert_allclose, assert_array_equal

from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.vocabulary import Vocabulary

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

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda sparse: pickle.loads(pickle.dumps(sparse))])
    def test_copy_and_pickle(self, duplicate):
        assert duplicate(example()) == example()


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
        with pytest.raises(ValueError, match="vocab_size must be >= 1 and <= 2147483647, got 0"):
            SparseEmbeddings([0], [], [], 0)
        with pytest.raises(ValueError, match="vocab_size must be >= 1 and <= 2147483647, got 2147483648"):
            SparseEmbeddings([0], [], [], 2**31)
        with pytest.raises(TypeError, match="vocab_size must be an integer, got float"):
            SparseEmbeddings([0], [], [], 5.0)
        with pytest.raises(TypeError, match="vocab_size must be an integer, got bool"):
            SparseEmbeddings([0], [], [], True)

    def test_falling_ids_across_a_row_boundary_are_right(self):
        assert SparseEmbeddings([0, 1, 1, 2], [4, 4], [1.0, 1.0], 5).nnz == 2


class TestFromPairs:
    def test_sorts_and_drops_padding(self):
        ids = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [2, -7, 99, 0]])
        weights = np.array([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, -1.0, 4.0]])
        kept = ids.copy(), weights.copy()
        sparse = SparseEmbeddings.from_pairs(ids, weights, 5)
        assert sparse.to_dicts() == [{1: 2.0, 3: 1.0}, {}, {0: 4.0, 2: 1.0}]
        assert list(sparse.to_dicts()[2]) == [0, 2]
        assert_array_equal(ids, kept[0])
        assert_array_equal(weights, kept[1])

    def test_no_pairs(self):
        assert SparseEmbeddings.from_pairs(np.zeros((3, 0), int), np.zeros((3, 0)), 5) == SparseEmbeddings.empty(3, 5)
        assert SparseEmbeddings.from_pairs(np.zeros((0, 4), int), np.zeros((0, 4)), 5) == SparseEmbeddings.empty(0, 5)

    @given(dense_matrices(), st.randoms(use_true_random=False))
    def test_any_order_gives_the_same(self, dense, random):
        columns = list(range(dense.shape[1]))
        random.shuffle(columns)
        ids = np.tile(columns, (len(dense), 1))
        assert SparseEmbeddings.from_pairs(ids, dense[:, columns], dense.shape[1]) == sparse_of(dense)

    def test_largest_id(self):
        sparse = SparseEmbeddings.from_pairs([[2**31 - 2, 5]], [[1.0, 3e38]], 2**31 - 1)
        assert sparse.indices.tolist() == [5, 2**31 - 2]
        assert_allclose(sparse.values, [3e38, 1.0])

    @pytest.mark.parametrize(
        ("ids", "weights", "message"),
        [
            ([[1, 2]], [[1.0]], r"weights must have the shape of ids, \(1, 2\), got \(1, 1\)"),
            ([1, 2], [1.0, 2.0], r"ids must have 2 dimensions, got shape \(2,\)"),
            ([[1, -1]], [[1.0, 1.0]], r"ids must be in 0\.\.4 \(vocab_size 5\), got -1"),
            ([[1, 5]], [[1.0, 1.0]], r"ids must be in 0\.\.4 \(vocab_size 5\), got 5"),
            ([[0, 1], [3, 3]], [[1.0, 1.0], [1.0, 2.0]], "ids must be unique in each row, got 3 twice in row 1"),
            ([[3, 1, 3]], [[1.0, 1.0, 1.0]], "ids must be unique in each row, got 3 twice in row 0"),
            ([[1, 2]], [[1.0, np.nan]], "weights must be finite in float32, got nan at position 1"),
            ([[1, 2]], [[-np.inf, 1.0]], "weights must be finite in float32, got -inf at position 0"),
        ],
    )
    def test_wrong_values(self, ids, weights, message):
        with pytest.raises(ValueError, match=message):
            SparseEmbeddings.from_pairs(ids, weights, 5)

    def test_wrong_types(self):
        with pytest.raises(TypeError, match="ids must be integers, got dtype float64"):
            SparseEmbeddings.from_pairs([[1.5]], [[1.0]], 5)
        with pytest.raises(TypeError, match="weights must be numbers, got dtype bool"):
            SparseEmbeddings.from_pairs([[1]], [[True]], 5)

    @pytest.mark.slow
    @pytest.mark.parametrize("is_sorted", [True, False])
    def test_speed(self, is_sorted):
        generator = np.random.default_rng(0)
        ids = np.sort(generator.integers(0, 151_680, (100_000, 256)), axis=1) + np.arange(256)
        if not is_sorted:
            ids = ids[:, generator.permutation(256)]
        weights = generator.random(ids.shape, dtype=np.float32) + 0.01
        start = time.perf_counter()
        sparse = SparseEmbeddings.from_pairs(ids, weights, 151_936)
        assert time.perf_counter() - start < 2
        assert sparse.nnz == ids.size


class TestConversions:
    @given(dense_matrices())
    def test_round_trips(self, dense):
        sparse = sparse_of(dense)
        assert_array_equal(sparse.to_scipy().toarray(), dense)
        assert_array_equal(sparse.to_torch().to_dense().numpy(), dense)
        assert SparseEmbeddings.from_scipy(sparse.to_scipy()) == sparse
        assert SparseEmbeddings.from_torch(sparse.to_torch()) == sparse
        assert SparseEmbeddings.from_torch(torch.from_numpy(dense)) == sparse
        assert SparseEmbeddings.from_dicts(sparse.to_dicts(), sparse.vocab_size) == sparse
        assert SparseEmbeddings(sparse.indptr, sparse.indices, sparse.values, sparse.vocab_size) == sparse

    @pytest.mark.parametrize("layout", ["csr", "csc", "coo", "lil", "dok", "bsr"])
    @pytest.mark.parametrize("family", ["matrix", "array"])
    def test_scipy_formats(self, layout, family):
        matrix = getattr(scipy.sparse, f"{layout}_{family}")(example().to_scipy().toarray())
        assert SparseEmbeddings.from_scipy(matrix) == example()

    def test_scipy_duplicates_are_summed_and_the_input_is_kept(self):
        matrix = scipy.sparse.csr_matrix(([1.0, 2.0, 4.0, 0.0], [3, 1, 3, 0], [0, 4]), shape=(1, 5))
        assert SparseEmbeddings.from_scipy(matrix).to_dicts() == [{1: 2.0, 3: 5.0}]
        assert matrix.indices.tolist() == [3, 1, 3, 0]
        assert matrix.data.tolist() == [1.0, 2.0, 4.0, 0.0]

    def test_scipy_copy_may_be_changed(self):
        sparse = example()
        sparse.to_scipy().data[:] = 9
        assert sparse == example()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_torch_dtypes(self, dtype):
        dense = example().to_torch().to_dense().to(dtype)
        assert SparseEmbeddings.from_torch(dense) == example()
        assert SparseEmbeddings.from_torch(dense.to_sparse()) == example()

    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
    def test_torch_csr(self):
        assert SparseEmbeddings.from_torch(example().to_torch().to_sparse_csr()) == example()

    def test_torch_uncoalesced_from_inference_mode_and_with_gradient(self):
        places, values = torch.tensor([[0, 0, 1], [3, 3, 0]]), torch.tensor([1.0, 2.0, 4.0])
        with torch.inference_mode():
            tensor = torch.sparse_coo_tensor(places, values, (2, 5), check_invariants=True)
        assert SparseEmbeddings.from_torch(tensor).to_dicts() == [{3: 3.0}, {0: 4.0}]
        assert SparseEmbeddings.from_torch(torch.ones(1, 2, requires_grad=True)).to_dicts() == [{0: 1.0, 1: 1.0}]

    def test_to_torch_is_coalesced(self):
        tensor = example().to_torch()
        assert tensor.is_coalesced()
        assert tensor.dtype == torch.float32
        assert tensor.indices().tolist() == [[0, 0, 2, 2, 2], [1, 4, 0, 2, 3]]

    def test_to_dicts_holds_plain_numbers(self):
        ((key, value),) = SparseEmbeddings([0, 1], [1], [0.5], 5).to_dicts()[0].items()
        assert type(key) is int
        assert type(value) is float

    def test_from_dicts_of_nothing(self):
        assert SparseEmbeddings.from_dicts([], 5) == SparseEmbeddings.empty(0, 5)
        assert SparseEmbeddings.from_dicts([{}, {}], 5) == SparseEmbeddings.empty(2, 5)

    def test_zeros_are_left_out(self):
        assert SparseEmbeddings.from_dicts([{1: 0.0, 2: 1.0}], 5).to_dicts() == [{2: 1.0}]

    def test_wrong_input(self):
        with pytest.raises(TypeError, match="matrix must be a scipy sparse matrix, got ndarray"):
            SparseEmbeddings.from_scipy(np.eye(2))
        with pytest.raises(ValueError, match=r"values must be > 0, got -1\.0"):
            SparseEmbeddings.from_scipy(scipy.sparse.csr_matrix([[-1.0, 2.0]]))
        with pytest.raises(ValueError, match="values must be finite in float32, got nan"):
            SparseEmbeddings.from_scipy(scipy.sparse.csr_matrix([[np.nan]]))
        with pytest.raises(TypeError, match=r"tensor must be a torch\.Tensor, got ndarray"):
            SparseEmbeddings.from_torch(np.eye(2))
        with pytest.raises(ValueError, match=r"tensor must be two-dimensional, got shape \(3,\)\. Use unsqueeze\(0\)"):
            SparseEmbeddings.from_torch(torch.ones(3))
        with pytest.raises(ValueError, match=r"values must be > 0, got -1\.0"):
            SparseEmbeddings.from_torch(torch.tensor([[-1.0]]))
        with pytest.raises(ValueError, match="values must be finite in float32, got inf"):
            SparseEmbeddings.from_torch(torch.tensor([[0.0, torch.inf]]))
        with pytest.raises(TypeError, match="ids must be integers, got dtype <U1"):
            SparseEmbeddings.from_dicts([{"a": 1.0}], 5)
        with pytest.raises(TypeError, match="ids must be integers, got dtype float64"):
            SparseEmbeddings.from_dicts([{1.5: 1.0}], 5)
        with pytest.raises(ValueError, match=r"ids must be in 0\.\.4 \(vocab_size 5\), got 5"):
            SparseEmbeddings.from_dicts([{5: 1.0}], 5)
        with pytest.raises(ValueError, match=r"values must be > 0, got -1\.0"):
            SparseEmbeddings.from_dicts([{1: -1.0}], 5)
        with pytest.raises(TypeError, match="weights must be numbers, got dtype object"):
            SparseEmbeddings.from_dicts([{1: None}], 5)
        with pytest.raises(ValueError, match="num_rows must be >= 0, got -1"):
            SparseEmbeddings.empty(-1, 5)


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

    def test_slices_are_views(self):
        sparse = example()
        assert np.shares_memory(sparse[1:].values, sparse.values)

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
        with pytest.raises(IndexError, match="index 3 is out of bounds"):
            example()[3]
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


class TestPrune:
    @given(dense_matrices(), st.integers(1, 9))
    def test_keeps_the_k_largest(self, dense, k):
        expected = np.zeros_like(dense)
        for row, values in enumerate(dense):
            best = sorted(np.flatnonzero(values), key=lambda column: (-values[column], column))[:k]
            expected[row, best] = values[best]
        assert sparse_of(dense).prune(k) == sparse_of(expected)

    def test_ties_keep_the_smaller_ids(self):
        sparse = SparseEmbeddings.from_dicts([{0: 1.0, 1: 2.0, 2: 1.0, 3: 1.0}, {4: 1.0}], 5)
        assert sparse.prune(2).to_dicts() == [{0: 1.0, 1: 2.0}, {4: 1.0}]

    def test_smallest_and_largest_float(self):
        smallest, largest = np.float32(1e-45), np.finfo(np.float32).max
        sparse = SparseEmbeddings([0, 3], [0, 1, 2], np.array([smallest, largest, 1], np.float32), 3)
        assert sparse.prune(2).indices.tolist() == [1, 2]

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="max_active_dims must be >= 1, got 0"):
            example().prune(0)
        with pytest.raises(TypeError, match="max_active_dims must be an integer, got float"):
            example().prune(2.0)


class TestAdd:
    @given(st.data(), st.sampled_from([0.0, 0.25, 1.0, 3.0]), st.sampled_from([0.0, 0.5, 1.0]))
    def test_equals_the_sum_of_scipy(self, data, weight, other_weight):
        first = data.draw(dense_matrices())
        second = data.draw(dense_matrices(rows=len(first), columns=first.shape[1]))
        total = sparse_of(first).add(sparse_of(second), weight=weight, other_weight=other_weight)
        expected = scipy.sparse.csr_matrix(first) * np.float32(weight)
        expected = expected + scipy.sparse.csr_matrix(second) * np.float32(other_weight)
        assert_array_equal(total.to_scipy().toarray(), expected.toarray())
        assert total.values.dtype == np.float32

    def test_by_hand(self):
        first, second = (
            SparseEmbeddings.from_dicts([{1: 1.0, 2: 2.0}], 5),
            SparseEmbeddings.from_dicts([{0: 4.0, 2: 1.0}], 5),
        )
        assert first.add(second, weight=2.0, other_weight=0.5).to_dicts() == [{0: 2.0, 1: 2.0, 2: 4.5}]
        assert first.to_dicts() == [{1: 1.0, 2: 2.0}]
        assert second.to_dicts() == [{0: 4.0, 2: 1.0}]

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="other must have 3 rows, got 1"):
            example().add(SparseEmbeddings.empty(1, 5))
        with pytest.raises(ValueError, match="must have one vocab_size, got 5 and 6"):
            example().add(SparseEmbeddings.empty(3, 6))
        with pytest.raises(ValueError, match=r"^weight must be finite and >= 0, got -1\.0"):
            example().add(example(), weight=-1.0)
        with pytest.raises(ValueError, match="other_weight must be finite and >= 0, got nan"):
            example().add(example(), other_weight=float("nan"))
        with pytest.raises(ValueError, match="values must be finite in float32, got inf"):
            example().add(example(), weight=3e38)


class TestScores:
    @given(st.data())
    @settings(max_examples=50)
    def test_equals_the_product_of_scipy_and_numpy(self, data):
        first = data.draw(dense_matrices())
        second = data.draw(dense_matrices(columns=first.shape[1]))
        scores = sparse_of(first).scores(sparse_of(second))
        expected = scipy.sparse.csr_matrix(first) @ scipy.sparse.csr_matrix(second).T
        assert scores.dtype == np.float32
        assert scores.shape == (len(first), len(second))
        assert_array_equal(scores, expected.toarray())
        assert_allclose(scores, first.astype(float) @ second.T.astype(float), rtol=1e-5)

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="must have one vocab_size, got 5 and 6"):
            example().scores(SparseEmbeddings.empty(1, 6))
        with pytest.raises(TypeError, match="must be a SparseEmbeddings, got ndarray"):
            example().scores(np.eye(5))


class TestDecode:
    vocabulary = Vocabulary(["a", "Ġb", "c", "d", "e"], kind="byte-level")

    def test_heaviest_first_and_ties_by_id(self):
        assert example().decode(self.vocabulary) == [
            [("e", 2.0), ("b", 0.5)],
            [],
            [("c", 3.0), ("d", 3.0), ("a", 1.0)],
        ]

    def test_top_k(self):
        assert example().decode(self.vocabulary, top_k=1) == [[("e", 2.0)], [], [("c", 3.0)]]

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="vocabulary must have vocab_size 6, got 5"):
            SparseEmbeddings.empty(1, 6).decode(self.vocabulary)
        with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
            example().decode(self.vocabulary, top_k=0)


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


class TestWithValues:
    def test_keeps_terms_and_checks_weights(self):
        rows = SparseEmbeddings.from_dicts([{1: 1.0}, {0: 2.0, 3: 3.0}], 4)
        assert rows.with_values([5.0, 6.0, 7.0]).to_dicts() == [{1: 5.0}, {0: 6.0, 3: 7.0}]
        assert rows.to_dicts() == [{1: 1.0}, {0: 2.0, 3: 3.0}]
        with pytest.raises(ValueError, match=r"values must be 3, one for each term, got 2"):
            rows.with_values([1.0, 2.0])
        with pytest.raises(ValueError, match=r"values must be > 0, got 0\.0"):
            rows.with_values([1.0, 0.0, 2.0])
