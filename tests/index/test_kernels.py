from __future__ import annotations

import itertools
import sys

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import sparse_rows

import st_keytokens.index
from st_keytokens.index import numba_kernels
from st_keytokens.index.kernels import BLOCK, best_rows, padded, sparse_kernel
from st_keytokens.index.segments import Postings

NAMES = ["numba", "torch", "scipy"]


def expected(documents, query, limit, mask=None):
    """Brute force in float32, in the order of terms."""
    terms, weights = query
    scores = np.zeros(len(documents), np.float32)
    for row, (row_terms, row_weights) in enumerate(documents):
        held = dict(zip(row_terms.tolist(), row_weights, strict=True))
        for term, weight in zip(terms.tolist(), weights, strict=True):
            scores[row] += weight * held.get(term, np.float32(0))
    rows = [row for row in range(len(documents)) if scores[row] > 0 and (mask is None or mask[row])]
    rows.sort(key=lambda row: (-scores[row], row))
    return rows[:limit], scores[rows[:limit]].tolist()


def search(name, documents, query, limit, mask=None, pieces=1):
    cuts = np.linspace(0, len(documents), pieces + 1).astype(int)
    segments = [Postings.from_sparse(documents[a:b]) for a, b in itertools.pairwise(cuts)]
    scores = np.full(padded(len(documents)), 7, np.float32)  # what an earlier search left behind
    if mask is not None:
        mask = np.concatenate([mask, np.zeros(len(scores) - len(mask), np.bool_)])
    rows, found = sparse_kernel(name).best(segments, *query, scores, mask, limit)
    return rows.tolist(), found.tolist()


@pytest.mark.parametrize("name", NAMES)
class TestBest:
    @pytest.mark.parametrize("num_rows", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
    @pytest.mark.parametrize("limit", [1, 3, 10_000, 10**30])
    def test_equals_brute_force(self, name, num_rows, limit):
        rng = np.random.default_rng(num_rows)
        documents, queries = sparse_rows(num_rows, rng), sparse_rows(4, rng)
        for query in queries:
            assert search(name, documents, query, limit) == expected(documents, query, limit)

    def test_equals_brute_force_over_segments_and_under_a_mask(self, name):
        rng = np.random.default_rng(0)
        documents, queries = sparse_rows(700, rng), sparse_rows(6, rng)
        for share in (0.9, 0.1, 0.0):
            mask = rng.random(700) < share
            for query in queries:
                assert search(name, documents, query, 20, mask, pieces=4) == expected(documents, query, 20, mask)

    def test_all_rows_tie(self, name):
        documents = sparse_rows(1, np.random.default_rng(3))[np.zeros(3 * BLOCK, np.int64)]
        assert documents.nnz
        rows, scores = search(name, documents, documents.row(0), 5)
        assert rows == [0, 1, 2, 3, 4]
        assert len(set(scores)) == 1

    def test_no_shared_term_no_hit(self, name):
        documents = sparse_rows(300, np.random.default_rng(1), vocab_size=20)
        query = (np.array([25, 39], np.int32), np.ones(2, np.float32))
        assert search(name, documents, query, 10) == ([], [])

    def test_empty_query_and_no_rows(self, name):
        documents = sparse_rows(300, np.random.default_rng(1))
        empty = (np.empty(0, np.int32), np.empty(0, np.float32))
        assert search(name, documents, empty, 10) == ([], [])
        assert search(name, documents[:0], documents.row(0), 10) == ([], [])

    def test_scores_of_any_weights_are_those_of_float64_to_rounding(self, name):
        rng = np.random.default_rng(2)
        documents, queries = sparse_rows(500, rng), sparse_rows(3, rng)
        noise = rng.random(documents.nnz).astype(np.float32) + 0.1
        documents = type(documents)(documents.indptr, documents.indices, noise, documents.vocab_size)
        dense = documents.to_scipy().astype(np.float64)
        for number in range(3):
            truth = dense @ queries[number].to_scipy().astype(np.float64).toarray()[0]
            rows, found = search(name, documents, queries.row(number), 50)
            np.testing.assert_allclose(found, truth[rows], rtol=1e-6)
            np.testing.assert_allclose(found, np.sort(truth)[::-1][: len(found)], rtol=1e-6)

    def test_arrays_may_be_read_only_or_not(self, name):
        documents = sparse_rows(10, np.random.default_rng(4))
        terms, weights = documents.row(3)
        assert search(name, documents, (terms.copy(), weights.copy()), 5) == search(
            name, documents, (terms, weights), 5
        )

    def test_postings_are_not_modified(self, name):
        documents = sparse_rows(50, np.random.default_rng(5))
        postings = Postings.from_sparse(documents)
        before = [array.copy() for array in (postings.terms, postings.indptr, postings.gaps, postings.weights)]
        sparse_kernel(name).best([postings], *documents.row(1), np.empty(padded(50), np.float32), None, 5)
        after = (postings.terms, postings.indptr, postings.gaps, postings.weights)
        assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


class TestPlace:
    @pytest.mark.parametrize("spread", [1, 3, 5_000, 2**22])
    def test_is_that_of_a_binary_search(self, spread):
        rng = np.random.default_rng(spread)
        terms = np.cumsum(rng.integers(1, spread + 1, 400), dtype=np.int64).astype(np.int32)
        lumps = np.concatenate([terms[:200], terms[200:] + 2**29])  # far from even
        for held in (terms, lumps, terms[:1], terms[:0]):
            asked = np.concatenate([held, held - 1, held + 1, np.array([0, 2**31 - 1])]).astype(np.int32)
            assert [numba_kernels.place(held, term) for term in asked] == np.searchsorted(held, asked).tolist()


class TestAgreement:
    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 600), st.integers(1, 40))
    def test_kernels_give_the_same_bits(self, seed, num_rows, limit):
        rng = np.random.default_rng(seed)
        documents = sparse_rows(num_rows, rng)
        weights = rng.lognormal(size=documents.nnz).astype(np.float32)
        documents = type(documents)(documents.indptr, documents.indices, weights, documents.vocab_size)
        query = sparse_rows(1, rng).row(0)
        results = [search(name, documents, query, limit, rng.random(num_rows) < 2) for name in NAMES]
        assert results[0] == results[1] == results[2]


class TestBestRows:
    def test_ties_at_the_limit_are_cut_by_row(self):
        scores = np.array([1, 2, 2, 0, 2, 3], np.float32)
        rows, found = best_rows(scores, np.arange(6), 3)
        assert (rows.tolist(), found.tolist()) == ([5, 1, 2], [3.0, 2.0, 2.0])

    def test_only_the_given_rows(self):
        scores = np.array([9, -2, -1, 8], np.float32)
        assert best_rows(scores, np.array([1, 2]), 5)[0].tolist() == [2, 1]


class TestChoice:
    def test_unknown_name_is_refused(self):
        with pytest.raises(ValueError, match=r"kernel must be one of 'auto', 'numba', 'torch', 'scipy', got 'cuda'"):
            sparse_kernel("cuda")

    def test_auto_is_numba_where_it_is_installed(self):
        assert sparse_kernel("auto").name == "numba"

    def test_without_numba(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
        monkeypatch.delitem(sys.modules, "st_keytokens.index.numba_kernels", raising=False)
        monkeypatch.delattr(st_keytokens.index, "numba_kernels", raising=False)
        assert sparse_kernel("auto").name == "torch"
        with pytest.raises(ImportError, match=r'kernel "numba" needs numba: pip install "st-keytokens\[numba\]"'):
            sparse_kernel("numba")

    def test_without_a_directory_for_compiled_code(self, monkeypatch):
        compile_ = numba.njit

        def refusing(*arguments, cache=False, **options):
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return compile_(*arguments, **options)

        monkeypatch.setattr(numba, "njit", refusing)
        assert numba_kernels._compiled("int64(int64)", lambda number: 2 * number)(21) == 42


class TestAlteredPostings:
    def altered(self):
        postings = Postings.from_sparse(sparse_rows(30, np.random.default_rng(0)))
        gaps = postings.gaps.copy()
        gaps[::3] = 2**16 - 1
        return Postings(postings.num_rows, postings.terms, postings.indptr, gaps, postings.weights)

    def test_numba_does_not_write_beyond_the_scores(self):
        postings = self.altered()
        scores = np.zeros(padded(30) + 64, np.float32)
        kernel = sparse_kernel("numba")
        kernel.accumulate(postings, postings.terms, np.ones(len(postings.terms), np.float32), scores[:30])
        assert scores[:30].any()
        assert not scores[30:].any()

    def test_scipy_refuses(self):
        postings = self.altered()
        weights = np.ones(len(postings.terms), np.float32)
        with pytest.raises(ValueError, match=r"ind(ices|ex)"):
            sparse_kernel("scipy").accumulate(postings, postings.terms, weights, np.zeros(30, np.float32))

    def test_torch_refuses(self):
        postings = self.altered()
        weights = np.ones(len(postings.terms), np.float32)
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            sparse_kernel("torch").accumulate(postings, postings.terms, weights, np.zeros(30, np.float32))
