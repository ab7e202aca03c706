from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SENTENCES, build_byte_level_tokenizer, build_wordpiece_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from st_keytokens.terms.literal_terms import LiteralTokenizer, WordTerms, is_word_by_word
from st_keytokens.terms.vocabulary import Vocabulary

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    regex = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([regex, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def bpe(pre_tokenizer: Any, normalizer: Any = None, added: tuple[AddedToken, ...] = ()) -> Tokenizer:
    """A BPE of 500 tokens; byte-level, unless it is for SentencePiece's way of writing spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    is_metaspace = isinstance(pre_tokenizer, pre_tokenizers.Metaspace) or pre_tokenizer is None
    tokenizer.decoder = decoders.Metaspace() if is_metaspace else decoders.ByteLevel()
    alphabet = list(map(chr, range(33, 127))) if is_metaspace else pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<unk>", "<pad>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.add_tokens(list(added))
    return tokenizer


@functools.cache
def kind(name: str) -> PreTrainedTokenizerFast:
    if name == "wordpiece":
        return build_wordpiece_tokenizer()
    if name == "gpt2":
        return build_byte_level_tokenizer()
    built = {
        "gpt2, adding a space": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True), normalizers.Lowercase()),
        "qwen": lambda: bpe(split(QWEN), normalizers.NFC()),
        "llama 3": lambda: bpe(split(LLAMA3), added=(AddedToken("<think>", normalized=False),)),
        "metaspace": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="always")),
        "metaspace, bare": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="never")),
        "whitespace": lambda: bpe(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])),
    }
    return PreTrainedTokenizerFast(tokenizer_object=built[name](), unk_token="<unk>", pad_token="<pad>")


KINDS = ["wordpiece", "gpt2", "gpt2, adding a space", "qwen", "llama 3", "metaspace", "metaspace, bare", "whitespace"]

words = st.one_of(
    st.sampled_from([word for sentence in SENTENCES[:20] for word in sentence.split()]),
    st.sampled_from(
        ["Gene's", "it'LL", "'s", "x2", "1999", "12345", "a-b", "...", "<think>", "<unk>x", "[CLS]", "\0"]
    ),
    st.text(st.characters(max_codepoint=127), max_size=6),
    st.text(max_size=3),
)
texts = st.builds(
    lambda parts, gap: gap.join(parts), st.lists(words, max_size=8), st.sampled_from([" "] * 8 + ["  ", "\n"])
)


class TestWordByWord:
    @pytest.mark.parametrize("name", KINDS)
    def test_terms_are_those_of_the_whole_text(self, name):
        tokenizer = kind(name)
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        literal = LiteralTokenizer(tokenizer, vocabulary)
        backend = tokenizer.backend_tokenizer
        assert is_word_by_word(backend)

        @settings(max_examples=80)
        @given(text=texts)
        def check(text: str) -> None:
            (found,) = literal([text])
            whole = literal._prefix + text.lstrip()
            expected = vocabulary.term_ids(backend.encode(whole, add_special_tokens=False).ids)
            assert np.array_equal(found, expected)

        check()

    def test_is_used(self):
        literal = LiteralTokenizer(kind("qwen"), Vocabulary.from_tokenizer(kind("qwen")))
        assert literal._words is not None
        assert literal._words("Stars form in 1999") is not None

    @pytest.mark.parametrize(
        "tokenizer",
        [
            bpe(pre_tokenizers.ByteLevel(), normalizers.Prepend("x")),
            bpe(None, normalizers.Replace(" ", "▁")),
            bpe(pre_tokenizers.Metaspace(split=False)),
            bpe(split(r"\w+ \w+|\s+|\S")),
            bpe(pre_tokenizers.ByteLevel(use_regex=False)),
            bpe(pre_tokenizers.ByteLevel(), added=(AddedToken("New York"),)),
            bpe(pre_tokenizers.ByteLevel(), added=(AddedToken("<mask>", lstrip=True),)),
            bpe(pre_tokenizers.ByteLevel(), added=(AddedToken("<mask>", rstrip=True),)),
        ],
    )
    def test_others_are_not(self, tokenizer):
        assert not is_word_by_word(tokenizer)


class TestWordTerms:
    @pytest.fixture
    def asked(self) -> list[str]:
        return []

    @pytest.fixture
    def joined(self, asked) -> WordTerms:
        def find(text: str) -> list[int]:
            asked.append(text)
            return [len(text), 7]

        return WordTerms(find)

    def test_a_word_is_asked_for_once_with_its_space(self, joined, asked):
        assert joined("a bc a") == [2, 7, 3, 7, 2, 7]
        assert joined("bc a") == [3, 7, 2, 7]
        assert asked == [" a", " bc"]

    @pytest.mark.parametrize("text", ["", " ", " a", "a ", "a  b", "a\nb", "a\tb", "é", "a\x1cb", "a " * 150 + "b"])
    def test_texts_that_are_not_plain(self, joined, asked, text):
        assert joined(text) is None
        assert asked == []

    def test_what_is_remembered_is_bounded(self, joined, asked):
        joined("x" * 33)
        joined("x" * 33)
        assert len(asked) == 2
        for number in range(65_536):
            joined(str(number))
        joined("new")
        asked.clear()
        joined("65535")
        joined("new")
        assert asked == [" 65535"]

    def test_an_answer_is_not_shared(self, joined):
        joined("a").append(99)  # type: ignore[union-attr]
        assert joined("a") == [2, 7]
