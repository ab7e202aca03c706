from __future__ import annotations

import numpy as np
import pytest

from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.weighting import METHODS, Weighting, count_terms, row_maxima

VOCAB = 10


def terms(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int64)


def rows(*items: dict[int, float]) -> SparseEmbeddings:
    return SparseEmbeddings.from_dicts(list(items), VOCAB)


class TestCounts:
    def test_counts_repetitions_and_keeps_empty_texts(self):
        counted = count_terms([terms(4, 2, 4, 4), terms(), terms(9)], VOCAB)
        assert counted.to_dicts() == [{2: 1.0, 4: 3.0}, {}, {9: 1.0}]

    def test_no_texts(self):
        assert count_terms([], VOCAB).shape == (0, VOCAB)

    def test_row_maxima_of_an_empty_row_is_zero(self):
        assert row_maxima(rows({1: 0.5, 3: 2.0}, {})).tolist() == [2.0, 0.0]


class TestLiteralDocuments:
    def test_is_bm25_on_a_hand_worked_case(self):
        # Lengths 4 and 1, average 2.5, k1 1.2, b .75: norms 1.2 * (.25 + .75 * 4 / 2.5), 1.2 * (.25 + .75 / 2.5).
        documents = Weighting(document_terms="literal").document([terms(4, 2, 4, 4), terms(9)], None, VOCAB, 2.5)
        long, short = 1.2 * 1.45, 1.2 * 0.55
        expected = [{2: 2.2 / (1 + long), 4: 3 * 2.2 / (3 + long)}, {9: 2.2 / (1 + short)}]
        for row, expected_row in zip(documents.to_dicts(), expected, strict=True):
            assert row == pytest.approx(expected_row, rel=1e-6)

    def test_scores_equal_bm25_of_bm25s(self):
        bm25s = pytest.importorskip("bm25s")
        rng = np.random.default_rng(0)
        documents = [rng.zipf(1.5, size=rng.integers(3, 30)) % VOCAB for _ in range(40)]
        query = terms(1, 3, 3, 7)
        frequencies = np.array([sum(t in d for d in documents) for t in range(VOCAB)])
        idf = np.log(1 + (40 - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
        weighting = Weighting(document_terms="literal", query_terms="literal", k1=1.5)
        average = float(np.mean([len(d) for d in documents]))
        ours = weighting.document(documents, None, VOCAB, average)
        asked = weighting.query([query], None, VOCAB, idf)
        retriever = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        retriever.index([[str(t) for t in d] for d in documents], show_progress=False)
        # bm25s's "lucene" leaves out the constant factor k1 + 1 of the numerator.
        theirs = retriever.get_scores([str(t) for t in query]) * 2.5
        np.testing.assert_allclose(asked.scores(ours)[0], theirs, rtol=1e-4, atol=1e-5)


class TestDecoded:
    decoded = rows({1: 2.0, 4: 1.0}, {})

    def test_strongest_decoded_term_weighs_what_is_said(self):
        documents = Weighting(document_decoded_weight=0.3).document([terms(), terms(5)], self.decoded, VOCAB, 1.0)
        first, second = documents.to_dicts()
        assert first == pytest.approx({1: 0.3, 4: 0.15})
        assert second == pytest.approx({5: 2.2 / 2.2})

    def test_query_decoded_terms_are_relative_to_the_strongest_literal_one(self):
        idf = np.arange(VOCAB, dtype=np.float32)
        query = Weighting(query_decoded_weight=0.5).query([terms(3, 8), terms(2)], self.decoded, VOCAB, idf)
        first, second = query.to_dicts()
        assert first == pytest.approx({1: 4.0, 3: 3.0, 4: 2.0, 8: 8.0})
        assert second == pytest.approx({2: 2.0})

    def test_a_query_without_literal_terms_keeps_its_decoded_ones(self):
        query = Weighting(query_decoded_weight=0.5).query([terms(), terms()], self.decoded, VOCAB, None)
        assert query.to_dicts()[0] == pytest.approx({1: 0.5, 4: 0.25})

    def test_decoded_alone_and_literal_alone(self):
        only = METHODS["decoded"].weighting.document([terms(7), terms(7)], self.decoded, VOCAB, 1.0)
        assert only.to_dicts()[0] == pytest.approx({1: 1.0, 4: 0.5})
        literal = METHODS["literal"].weighting.query([terms(7), terms(7)], self.decoded, VOCAB, None)
        assert literal.to_dicts() == [{7: 1.0}, {7: 1.0}]

    def test_the_papers_method_has_scores_against_binary_queries(self):
        weighting = METHODS["nie2025"].weighting
        assert weighting.document([terms(7), terms()], self.decoded, VOCAB, 1.0) == self.decoded
        query = weighting.query([terms(7, 7), terms(2)], self.decoded, VOCAB, np.full(VOCAB, 5.0, np.float32))
        assert query.to_dicts() == [{1: 1.0, 4: 1.0, 7: 1.0}, {2: 1.0}]


class TestValidation:
    def test_terms(self):
        with pytest.raises(ValueError, match=r"query_terms must be 'both', 'literal' or 'decoded', got 'all'"):
            Weighting(query_terms="all")  # type: ignore[arg-type]

    def test_ranges(self):
        with pytest.raises(ValueError, match=r"b must be between 0 and 1, got 1.5"):
            Weighting(b=1.5)
        with pytest.raises(ValueError, match=r"k1 must not be negative, and finite, got -1"):
            Weighting(k1=-1)
