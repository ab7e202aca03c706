from __future__ import annotations

import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from st_keytokens.terms.literal_terms import LiteralTokenizer, check_texts
from st_keytokens.terms.vocabulary import Vocabulary


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "[CLS]", "red", "Red", "fox", "query", ":"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", model_max_length=4)


class TestCheckTexts:
    def test_one_text_becomes_a_list(self):
        assert check_texts("a b") == ["a b"]

    def test_odd_texts_pass_unchanged(self):
        odd = ["", " \n", "nul\0", "😀", "שלום", "x" * 1_000_000]
        assert check_texts(odd) == odd

    def test_lone_surrogates_are_replaced_and_the_input_is_kept(self):
        given = ["a\ud800b"]
        assert check_texts(given) == ["a\ufffdb"]
        assert given == ["a\ud800b"]

    def test_other_types_are_refused_by_position(self):
        with pytest.raises(TypeError, match=r"queries must be .* got NoneType at position 1"):
            check_texts(["a", None], "queries")  # type: ignore[list-item]


class TestLiteralTokenizer:
    def test_folds_keeps_repetition_and_leaves_special_tokens_out(self, tokenizer):
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        literal = LiteralTokenizer(tokenizer, vocabulary)
        (found,) = literal(["Red fox red [CLS] unheard"])
        assert found.tolist() == [2, 4, 2]

    def test_is_whole_whatever_the_model_was_told(self, tokenizer):
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        literal = LiteralTokenizer(tokenizer, vocabulary)
        tokenizer("fox " * 9, truncation=True, max_length=3)
        assert [len(f) for f in literal(["fox " * 50, "fox", ""])] == [50, 1, 0]

    def test_alone_and_in_company(self, byte_level_tokenizer):
        literal = LiteralTokenizer(byte_level_tokenizer, Vocabulary.from_tokenizer(byte_level_tokenizer))
        texts = ["Stars form", "", "two  gaps", "Sterne für\nalle", " stars", "x" * 400 + " stars"]
        for text, found in zip(texts, literal(texts), strict=True):
            assert found.dtype == np.int64
            assert np.array_equal(found, literal([text])[0])
        assert literal([]) == []

    def test_slow_tokenizer(self):
        words = ["[UNK]", "red", "Red", "fox"]

        class SlowTokenizer:
            all_special_ids = (0,)

            def get_vocab(self):
                return {word: i for i, word in enumerate(words)}

            def __call__(self, text, add_special_tokens, truncation):
                assert (add_special_tokens, truncation) == (False, False)
                return {"input_ids": [words.index(word) if word in words else 0 for word in text.split()]}

        tokenizer = SlowTokenizer()
        found = LiteralTokenizer(tokenizer, Vocabulary.from_tokenizer(tokenizer))(["Red fox red unheard", ""])
        assert [terms.tolist() for terms in found] == [[1, 3, 1], []]

    def test_travels(self, tokenizer):
        literal = LiteralTokenizer(tokenizer, Vocabulary.from_tokenizer(tokenizer))
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(literal))(["fox red"])[0], literal(["fox red"])[0])
