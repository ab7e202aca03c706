"""Phrases of a text that may be its key phrases, and when two phrases are the same."""

from __future__ import annotations

import re
from collections.abc import Callable

from st_keytokens.checks import checked_int

__all__ = ["candidate_phrases", "comparable", "words_of"]

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_GAP = re.compile(r"\s+")


def words_of(text: str) -> list[str]:
    """The words of a text: letters and digits, with hyphens and apostrophes inside.

    Args:
        text: Any text.

    Returns:
        The words in order, as they are written.

    >>> words_of("Bohr's model: a separate-account (2nd)")
    ["Bohr's", 'model', 'a', 'separate-account', '2nd']
    """
    return _WORD.findall(text)


def comparable(phrase: str, normalize_word: Callable[[str], str] = str.casefold) -> tuple[str, ...]:
    """A phrase as it is compared: its words, normalised.

    Args:
        phrase: Any phrase.
        normalize_word: Of each word; a stemmer, for instance.

    Returns:
        The normalised words.

    >>> comparable("Human  Cognition")
    ('human', 'cognition')
    """
    return tuple(normalize_word(word) for word in words_of(phrase))


def candidate_phrases(text: str, max_words: int = 3) -> list[str]:
    """Runs of up to so many words that could be a key phrase: no stop word in it, nothing but a space between words.

    Args:
        text: Any text.
        max_words: The longest run.

    Returns:
        Distinct phrases, casefolded, in order of their first appearance; words of one character are none.

    Raises:
        ValueError: If ``max_words`` is below 1.

    >>> candidate_phrases("The search engine, and the index.", 2)
    ['search', 'search engine', 'engine', 'index']
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    checked_int("max_words", max_words, minimum=1)
    words = list(_WORD.finditer(text))
    found: dict[str, None] = {}
    for start, first in enumerate(words):
        phrase, end = "", first.start()
        for word in words[start : start + max_words]:
            bare = word[0].casefold()
            gap = text[end : word.start()]
            if bare in ENGLISH_STOP_WORDS or len(bare) < 2 or (phrase and not _GAP.fullmatch(gap)):
                break
            phrase, end = f"{phrase} {bare}".strip(), word.end()
            found.setdefault(phrase)
    return list(found)
