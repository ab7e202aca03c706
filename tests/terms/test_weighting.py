from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.terms.term_values import TermValues
from st_keytokens.terms.weighting import METHODS, Corpus, Weighting, count_terms, with_less_decoded

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


class TestLiteralDocuments:
    def test_is_bm25_on_a_hand_worked_case(self):
        # Lengths 4 and 1, average 2.5, k1 1.2, b .75: norms 1.2 * (.25 + .75 * 4 / 2.5), 1.2 * (.25 + .75 / 2.5).
        corpus = Corpus(average_length=2.5)
        documents = Weighting(document_terms="literal").document([terms(4, 2, 4, 4), terms(9)], None, VOCAB, corpus)
        long, short = 1.2 * 1.45, 1.2 * 0.55
        expected = [{2: 2.2 / (1 + long), 4: 3 * 2.2 / (3 + long)}, {9: 2.2 / (1 + short)}]
        for row, expected_row in zip(documents.to_dicts(), expected, strict=True):
            assert row == pytest.approx(expected_row, rel=1e-6)

    def test_a_length_counts_as_four_means_at_most(self):
        corpus = Corpus(average_length=2.0)
        (long,) = Weighting(document_terms="literal").document([terms(*[3] * 99, 5)], None, VOCAB, corpus).to_dicts()
        norm = 1.2 * (0.25 + 0.75 * 4)
        assert long == pytest.approx({3: 99 * 2.2 / (99 + norm), 5: 2.2 / (1 + norm)}, rel=1e-6)

    def test_scores_equal_bm25_of_bm25s(self):
        bm25s = pytest.importorskip("bm25s")
        rng = np.random.default_rng(0)
        documents = [rng.zipf(1.5, size=rng.integers(3, 30)) % VOCAB for _ in range(40)]
        query = terms(1, 3, 3, 7)
        frequencies = np.array([sum(t in d for d in documents) for t in range(VOCAB)])
        idf = np.log(1 + (40 - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
        weighting = Weighting(document_terms="literal", query_terms="literal", k1=1.5)
        corpus = Corpus(idf, average_length=float(np.mean([len(d) for d in documents])))
        ours = weighting.document(documents, None, VOCAB, corpus)
        asked = weighting.query([query], None, VOCAB, corpus)
        retriever = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        retriever.index([[str(t) for t in d] for d in documents], show_progress=False)
        # bm25s's "lucene" leaves out the constant factor k1 + 1 of the numerator.
        theirs = retriever.get_scores([str(t) for t in query]) * 2.5
        np.testing.assert_allclose(asked.scores(ours)[0], theirs, rtol=1e-4, atol=1e-5)


class TestPruning:
    corpus = Corpus(np.array([1, 1, 4, 1, 1, 1, 1, 1, 1, 1], np.float32), average_length=4.0, literal_norm=2.0)

    def test_keeps_so_many_terms_with_the_weights_that_they_had(self):
        texts, decoded = [terms(4, 2, 4, 5), terms(9), terms()], rows({1: 3.0, 5: 4.0}, {3: 1.0}, {})
        whole = Weighting().document(texts, decoded, VOCAB, self.corpus).to_dicts()
        pruned = Weighting(max_document_terms=2).document(texts, decoded, VOCAB, self.corpus).to_dicts()
        assert [len(row) for row in whole] == [4, 2, 0]
        assert [len(row) for row in pruned] == [2, 2, 0]
        assert all(row.items() <= of.items() for row, of in zip(pruned, whole, strict=True))

    @pytest.mark.parametrize(
        ("text", "decoded", "kept"),
        [
            (terms(2, 4, 4, 4, 4), {}, 2),  # 3.63 against 1.62, of which its rarity takes half
            (terms(4, 3), {}, 4),  # alike but for the place
            (terms(4, 3), {3: 1.0}, 3),  # the embedding says it as well
            (terms(4, 3), {1: 1.0, 3: 1.0}, 3),  # of two decoded ones, the literal one
        ],
    )
    def test_what_is_kept(self, text, decoded, kept):
        weighting = Weighting(max_document_terms=1)
        (document,) = weighting.document([text], rows(decoded), VOCAB, self.corpus).to_dicts()
        assert list(document) == [kept]

    @pytest.mark.parametrize(("trust", "kept"), [(0.1, 4), (2.0, 1)])
    def test_what_the_text_lacks_is_kept_as_far_as_queries_ask_for_it(self, trust, kept):
        corpus = replace(self.corpus, decoded_trust=trust)
        (document,) = Weighting(max_document_terms=1).document([terms(4)], rows({1: 1.0}), VOCAB, corpus).to_dicts()
        assert list(document) == [kept]

    def test_decoded_documents_keep_their_strongest(self):
        weighting = Weighting(document_terms="decoded", max_document_terms=1)
        assert list(weighting.document([terms(2)], rows({1: 3.0, 5: 4.0}), VOCAB, self.corpus).to_dicts()[0]) == [5]

    def test_no_documents_and_no_idf(self):
        weighting = Weighting(max_document_terms=1)
        assert weighting.document([], None, VOCAB, Corpus()).shape == (0, VOCAB)
        assert weighting.document([terms(3, 3, 1)], None, VOCAB, Corpus()).indices.tolist() == [3]

    def test_wrong_numbers(self):
        with pytest.raises(ValueError, match="max_document_terms must be >= 1, got 0"):
            Weighting(max_document_terms=0)
        with pytest.raises(TypeError, match="max_document_terms must be an integer"):
            Weighting(max_document_terms=1.5)  # type: ignore[arg-type]


class TestDecoded:
    decoded = rows({1: 3.0, 4: 4.0}, {})

    def test_a_documents_decoded_vector_has_the_length_that_is_said(self):
        corpus = Corpus(average_length=1.0, literal_norm=20.0, decoded_trust=0.8)
        weighting = Weighting(document_decoded_weight=0.25)  # 0.25 * 0.8 * 20 = 4
        first, second = weighting.document([terms(), terms(5)], self.decoded, VOCAB, corpus).to_dicts()
        assert first == pytest.approx({1: 4 * 0.6, 4: 4 * 0.8})
        assert second == pytest.approx({5: 1.0})

    def test_a_term_of_the_text_keeps_its_literal_weight(self):
        corpus = Corpus(np.full(VOCAB, 2.0, np.float32), average_length=1.0, literal_norm=10.0, decoded_trust=1.0)
        document = Weighting().document([terms(4)], rows({1: 3.0, 4: 4.0}), VOCAB, corpus)
        assert document.to_dicts() == [pytest.approx({1: 3.0, 4: 2.0})]

    def test_a_query_is_its_counts_and_a_decoded_vector_of_a_length(self):
        corpus = Corpus(np.arange(VOCAB, dtype=np.float32), decoded_trust=0.5)
        query = Weighting(query_decoded_weight=2.0).query([terms(3, 4, 4), terms(2)], self.decoded, VOCAB, corpus)
        first, second = query.to_dicts()
        assert first == pytest.approx({1: 0.6, 3: 1.0, 4: 2.8})
        assert second == {2: 1.0}

    def test_without_trust_or_weight_there_are_literal_terms_only(self):
        untrusted, unweighted = Corpus(decoded_trust=0.0), Weighting(document_decoded_weight=0, query_decoded_weight=0)
        texts = [terms(7), terms(7)]
        for weighting, corpus in ((Weighting(), untrusted), (unweighted, Corpus())):
            assert weighting.query(texts, self.decoded, VOCAB, corpus).to_dicts() == [{7: 1.0}, {7: 1.0}]
            expected = weighting.document(texts, None, VOCAB, corpus)
            assert weighting.document(texts, self.decoded, VOCAB, corpus) == expected

    def test_decoded_alone_and_literal_alone(self):
        texts = [terms(7), terms(7)]
        only = METHODS["decoded"].weighting.document(texts, self.decoded, VOCAB, Corpus(decoded_trust=1.0))
        assert only.to_dicts() == [pytest.approx({1: 3.0, 4: 4.0}), {}]
        assert METHODS["literal"].weighting.query(texts, self.decoded, VOCAB, Corpus()).to_dicts() == [{7: 1.0}] * 2

    def test_the_papers_method_has_scores_against_binary_queries(self):
        weighting, corpus = METHODS["nie2025"].weighting, Corpus(np.full(VOCAB, 5.0, np.float32))
        assert weighting.document([terms(7), terms()], self.decoded, VOCAB, corpus) == self.decoded
        query = weighting.query([terms(7, 7), terms(2)], self.decoded, VOCAB, corpus)
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


def test_a_query_has_less_of_its_decoded_terms_where_its_words_are_unseen_and_never_none():
    idf = TermValues(np.array([1, 2]), np.array([1.0, 3.0], np.float32), 4.0)
    corpus = Corpus(idf, decoded_trust=0.5)
    queries, decoded = [terms(1, 2), terms(1, 2, 9), terms(9)], rows({5: 3.0, 6: 4.0}, {5: 2.0}, {5: 7.0})
    weighed = Weighting(query_decoded_weight=2.0).query(queries, decoded, VOCAB, corpus).to_dicts()
    assert weighed[0] == pytest.approx({1: 1.0, 2: 1.0, 5: 0.6, 6: 0.8})
    assert weighed[1] == pytest.approx({1: 1.0, 2: 1.0, 9: 1.0, 5: 0.5})
    assert weighed[2] == pytest.approx({9: 1.0, 5: 0.1})


def test_a_hybrid_query_has_decoded_terms_as_far_as_its_own_words_are_among_them():
    literal = rows({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0}, {1: 1.0}, {}, {1: 1.0})
    query = literal.add(rows({1: 0.5, 2: 1.0, 5: 3.0}, {1: 0.5, 5: 3.0}, {5: 3.0}, {5: 3.0}, {}))
    idf = np.array([9, 1, 3, 9, 9, 9, 9, 9, 9, 9], np.float32)
    found = with_less_decoded(query, literal, 0.4, idf).to_dicts()
    assert found[0] == pytest.approx({1: 1.2, 2: 2.4, 5: 1.2})  # both words
    assert found[1] == pytest.approx({1: 1.05, 2: 2.0, 5: 0.3})  # a quarter, by idf
    assert found[2] == pytest.approx({1: 1.0, 5: 0.12})  # neither: a tenth
    assert found[3] == pytest.approx({5: 1.2})  # no words
    assert found[4] == {1: 1.0}
    assert with_less_decoded(query, literal, 0.4, None).to_dicts()[1] == pytest.approx({1: 1.1, 2: 2.0, 5: 0.6})
