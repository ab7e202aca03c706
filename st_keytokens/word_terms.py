"""Terms of short plain texts, joined from those of their words: most words of a query have been tokenised before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import Tokenizer

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
    content = json.loads(tokenizer.to_str())
    if any(token["lstrip"] or token["rstrip"] or " " in token["content"] for token in content["added_tokens"]):
        return False
    if any(part["type"] not in _LOCAL_NORMALIZERS for part in _parts(content["normalizer"], "normalizers")):
        return False
    first: dict[str, Any] = next(_parts(content["pre_tokenizer"], "pretokenizers"), {"type": None})
    return (
        first["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
        or (first["type"] == "ByteLevel" and first["use_regex"])
        or (first["type"] == "Metaspace" and first["split"])
        or (first["type"] == "Split" and first["pattern"].get("Regex") in _WORD_PATTERNS and not first["invert"])
    )


def _parts(component: dict[str, Any] | None, members: str) -> Iterator[dict[str, Any]]:
    """The settings of a component or, where it is a sequence, of its members in order."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for member in component[members]:
        yield from _parts(member, members)
