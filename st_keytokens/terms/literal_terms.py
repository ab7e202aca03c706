"""Texts as they come: checked, made encodable, and cut into their own tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from st_keytokens.terms.vocabulary import Vocabulary

_MAX_TEXT = 300  # characters: a query; of longer texts, too many words are new
_MAX_WORDS, _MAX_WORD = 65_536, 32  # remembered, and characters of one: some megabytes

_LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer"}
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD_PATTERNS = {_LETTERS + digits + _REST for digits in (r"\p{N}", r"\p{N}{1,3}")}  # of Qwen, of Llama 3


class WordTerms:
    """Remembers the terms of words, and joins them for a text that is ASCII with single spaces.

    Args:
        find: The terms of any text.
    """

    def __init__(self, find: Callable[[str], list[int]]) -> None:
        self._find = find
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int] | None:
        """Terms in order and with repetition; None for a text that is longer than a query or not as plain as that."""
        if len(text) > _MAX_TEXT or not text.isascii():
            return None
        words = text.split(" ")
        if words != text.split():
            return None
        terms: list[int] = []
        for word in words:
            found = self._known.get(word)
            terms += self._add(word) if found is None else found
        return terms

    def _add(self, word: str) -> list[int]:
        found = self._find(" " + word)
        if len(word) <= _MAX_WORD:
            if len(self._known) >= _MAX_WORDS:
                self._known.clear()
            self._known[word] = found
        return found


def is_word_by_word(tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a text that is ASCII with single spaces are those of its words, each with its space.

    That is so where no added token holds or swallows a space, the normaliser changes characters one by one, and a
    first pre-tokenizer cuts before or at every space, so that nothing later sees more than a word.

    Args:
        tokenizer: Any; only kinds that are known to be so count.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or " " in token.content for token in added):
        return False
    if any(part["type"] not in _LOCAL_NORMALIZERS for part in _parts(_state(tokenizer.normalizer), "normalizers")):
        return False
    first: dict[str, Any] = next(_parts(_state(tokenizer.pre_tokenizer), "pretokenizers"), {"type": None})
    return (
        first["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
        or (first["type"] == "ByteLevel" and first["use_regex"])
        or (first["type"] == "Metaspace" and first["split"])
        or (first["type"] == "Split" and first["pattern"].get("Regex") in _WORD_PATTERNS and not first["invert"])
    )


def _state(component: Any) -> dict[str, Any] | None:
    """The settings of a tokenizer's component, without those of its vocabulary, which take a second to read."""
    state: dict[str, Any] | None = None if component is None else json.loads(component.__getstate__())
    return state


def _parts(component: dict[str, Any] | None, members: str) -> Iterator[dict[str, Any]]:
    """The settings of a component or, where it is a sequence, of its members in order."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for member in component[members]:
        yield from _parts(member, members)


_SURROGATES = re.compile("[\ud800-\udfff]")


def check_texts(texts: str | Sequence[str], name: str = "texts") -> list[str]:
    """A list of texts that every tokenizer accepts.

    Args:
        texts: One text or several. Lone surrogates, which have no UTF-8 form, become U+FFFD.
        name: What the argument is called, for the error.

    Returns:
        A new list of strings; empty and blank ones are kept.

    Raises:
        TypeError: If something in it is not a string.

    >>> check_texts("one")
    ['one']
    """
    items = [texts] if isinstance(texts, str) else list(texts)
    for position, text in enumerate(items):
        if isinstance(text, str):
            items[position] = text if text.isascii() else _SURROGATES.sub("\ufffd", text)
        else:
            raise TypeError(
                f"{name} must be a string or a sequence of strings, got {type(text).__name__} at position {position}. "
                "Turn it into text first."
            )
    return items


class LiteralTokenizer:
    """Finds the literal terms of a text: its own tokens, folded, without prompt, template or special tokens.

    The text is tokenised alone and whole: neither a prompt nor the model's maximum length touches it. Safe to use from
    several threads, and picklable.

    Args:
        tokenizer: The model's tokenizer, from transformers.
        vocabulary: The vocabulary of the same tokenizer.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._slow = self._words = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if isinstance(backend, Tokenizer):
            # A copy: the model's own tokenizer is told to truncate and to pad whenever it is used.
            self._fast = Tokenizer.from_str(backend.to_str())
            self._fast.no_truncation()
            self._fast.no_padding()
        else:
            self._slow = tokenizer
        bare, spaced = self._tokenize(["a", " a"])
        # What makes the first word of a text look like any other: a space, where the tokenizer adds none itself.
        is_spaced = bare != spaced and len(spaced) <= len(bare) + (vocabulary.kind == "byte-level")
        self._prefix = " " if is_spaced and vocabulary.kind in ("byte-level", "metaspace") else ""
        if self._slow is None and (self._prefix or bare == spaced) and is_word_by_word(self._fast):
            self._words = WordTerms(self._terms_of_word)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Term ids of each text, int64, in order and with repetition; empty for a text without terms."""
        found: list[np.ndarray] = [np.zeros(0, np.int64)] * len(texts)
        others: dict[int, str] = {}
        for i, text in enumerate(texts):
            text = text.lstrip()
            terms = None if self._words is None else self._words(text)
            if terms is None:
                others[i] = self._prefix + text
            else:
                found[i] = np.array(terms, dtype=np.int64)
        if others:
            for i, ids in zip(others, self._tokenize(list(others.values())), strict=True):
                found[i] = np.array(self._terms(ids), dtype=np.int64)
        return found

    def _terms_of_word(self, spaced: str) -> list[int]:
        return self._terms(self._tokenize([spaced])[0])

    def _terms(self, ids: list[int]) -> list[int]:
        size = self._vocabulary.vocab_size  # added tokens may lie beyond the model's rows
        terms: list[int] = self._vocabulary.term_ids([i for i in ids if i < size]).tolist()
        return terms

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if self._slow is not None:
            return [self._slow(text, add_special_tokens=False, truncation=False)["input_ids"] for text in texts]
        if len(texts) == 1:  # without the cost of starting threads
            return [self._fast.encode(texts[0], add_special_tokens=False).ids]
        return [encoding.ids for encoding in self._fast.encode_batch(texts, add_special_tokens=False)]


class TokenSplit:
    """Cuts a run of a script without spaces as a tokenizer does.

    Args:
        tokenizer: The model's; a copy is used, made with the first run: its own is told to truncate and to pad.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, run: str) -> list[str]:
        """The pieces, in order; a character that is several tokens is one piece."""
        pieces: list[str] = []
        end = 0
        for start, stop in self._copy.encode(run, add_special_tokens=False).offsets:
            if stop > max(start, end):
                pieces.append(run[max(start, end) : stop])
                end = stop
        return pieces

    @cached_property
    def _copy(self) -> Tokenizer:
        copied = Tokenizer.from_str(self._tokenizer.to_str())
        copied.no_truncation()
        copied.no_padding()
        return copied
