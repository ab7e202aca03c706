from __future__ import annotations

import itertools

import numpy as np
import pytest
from index_samples import sparse_rows

from st_keytokens.index.postings import Postings
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
        assert postings.documents.tolist() == [2, 0, 2]
        assert postings.weights.tolist() == [1.0, 0.5, 2.0]

    def test_holds_the_rows(self, embeddings):
        assert rows_of(Postings.from_sparse(embeddings)) == embeddings.to_dicts()

    def test_dtypes_and_eight_bytes_a_posting(self, embeddings):
        postings = Postings.from_sparse(embeddings)
        dtypes = [a.dtype for a in (postings.terms, postings.indptr, postings.documents, postings.weights)]
        assert dtypes == [np.int32, np.int64, np.int32, np.float32]
        assert postings.documents.nbytes + postings.weights.nbytes == 8 * embeddings.nnz

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
        for name in ("terms", "indptr", "documents", "weights"):
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
        for name in ("num_rows", "terms", "indptr", "documents", "weights"):
            assert np.array_equal(getattr(kept, name), getattr(expected, name))


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
