from __future__ import annotations

import json

import pytest

from st_keytokens.analysis import measure_keyphrases


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
