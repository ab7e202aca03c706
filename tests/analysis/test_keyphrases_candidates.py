from __future__ import annotations

import pytest

from st_keytokens.analysis import candidate_phrases
from st_keytokens.analysis.keyphrases import comparable, words_of


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
