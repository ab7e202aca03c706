from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis import candidate_phrases, rank_by_embedding, rank_by_key_tokens, rank_by_tfidf


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return KeyTokenEncoder(llama_embedder)


@pytest.fixture(scope="module")
def candidates(sentences):
    return [candidate_phrases(text) for text in sentences]


class TestKeyTokens:
    def test_against_one_phrase_at_a_time(self, encoder, sentences, candidates):
        ranked = rank_by_key_tokens(encoder, sentences[:40], candidates[:40])
        with torch.inference_mode():
            scores = encoder.head.decode_scores(torch.from_numpy(encoder.embed(sentences[:40]))).numpy()
        for row, phrases, found in zip(scores, candidates, ranked, strict=False):
            weights = []
            for phrase in phrases:
                words = [row[encoder.literal_terms([word])[0]].mean() for word in phrase.split()]
                weights.append(sum(max(0.0, float(word)) for word in words))
            assert sorted(found) == sorted(phrases)
            in_order = [weights[phrases.index(phrase)] for phrase in found]
            assert in_order == sorted(in_order, reverse=True)

    def test_stored_embeddings(self, encoder, sentences, candidates):
        rows = encoder.embed(sentences[:4])
        given = rank_by_key_tokens(encoder, sentences[:4], candidates[:4], embeddings=rows)
        assert given == rank_by_key_tokens(encoder, sentences[:4], candidates[:4])
        with pytest.raises(ValueError, match="one row a text, got 4 for 3"):
            rank_by_key_tokens(encoder, sentences[:3], candidates[:3], embeddings=rows)

    def test_settings_change_the_order_and_not_the_encoder(self, llama_embedder, sentences, candidates):
        encoder = KeyTokenEncoder(llama_embedder)
        encoder.calibrate(sentences, show_progress_bar=False)
        before = encoder.head.get_config_dict()
        plain, corrected = (
            rank_by_key_tokens(encoder, sentences[:5], candidates[:5], settings={"correction": correction})
            for correction in ("none", "remove")
        )
        assert plain != corrected
        assert encoder.head.get_config_dict() == before

    def test_terms_that_the_ridge_decoder_does_not_know(self, llama_embedder, sentences):
        encoder = KeyTokenEncoder(llama_embedder)
        encoder.calibrate(sentences[:3], show_progress_bar=False)
        assert encoder.head.is_ridge
        (found,) = rank_by_key_tokens(encoder, sentences[:1], [["zebra", "genes"]])
        assert sorted(found) == ["genes", "zebra"]


class TestTfidf:
    def test_against_the_formula(self):
        texts = ["Cat cat dog", "dog bird", "dog"]
        (found, *_) = rank_by_tfidf(texts, [["dog", "cat", "cat dog"], [], []])
        cat, dog = 2 * (math.log(4 / 2) + 1), math.log(4 / 4) + 1
        assert cat > dog
        assert found == ["cat dog", "cat", "dog"]


class TestEmbedding:
    def test_against_cosines(self, encoder, sentences, candidates):
        ranked = rank_by_embedding(encoder, sentences[:3], candidates[:3])
        for text, phrases, found in zip(sentences, candidates, ranked, strict=False):
            whole, parts = encoder.model.encode(text), encoder.model.encode(found)
            cosines = parts @ whole / np.linalg.norm(parts, axis=1) / np.linalg.norm(whole)
            assert sorted(found) == sorted(phrases)
            assert (np.diff(cosines) <= 1e-5).all()

    def test_against_keybert(self, encoder, sentences, candidates):
        keybert = pytest.importorskip("keybert", reason="KeyBERT is compared where it is installed")
        from sklearn.feature_extraction.text import CountVectorizer

        model = keybert.KeyBERT(model=encoder.model)
        ours = rank_by_embedding(encoder, sentences[:5], candidates[:5])
        for text, phrases, found in zip(sentences, candidates, ours, strict=False):
            vectorizer = CountVectorizer(vocabulary=phrases, analyzer=lambda _, known=phrases: known)
            theirs = [phrase for phrase, _ in model.extract_keywords(text, vectorizer=vectorizer, top_n=5)]
            assert theirs == found[: len(theirs)]

    def test_no_candidates(self, encoder, sentences):
        assert rank_by_embedding(encoder, sentences[:2], [[], []]) == [[], []]
        assert rank_by_embedding(encoder, sentences[:2], [[], ["gene"]]) == [[], ["gene"]]


class TestValidation:
    def test_numbers_differ(self, encoder):
        for call in (
            lambda: rank_by_key_tokens(encoder, ["a"], []),
            lambda: rank_by_tfidf(["a"], []),
            lambda: rank_by_embedding(encoder, ["a"], []),
        ):
            with pytest.raises(ValueError, match="candidates must be one list for each text, got 0 for 1"):
                call()
        with pytest.raises(ValueError, match="got one string"):
            rank_by_tfidf("a", [["a"]])
