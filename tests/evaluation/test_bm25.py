from __future__ import annotations

import math
from collections import Counter

import bm25s
import numpy as np
import pytest
from evaluation_samples import build_collection, build_encoder

from st_keytokens.evaluation import bm25
from st_keytokens.evaluation.bm25 import bm25_vectors, check_bm25, rank_bm25_rankings, split_words, stem_words
from st_keytokens.evaluation.encoded import encode_collection
from st_keytokens.evaluation.methods import run_methods
from st_keytokens.evaluation.runs import tie_order

DOCUMENTS = [["a", "b", "a"], ["b", "c"], ["d"], [], ["e", "f", "g"], ["h"]]


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return build_encoder(llama_embedder)


@pytest.fixture(scope="module")
def runs(encoder):
    return run_methods(encode_collection(build_collection(), encoder), ["dense", "bm25-words", "bm25-tokens"])


def test_words_are_stemmed():
    texts = ["The proteins of two genes were measured", "measuring proteins"]
    assert split_words(texts) == [["proteins", "two", "genes", "were", "measured"], ["measuring", "proteins"]]
    assert stem_words(texts) == [["protein", "two", "gene", "were", "measur"], ["measur", "protein"]]


class TestVectors:
    def test_dot_products_are_bm25s_scores(self, sentences):
        documents = split_words([*sentences, ""])
        queries = [["wolves", "deer", "wolves"], ["unheard"], [], ["the"]]
        retriever = bm25s.BM25()
        retriever.index(documents, show_progress=False)
        weights, counts = bm25_vectors(documents, queries)
        found = (counts @ weights.T).toarray()
        assert weights.shape[0] == 51
        np.testing.assert_allclose(found[0], retriever.get_scores(queries[0]), rtol=1e-5, atol=1e-7)
        assert found[0].max() > 1
        assert not found[1:].any()
        assert counts.getnnz(axis=1).tolist() == [2, 0, 0, 0]

    def test_words_are_lower_case_without_stop_words(self):
        assert split_words(["The Wolves and a deer.", ""]) == [["wolves", "deer"], []]

    def test_documents_without_any_term(self):
        weights, counts = bm25_vectors([[], []], [["a"]])
        assert (weights.shape[0], weights.nnz, counts.shape[0], counts.nnz) == (2, 0, 1, 0)


class TestRankings:
    def test_scores_are_okapis(self):
        (rows, scores), (nothing, _) = rank_bm25_rankings(DOCUMENTS, [["a", "b", "z"], ["z"]], np.arange(6), 10)
        lengths = [len(terms) for terms in DOCUMENTS]
        expected = []
        for terms, length in zip(DOCUMENTS, lengths, strict=True):
            counts, norm = Counter(terms), 1.5 * (0.25 + 0.75 * length / (sum(lengths) / 6))
            expected.append(
                sum(
                    math.log((6 - df + 0.5) / (df + 0.5)) * counts[term] * 2.5 / (counts[term] + norm)
                    for term, df in (("a", 1), ("b", 2))
                )
            )
        assert rows.tolist() == [0, 1]
        assert scores == pytest.approx([expected[0], expected[1]])
        assert len(nothing) == 0

    def test_with_the_same_idf_both_score_alike(self):
        """Where every term has the same document frequency, bm25s' Lucene idf is a common factor."""
        documents = [["a", "a", "b"], ["b", "c", "d", "d"], ["c", "d"], ["a"], ["x", "y"], ["x", "y", "y", "y"]]
        queries = [["a"], ["b", "d"], ["x", "y"]]
        matrix, weights = bm25_vectors(documents, queries)
        scores = (weights @ matrix.T).toarray()
        factor = math.log(1 + 4.5 / 2.5) / (math.log(4.5 / 2.5) * 2.5)
        for row, (rows, theirs) in zip(scores, rank_bm25_rankings(documents, queries, np.arange(6), 10), strict=True):
            assert set(rows.tolist()) == set(np.flatnonzero(row).tolist())
            assert row[rows] == pytest.approx(theirs * factor, rel=1e-5)

    def test_no_terms(self):
        ((rows, scores),) = rank_bm25_rankings([[], []], [["a"]], np.arange(2), 10)
        assert (len(rows), len(scores)) == (0, 0)


class TestCheck:
    def test_both_term_sets(self, encoder, runs):
        collection = build_collection()
        checks = check_bm25(collection, encoder, runs, 1000)
        assert list(checks) == ["bm25-words", "bm25-tokens"]
        assert checks["bm25-words"].bm25s["MRR@10"] == checks["bm25-words"].rank_bm25["MRR@10"] == pytest.approx(0.8)
        terms = split_words(collection.documents), split_words(collection.queries)
        theirs = rank_bm25_rankings(*terms, tie_order(collection.doc_ids), 1000)
        pairs = list(zip(runs["bm25-words"].rankings, theirs, strict=True))
        shared = sum(len(set(a[:10].tolist()) & set(b[:10].tolist())) for (a, _), (b, _) in pairs)
        assert checks["bm25-words"].overlap == shared / sum(len(a[:10]) for (a, _), _ in pairs)
        assert 0.5 < checks["bm25-tokens"].overlap <= 1

    def test_only_what_was_run(self, encoder, runs):
        assert check_bm25(build_collection(), encoder, {"dense": runs["dense"]}, 1000) == {}

    def test_limits(self, encoder, runs, monkeypatch):
        monkeypatch.setattr(bm25, "_CHECKED_QUERIES", 2)
        check = check_bm25(build_collection(), encoder, runs, 1000)["bm25-words"]
        assert (check.queries, check.rank_bm25["MRR@10"]) == (2, 1.0)
        monkeypatch.setattr(bm25, "_CHECKED_DOCUMENTS", 49)
        assert check_bm25(build_collection(), encoder, runs, 1000) == {}
