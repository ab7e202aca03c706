from __future__ import annotations

import itertools

import numpy as np
import pytest
from index_samples import sparse_rows

from st_keytokens.index.kernels import padded, sparse_kernel
from st_keytokens.index.segments import Postings
from st_keytokens.sparse_embeddings import SparseEmbeddings


def rows_of(postings):
    """Back to one dictionary per row."""
    rows = [{} for _ in range(postings.num_rows)]
    for position, term in enumerate(postings.terms.tolist()):
        for row, weight in zip(*postings.of_term(position), strict=True):
            rows[row][term] = float(weight)
    return [dict(sorted(row.items())) for row in rows]


@pytest.fixture
def embeddings():
    return sparse_rows(60, np.random.default_rng(0))


class TestForm:
    def test_hand_worked(self):
        postings = Postings.from_sparse(SparseEmbeddings.from_dicts([{7: 0.5}, {}, {2: 1.0, 7: 2.0}], 10))
        assert postings.num_rows == 3
        assert postings.terms.tolist() == [2, 7]
        assert postings.indptr.tolist() == [0, 1, 3]
        assert postings.gaps.tolist() == [2, 0, 2]
        assert postings.weights.tolist() == [1.0, 0.5, 2.0]

    def test_holds_the_rows(self, embeddings):
        assert rows_of(Postings.from_sparse(embeddings)) == embeddings.to_dicts()

    def test_dtypes_and_six_bytes_a_posting(self, embeddings):
        postings = Postings.from_sparse(embeddings)
        dtypes = [a.dtype for a in (postings.terms, postings.indptr, postings.gaps, postings.weights)]
        assert dtypes == [np.int32, np.int64, np.uint16, np.float32]
        assert postings.gaps.nbytes + postings.weights.nbytes == 6 * embeddings.nnz

    def test_only_the_terms_that_occur_take_space(self):
        postings = Postings.from_sparse(SparseEmbeddings.from_dicts([{150_000: 1.0}], 151_936))
        assert postings.terms.tolist() == [150_000]
        assert len(postings.indptr) == 2

    def test_rows_ascend_within_a_term(self, embeddings):
        postings = Postings.from_sparse(embeddings)
        for position in range(len(postings.terms)):
            assert (np.diff(postings.of_term(position)[0]) > 0).all()

    def test_no_postings_at_all(self):
        postings = Postings.from_sparse(SparseEmbeddings.empty(3, 10))
        assert (len(postings.terms), postings.indptr.tolist(), postings.num_rows) == (0, [0], 3)


class TestMerging:
    @pytest.mark.parametrize("cuts", [[0, 60], [0, 1, 60], [0, 0, 20, 20, 60, 60], [0, 7, 30, 59, 60]])
    def test_merged_parts_are_the_whole(self, embeddings, cuts):
        parts = [Postings.from_sparse(embeddings[a:b]) for a, b in itertools.pairwise(cuts)]
        merged, whole = Postings.merged(parts), Postings.from_sparse(embeddings)
        for name in ("terms", "indptr", "gaps", "weights"):
            assert np.array_equal(getattr(merged, name), getattr(whole, name))
            assert getattr(merged, name).dtype == getattr(whole, name).dtype

    def test_parts_are_not_modified(self, embeddings):
        parts = [Postings.from_sparse(embeddings[:30]), Postings.from_sparse(embeddings[30:])]
        before = [rows_of(part) for part in parts]
        Postings.merged(parts)
        assert [rows_of(part) for part in parts] == before

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_kept_rows_are_numbered_anew(self, embeddings, share):
        mask = np.random.default_rng(1).random(60) < share
        kept, expected = Postings.from_sparse(embeddings).kept(mask), Postings.from_sparse(embeddings[mask])
        for name in ("num_rows", "terms", "indptr", "gaps", "weights"):
            assert np.array_equal(getattr(kept, name), getattr(expected, name))


class TestDistantRows:
    """Rows that are further apart than 16 bits tell."""

    ROWS = (0, 65_535, 131_071, 131_072, 262_142, 400_000)  # distances of 65,535, 65,536, 1, 131,070 and 137,858

    @pytest.fixture
    def distant(self):
        places = {row: {3: 1.0 + number, 5: 0.5} for number, row in enumerate(self.ROWS)}
        places[400_001] = {7: 0.25}  # its only row
        return SparseEmbeddings.from_dicts([places.get(row, {}) for row in range(400_003)], 9)

    def test_steps_of_weight_zero_lead_there(self, distant):
        postings = Postings.from_sparse(distant)
        assert postings.terms.tolist() == [3, 5, 7]
        assert postings.indptr.tolist() == [0, 10, 20, 27]
        assert postings.gaps[:10].tolist() == [0, 65535, 65535, 1, 1, 65535, 65535, 65535, 65535, 6788]
        assert postings.weights[:10].tolist() == [1, 2, 0, 3, 4, 0, 5, 0, 0, 6]
        assert postings.gaps[20:].tolist() == [65535] * 6 + [400_001 - 6 * 65535]

    def test_unpacked_they_are_gone(self, distant):
        indptr, rows, weights = Postings.from_sparse(distant).unpacked()
        assert indptr.tolist() == [0, 6, 12, 13]
        assert rows.tolist() == [*self.ROWS, *self.ROWS, 400_001]
        assert weights.tolist() == [1, 2, 3, 4, 5, 6, *[0.5] * 6, 0.25]
        assert rows.dtype == np.int32

    def test_weight_of_a_row(self, distant):
        postings = Postings.from_sparse(distant)
        assert [postings.weight(3, row) for row in self.ROWS] == [1, 2, 3, 4, 5, 6]
        assert [postings.weight(3, row) for row in (1, 131_070, 196_607, 400_001)] == [0, 0, 0, 0]

    @pytest.mark.parametrize("name", ["numba", "torch", "scipy"])
    def test_kernels_find_them(self, distant, name):
        scores = np.empty(padded(len(distant)), np.float32)
        query = (np.array([3, 7], np.int32), np.array([2.0, 4.0], np.float32))
        rows, found = sparse_kernel(name).best([Postings.from_sparse(distant)], *query, scores, None, 20)
        assert (rows.tolist(), found.tolist()) == ([*self.ROWS[::-1], 400_001], [12, 10, 8, 6, 4, 2, 1])

    def test_merged_and_kept(self, distant):
        whole = Postings.from_sparse(distant)
        merged = Postings.merged([Postings.from_sparse(distant[:100_000]), Postings.from_sparse(distant[100_000:])])
        mask = np.ones(len(distant), np.bool_)
        mask[1:131_071] = False
        for made, expected in ((merged, whole), (whole.kept(mask), Postings.from_sparse(distant[mask]))):
            for name in ("num_rows", "terms", "indptr", "gaps", "weights"):
                assert np.array_equal(getattr(made, name), getattr(expected, name))


class TestLookup:
    def test_weight_of_every_term_in_every_row(self, embeddings):
        postings = Postings.from_sparse(embeddings)
        for row, held in enumerate(embeddings.to_dicts()):
            assert {term: w for term in range(40) if (w := postings.weight(term, row))} == held

    def test_shared_terms(self):
        postings = Postings.from_sparse(SparseEmbeddings.from_dicts([{2: 1.0, 5: 1.0, 8: 1.0}], 10))
        terms, weights = np.array([0, 5, 8, 9], np.int32), np.array([1, 2, 3, 4], np.float32)
        positions, shared = postings.shared(terms, weights)
        assert (positions.tolist(), shared.tolist()) == ([1, 2], [2.0, 3.0])

    def test_matrix_is_terms_by_rows(self, embeddings):
        postings = Postings.from_sparse(embeddings)
        dense = embeddings.to_scipy().toarray()
        assert np.array_equal(postings.matrix.toarray(), dense[:, postings.terms].T)
