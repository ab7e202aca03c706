from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis import (
    candidate_phrases,
    measure_keyphrases,
    rank_by_embedding,
    rank_by_key_tokens,
    rank_by_tfidf,
)
from st_keytokens.analysis.keyphrases import comparable, words_of


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return KeyTokenEncoder(llama_embedder, terms="tokens")


@pytest.fixture(scope="module")
def candidates(sentences):
    return [candidate_phrases(text) for text in sentences]


def values_of(comparison, name, cut):
    return {measure: found.value for measure, found in comparison.rows[name][cut].items()}


class TestByHand:
    keyphrases = (["Neural networks", "image recognition"], ["graph theory"])
    ours = (["neural networks", "images", "recognition"], ["proof", "graph theory"])

    def test_phrases(self):
        found = measure_keyphrases(self.keyphrases, {"ours": self.ours}, cuts=[1, 2])
        # First one: 1 of 1 and 1 of 2 wanted; 0 of 1. First two: 1 of 2 and 1 of 2 wanted; 1 of 2 and 1 of 1.
        assert values_of(found, "ours", 1) == pytest.approx({"precision": 0.5, "recall": 0.25, "f1": 1 / 3})
        assert values_of(found, "ours", 2) == pytest.approx({"precision": 0.5, "recall": 0.75, "f1": 7 / 12})
        assert found.f1_of_texts["ours"][2] == pytest.approx([0.5, 2 / 3])

    def test_words(self):
        found = measure_keyphrases(self.keyphrases, {"ours": self.ours}, unit="word", cuts=[4])
        # neural networks images recognition: 3 of 4, of 4 wanted; proof graph theory: 2 of 3, of 2 wanted.
        assert values_of(found, "ours", 4) == pytest.approx(
            {"precision": (3 / 4 + 2 / 3) / 2, "recall": (3 / 4 + 1) / 2, "f1": (3 / 4 + 4 / 5) / 2}
        )

    def test_a_stemmer(self):
        found = measure_keyphrases(
            [["Networks"]], {"ours": [["network"]]}, cuts=[1], normalize_word=lambda word: word.casefold().rstrip("s")
        )
        assert values_of(found, "ours", 1) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}

    def test_repeated_phrases_count_once(self):
        found = measure_keyphrases([["a cat", "A cat"]], {"ours": [["a cat", "A  CAT", "dog"]]}, cuts=[2])
        assert values_of(found, "ours", 2) == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3})

    def test_texts_without_key_phrases_are_left_out(self):
        found = measure_keyphrases([["cat"], [], ["?"]], {"ours": [["cat"], ["dog"], ["dog"]]}, cuts=[5])
        assert (found.text_count, found.without_keyphrases) == (1, 2)
        assert values_of(found, "ours", 5)["f1"] == 1.0

    def test_nothing_ranked(self):
        found = measure_keyphrases([["cat"]], {"ours": [[]]}, cuts=[5])
        assert values_of(found, "ours", 5) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


class TestResult:
    def test_json_and_table(self):
        found = measure_keyphrases([["cat"], ["dog"]], {"ours": [["cat"], ["cat"]], "theirs": [["cat"], ["dog"]]})
        content = json.loads(json.dumps(found.to_dict()))
        assert content["rows"]["theirs"]["5"]["f1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert found.table().splitlines()[0] == ("|  | P@5 | R@5 | F1@5 | P@10 | R@10 | F1@10 | P@15 | R@15 | F1@15 |")
        assert len(found.table().splitlines()) == 4


class TestWords:
    def test_hyphens_apostrophes_and_other_scripts(self):
        assert words_of("state-of-the-art, Bohr\u2019s 3D_model; größe 東京") == [
            "state-of-the-art",
            "Bohr\u2019s",
            "3D",
            "model",
            "größe",
            "東京",
        ]

    def test_comparable(self):
        assert comparable("Human-made  LAWS!") == ("human-made", "laws")


class TestCandidates:
    def test_no_stop_words_no_punctuation_inside(self):
        assert candidate_phrases("Dark matter of galaxies, stars") == [
            "dark",
            "dark matter",
            "matter",
            "galaxies",
            "stars",
        ]

    def test_repetitions_and_line_ends(self):
        assert candidate_phrases("Black\nhole. black hole", 2) == ["black", "black hole", "hole"]

    def test_longest_run(self):
        assert "convolutional neural network" in candidate_phrases("convolutional neural network model")
        assert max(len(phrase.split()) for phrase in candidate_phrases("convolutional neural network model")) == 3

    def test_nothing(self):
        assert candidate_phrases("") == candidate_phrases("of the, a x") == []

    def test_validation(self):
        with pytest.raises(ValueError, match="max_words must be >= 1"):
            candidate_phrases("text", 0)


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
        encoder = KeyTokenEncoder(llama_embedder, terms="tokens")
        encoder.calibrate(sentences, show_progress_bar=False)
        before = encoder.head.get_config_dict()
        plain, corrected = (
            rank_by_key_tokens(encoder, sentences[:5], candidates[:5], settings={"correction": correction})
            for correction in ("none", "remove")
        )
        assert plain != corrected
        assert encoder.head.get_config_dict() == before

    def test_terms_that_the_ridge_decoder_does_not_know(self, llama_embedder, sentences):
        encoder = KeyTokenEncoder(llama_embedder, terms="tokens")
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
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"unit": "letter"}, "unit must be one of 'phrase', 'word'"),
            ({"cuts": [0]}, "cuts must be >= 1"),
            ({"cuts": []}, "cuts and rankings must not be empty, got 0 and 1"),
            ({"rankings": {}}, "cuts and rankings must not be empty, got 3 and 0"),
            ({"rankings": {"ours": []}}, "one list a text, got 0 of 'ours' for 1"),
            ({"keyphrases": [[]]}, "keyphrases must hold at least one, got none in 1 texts"),
            ({"confidence": 0.0}, "confidence must be between 0 and 1"),
            ({"samples": 0}, "samples must be >= 1"),
        ],
    )
    def test_arguments(self, changes, message):
        with pytest.raises(ValueError, match=message):
            measure_keyphrases(**{"keyphrases": [["cat"]], "rankings": {"ours": [["cat"]]}, **changes})

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
