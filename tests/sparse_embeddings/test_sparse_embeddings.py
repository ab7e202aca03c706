from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sparse_samples import dense_matrices, example, sparse_of

from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.terms.vocabulary import Vocabulary


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

    def test_rows_in_different_orders(self):
        generator = np.random.default_rng(0)
        ids = np.stack([generator.permutation(50)[:20] for _ in range(30)])
        weights = generator.random((30, 20), dtype=np.float32) + 0.5
        expected = [dict(sorted(zip(*row, strict=True))) for row in zip(ids.tolist(), weights.tolist(), strict=True)]
        assert SparseEmbeddings.from_pairs(ids, weights, 50).to_dicts() == expected

    def test_largest_id(self):
        sparse = SparseEmbeddings.from_pairs([[2**31 - 2, 5]], [[1.0, 2.0**48]], 2**31 - 1)
        assert sparse.indices.tolist() == [5, 2**31 - 2]
        assert_allclose(sparse.values, [2.0**48, 1.0])

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
        with pytest.raises(TypeError, match="num_rows must be an integer, got float"):
            SparseEmbeddings.empty(1.0, 5)


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
        with pytest.raises(TypeError, match=r"top_k must be an integer, got float 2\.0"):
            example().decode(self.vocabulary, top_k=2.0)


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
        smallest, largest = np.float32(1e-45), np.float32(2.0**48)
        sparse = SparseEmbeddings([0, 3], [0, 1, 2], np.array([smallest, largest, 1], np.float32), 3)
        assert sparse.prune(2).indices.tolist() == [1, 2]

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="max_active_dims must be >= 1, got 0"):
            example().prune(0)
        with pytest.raises(TypeError, match="max_active_dims must be an integer, got float"):
            example().prune(2.0)

    def test_may_rank_by_something_else(self):
        sparse = SparseEmbeddings.from_dicts([{0: 1.0, 1: 2.0, 2: 3.0}, {4: 1.0}], 5)
        assert sparse.prune(2, by=[0.5, 4.0, -0.0, 0.0]).to_dicts() == [{0: 1.0, 1: 2.0}, {4: 1.0}]

    @pytest.mark.parametrize("by", [[1.0], [1.0, -1.0, 1.0, 1.0], [1.0, np.nan, 1.0, 1.0], np.ones((4, 1))])
    def test_what_it_ranks_by_is_checked(self, by):
        with pytest.raises(ValueError, match="by must be 4 finite numbers, none negative"):
            SparseEmbeddings.from_dicts([{0: 1.0, 1: 2.0, 2: 3.0}, {4: 1.0}], 5).prune(2, by=by)


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
        with pytest.raises(TypeError, match="other_weight must be a number, got str '2'"):
            example().add(example(), other_weight="2")
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
