"""Texts as they come: checked, made encodable, and cut into their own tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from st_keytokens.vocabulary import Vocabulary

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
        if not isinstance(text, str):
            raise TypeError(
                f"{name} must be a string or a sequence of strings, got {type(text).__name__} at position {position}. "
                "Turn it into text first."
            )
    return [_SURROGATES.sub("\ufffd", text) for text in items]


class LiteralTokenizer:
    """Finds the literal terms of a text: its own tokens, folded, without prompt, template or special tokens.

    The text is tokenised alone and whole: neither a prompt nor the model's maximum length touches it. Safe to use from
    several threads, and picklable.

    Args:
        tokenizer: The model's tokenizer, from transformers.
        vocabulary: The vocabulary of the same tokenizer.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._term_of = np.where(vocabulary.is_masked, -1, vocabulary.terms)
        self._slow = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if isinstance(backend, Tokenizer):
            # A copy: the model's own tokenizer is told to truncate and to pad whenever it is used.
            self._fast = Tokenizer.from_str(backend.to_str())
            self._fast.no_truncation()
            self._fast.no_padding()
        else:
            self._slow = tokenizer
        self._prefix = self._leading_space(vocabulary)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Term ids of each text, int64, in order and with repetition; empty for a text without terms."""
        found = (self._term_of[ids] for ids in self._tokenize([self._prefix + text.lstrip() for text in texts]))
        return [terms[terms >= 0] for terms in found]

    def _leading_space(self, vocabulary: Vocabulary) -> str:
        """What makes the first word of a text look like any other: a space, where the tokenizer adds none itself."""
        if vocabulary.kind not in ("byte-level", "metaspace"):
            return ""
        bare, spaced = (list(ids) for ids in self._tokenize(["a", " a"]))
        return " " if bare != spaced and len(spaced) <= len(bare) + (vocabulary.kind == "byte-level") else ""

    def _tokenize(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        if self._slow is not None:
            sequences = (self._slow(text, add_special_tokens=False, truncation=False)["input_ids"] for text in texts)
        elif len(texts) == 1:  # without the cost of starting threads
            sequences = (encoding.ids for encoding in [self._fast.encode(texts[0], add_special_tokens=False)])
        else:
            sequences = (encoding.ids for encoding in self._fast.encode_batch(list(texts), add_special_tokens=False))
        return (np.array(ids, dtype=np.int64) for ids in sequences)
