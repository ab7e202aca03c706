"""Words as Unicode, Snowball and people understand them."""

from __future__ import annotations

import pickle
import random
import string
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_keytokens.terms.vocabulary import Vocabulary
from st_keytokens.terms.words import Words, WordVocabulary

ENGLISH, PLAIN = Words("english"), Words()


def found(words, text):
    return [text[start:end] for _, start, end in words.spans(text)]


class TestSegmentation:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("The proteins' genomes.", ["The", "proteins", "genomes"]),
            ("don't O\u2019Neill's l'homme", ["don't", "O\u2019Neill's", "l'homme"]),
            ("hydrogen-like carbon", ["hydrogen", "like", "carbon"]),
            ("part XK-4402/7b, v2.0.1", ["part", "XK", "4402", "7b", "v2.0.1"]),
            ("3.14 and 1,000 %", ["3.14", "and", "1,000"]),
            ("snake_case camelCase", ["snake_case", "camelCase"]),
            ("mail a.b@example.org now", ["mail", "a.b", "example.org", "now"]),
            ("cafe\u0301 na\u00efve", ["cafe\u0301", "na\u00efve"]),
            (
                "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e9\u05dc\u05d5\u05dd",
                ["\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u05e9\u05dc\u05d5\u05dd"],
            ),
            ("\u05e6\u05d4\u05f4\u05dc", ["\u05e6\u05d4\u05f4\u05dc"]),
            (
                "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",
                ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092d\u093e\u0937\u093e"],
            ),
            (
                "'apples', 'oranges' and \u2018pears\u2019, the 'elite'",
                ["apples", "oranges", "and", "pears", "the", "elite"],
            ),
            ("s\u025b\u0303.mo\u0281 and '\u025b\u0303.na", ["s\u025b\u0303.mo\u0281", "and", "\u025b\u0303.na"]),
            ('\u05e6\u05d4"\u05dc \u05d2\u05e8\u05f3', ['\u05e6\u05d4"\u05dc', "\u05d2\u05e8\u05f3"]),
            ("Bonjour\u202f! 10\u202f000 \u00ab\u202fpommes\u202f\u00bb", ["Bonjour", "10", "000", "pommes"]),
            ("\u0e01\u0e02 \u17d4 \u104a __ \u0f40", ["\u0e01\u0e02", "__", "\u0f40"]),
            ("  ... !? \U0001f600 ", []),
            ("", []),
        ],
    )
    def test_words(self, text, expected):
        assert found(PLAIN, text) == expected

    def test_white_space_ends_a_word(self):
        spaces = [chr(code) for code in range(0x3001) if chr(code).isspace()]
        text = "".join(f"a{space}1" for space in spaces)
        assert len(found(PLAIN, text)) == len(PLAIN([text])[0]) == 1 + len(spaces)

    def test_stop_words_however_they_are_written(self):
        assert found(Words(stop_words=["the", "don't"]), "The don\u2019t THE don't cat") == ["cat"]

    def test_scripts_without_spaces_by_pairs_of_characters(self):
        assert found(PLAIN, "\u6771\u4eac\u90fd is big") == ["\u6771\u4eac", "\u4eac\u90fd", "is", "big"]
        assert found(PLAIN, "\u5927") == ["\u5927"]
        assert found(PLAIN, "x\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35y")[0] == "x"

    def test_scripts_without_spaces_as_they_are_split(self):
        words = Words(split=lambda run: [run[:2], run[2:]])
        text = "in \u6771\u4eac\u90fd \u6771\u4eac"
        assert found(words, text) == ["in", "\u6771\u4eac", "\u90fd", "\u6771\u4eac"]
        assert words([text])[0][1] == words([text])[0][3]

    @given(st.text(max_size=60))
    def test_spans_and_terms_are_the_same(self, text):
        spans = ENGLISH.spans(text)
        assert [span.term for span in spans] == ENGLISH([text])[0].tolist()
        assert all(0 <= span.start < span.end <= len(text) for span in spans)
        starts = [span.start for span in spans]
        assert starts == sorted(starts)


class TestStems:
    def test_forms_are_one_term(self):
        assert len({ENGLISH.term(word) for word in ("protein", "Proteins", "PROTEINS", "protein\u2019s")}) == 1
        assert len({ENGLISH.term(word) for word in ("measure", "measured", "measuring")}) == 1
        assert len({PLAIN.term(word) for word in ("protein", "Protein", "proteins")}) == 2

    @pytest.mark.parametrize(
        ("language", "forms"),
        [
            ("hindi", ["\u0915\u093f\u0924\u093e\u092c", "\u0915\u093f\u0924\u093e\u092c\u0947\u0902"]),
            ("nepali", ["\u0915\u093f\u0924\u093e\u092c", "\u0915\u093f\u0924\u093e\u092c\u0939\u0930\u0942"]),
            (
                "tamil",
                [
                    "\u0baa\u0bc1\u0ba4\u0bcd\u0ba4\u0b95\u0bae\u0bcd",
                    "\u0baa\u0bc1\u0ba4\u0bcd\u0ba4\u0b95\u0b99\u0bcd\u0b95\u0bb3\u0bcd",
                ],
            ),
            ("arabic", ["\u0643\u062a\u0628", "\u0627\u0644\u0643\u064f\u062a\u064f\u0628"]),
        ],
    )
    def test_words_with_vowel_signs_have_stems(self, language, forms):
        """book, books."""
        assert len({Words(language).term(form) for form in forms}) == 1

    def test_codes_and_numbers_stay_as_they_are(self):
        assert ENGLISH.stem("4402s") == "4402s" and ENGLISH.stem("v2.0.1") == "v2.0.1"
        assert ENGLISH.term("4402") != ENGLISH.term("4403")

    def test_composed_and_decomposed_are_one(self):
        assert PLAIN.term("caf\u00e9") == PLAIN.term("cafe\u0301")
        assert PLAIN.term("wi\u00adfi") == PLAIN.term("wifi")

    @pytest.mark.parametrize(
        ("printed", "word"),
        [
            ("classi\ufb01ers", "classifiers"),
            ("o\ufb03ce", "office"),
            ("\uff33\uff54", "St"),
            ("\uff12\uff10", "20"),
            ("\ufefb\ufe8e", "\u0644\u0627\u0627"),
        ],
    )
    def test_letters_as_they_are_printed(self, printed, word):
        """As texts of PDFs have them: ligatures, the shapes of Arabic letters, letters of full width."""
        assert ENGLISH.term(printed) == ENGLISH.term(word)
        assert found(PLAIN, f"a {printed}.") == ["a", printed]

    def test_lower_case_as_its_language_does(self):
        assert Words("turkish").stem("I\u015eIK")[0] == "\u0131"
        assert PLAIN.stem("I") == "i"
        assert PLAIN.term("\u0130stanbul") == PLAIN.term("Istanbul")
        assert Words("german").stem("H\u00e4user") == Words("german").stem("haus".replace("a", "\u00e4") + "er")

    def test_other_languages_are_other_terms(self):
        assert len({Words(name).hash for name in (None, "english", "german", "french")}) == 4
        with pytest.raises(ValueError, match=r"language must be one of 'arabic'.*, got 'klingon'"):
            Words("klingon")


class TestIds:
    def test_are_the_same_everywhere(self):
        """Saved indexes name terms by these."""
        assert [PLAIN.term(word) for word in ("protein", "\u6771\u4eac")] == [439387546, 146018647]
        assert PLAIN.vocab_size == 2**29

    def test_collisions_are_as_few_as_a_hash_has(self):
        generator = random.Random(0)
        words = {"".join(generator.choices(string.ascii_lowercase, k=8)) for _ in range(300_000)}
        expected = len(words) ** 2 / 2 / 2**29  # 84
        assert 0.6 * expected < PLAIN.collisions(words) < 1.4 * expected
        assert PLAIN.collisions(["one", "One", "two"]) == 0


def test_threads_and_pickle():
    texts = [f"proteins {i} measured genes" for i in range(200)]
    words = Words("english")
    expected = Words("english")(texts)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: words(texts), range(16)))
    assert all(np.array_equal(a, b) for each in results for a, b in zip(each, expected, strict=True))
    again = pickle.loads(pickle.dumps(words))
    assert again.hash == words.hash and np.array_equal(again(texts)[7], expected[7])


class TestTokensAsWords:
    def vocabulary(self) -> WordVocabulary:
        tokens = ["Ġtelescop", "Ġlight", "Ġtelescopes", "Ġtelescope", "Ġlights", "Ġimag", "Ġimage", "Ġof", "scope"]
        vocabulary = WordVocabulary(Words("english"), Vocabulary(tokens, kind="byte-level"))
        assert np.count_nonzero(vocabulary.terms) == 8
        return vocabulary

    def test_a_word_is_shown_not_a_piece_of_words(self):
        vocabulary = self.vocabulary()
        terms = dict.fromkeys(vocabulary.terms.tolist())
        assert [vocabulary.strings[term] for term in terms if term] == ["telescopes", "light", "image", "of"]

    def test_what_a_text_has_comes_before_tokens(self):
        vocabulary = self.vocabulary()
        vocabulary.words(["The telescope made an image of the lights."])
        terms = dict.fromkeys(vocabulary.terms.tolist())
        assert [vocabulary.strings[term] for term in terms if term] == ["telescope", "lights", "image", "of"]
