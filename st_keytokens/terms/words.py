"""Terms that are words: found by Unicode's rules, lower-cased, stemmed, and named by a hash of what is left.

A word that nobody has seen before has an id, too, so that a name in a new document is found. Ids are 29 bits wide, as
much as every engine takes; among a million different words some 900 pairs share one.
"""

from __future__ import annotations

import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from hashlib import blake2b
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import regex
import Stemmer
import torch
from numpy.typing import NDArray

from st_keytokens.shared.checks import check_choice
from st_keytokens.shared.hashes import fingerprint
from st_keytokens.terms.vocabulary import Vocabulary

__all__ = ["WordNames", "WordSpan", "WordVocabulary", "Words"]

VERSION = 1  # part of the hash: counted up where older indexes have to be refused, not for a few words that change
_BITS = 29
# Words of Unicode Standard Annex 29, or a letter that it leaves open; of the properties of characters, since the
# library's own boundaries are others from 2026.11.18 on: "'apples'" was "'apples" before.
_LETTER, _HEBREW, _DIGIT = r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]", r"\p{WB=Hebrew_Letter}", r"\p{WB=Numeric}"
_MARKS = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*+"
_QUOTE, _QUOTES = r"\p{WB=Single_Quote}", r"\p{WB=Double_Quote}"
_WORD = regex.compile(
    rf"""(?V1x)
    (?: {_LETTER}++ {_MARKS} (?: [\p{{WB=MidLetter}}\p{{WB=MidNumLet}}{_QUOTE}] {_MARKS} (?={_LETTER})
                               | (?<={_HEBREW}{_MARKS}) (?: {_QUOTE} {_MARKS} | {_QUOTES} {_MARKS} (?={_HEBREW}) ) )?
      | {_DIGIT}++ {_MARKS} (?: [\p{{WB=MidNum}}\p{{WB=MidNumLet}}{_QUOTE}] {_MARKS} (?={_DIGIT}) )?
      | [\p{{WB=ExtendNumLet}}--\s]++ {_MARKS}
    )++ | \w {_MARKS}"""
)
_HOLDS_LETTER, _LETTERS = regex.compile(r"\w"), regex.compile(r"[\p{L}\p{M}']+")
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー々〆]"
_RUNS = regex.compile(rf"({_UNSPACED}[{_UNSPACED[1:-1]}\p{{M}}]*)")
_INVISIBLE = regex.compile(r"[\p{Cf}]")  # soft hyphens, joiners, marks of direction
_FORMS = regex.compile(r"[\uFB00-\uFDFF\uFE70-\uFEFF\uFF00-\uFFEF]+")  # ligatures, Arabic shapes, full width
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})
_DOTTED = str.maketrans({"\u0130": "i", "I": "\u0131"})
_REMEMBERED, _LONGEST = 1 << 17, 64  # strings between white space, and characters of one


class WordSpan(NamedTuple):
    """A term in a text.

    Attributes:
        term: Its id.
        start: Where it begins, in characters.
        end: Where it ends.
    """

    term: int
    start: int
    end: int


class Words:
    """Finds the terms of texts that are written in words. Safe for threads, and picklable.

    Where a script is written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), terms are what ``split``
    makes of a run of it, such as a model's own tokens; without it, each two characters in a row.

    Args:
        language: Name of one of Snowball's stemmers, such as ``"english"`` (:func:`Stemmer.algorithms`), which also
            decides how letters become lower case; None: words as they are, in lower case.
        split: Cuts a run of a script without spaces; its name is not part of :attr:`hash`.
        stop_words: Words that are no terms, in lower case. None by default: idf makes them count little, in every
            language, and a query of nothing else finds what it says.

    Attributes:
        language: As given.
        stop_words: As given.
        vocab_size: Number of ids, ``2 ** 29``.
        hash: Names what decides which term a word is: language, stop words and rules; not the stemmer's version.
        stemmer: Version of PyStemmer that the terms are of; None without a language. See :meth:`keeping`.
        kept: Terms that another version of it made, by word.
        seen: A word of each term that was found in a text.

    Raises:
        TypeError: If ``stop_words`` is one string.
        ValueError: If there is no stemmer of that name.

    Examples:
        >>> words = Words("english")
        >>> [words.stem(word) for word in ("Proteins", "measured", "Müller’s", "4402", "snake_case")]
        ['protein', 'measur', 'müller', '4402', 'snake_case']
        >>> text = "The proteins' genomes"
        >>> [text[start:end] for _, start, end in words.spans(text)]
        ['The', 'proteins', 'genomes']
    """

    def __init__(
        self,
        language: str | None = None,
        split: Callable[[str], Sequence[str]] | None = None,
        stop_words: Iterable[str] = (),
    ) -> None:
        if language is not None:
            check_choice("language", language, Stemmer.algorithms())
        if isinstance(stop_words, str):
            raise TypeError(f"stop_words must be an iterable of words, got one string, {stop_words!r:.60}.")
        self.language, self.stop_words = language, frozenset(stop_words)
        self.vocab_size = 1 << _BITS
        parts: dict[str, Any] = {"words": VERSION, "language": language, "bits": _BITS}
        if self.stop_words:
            parts["stop_words"] = sorted(self.stop_words)
        self.hash = "words:" + fingerprint(parts)
        self.stemmer: str | None = None if language is None else _stemmer_version()
        self.kept: dict[str, int] = {}
        self._split = split
        self._set_up()

    def with_split(self, split: Callable[[str], Sequence[str]] | None) -> Words:
        """The same words, with another way of cutting scripts without spaces; itself where it has one."""
        if self._split is not None:
            return self
        return Words(self.language, split, self.stop_words).keeping(self.kept, self.stemmer)

    def keeping(self, terms: Mapping[str, int], stemmer: str | None) -> Words:
        """The same words, but those that another version of the stemmer made other terms of are these.

        Snowball's rules change: with PyStemmer 2.2 "university" is ``univers``, with 3.1 ``universiti``. What was
        calibrated and indexed with the one is found with the other.

        Args:
            terms: Of words in lower case, those whose term is another one with the stemmer at hand.
            stemmer: The version of PyStemmer; None: not known.

        Returns:
            Words whose :attr:`stemmer` is that version.

        Example:
            >>> words = Words("english")
            >>> words = words.keeping({"university": words.term("universe")}, "2.2.0.3")
            >>> words.term("University") == words.term("universe")
            True
        """
        words = Words(self.language, self._split, self.stop_words)
        words.kept, words.stemmer = dict(terms), stemmer
        return words

    def _set_up(self) -> None:
        self._stemmer = None if self.language is None else Stemmer.Stemmer(self.language, 0)
        self._lock = threading.Lock()  # a stemmer works for one thread at a time
        self._known: dict[str, list[int]] = {}
        self.seen: dict[int, str] = {}

    def __call__(self, texts: Iterable[str]) -> list[NDArray[np.int64]]:
        """Terms of each text, int64, in order and with repetition; empty for a text without a word."""
        return [np.array(self._terms(text), dtype=np.int64) for text in texts]

    def _terms(self, text: str) -> list[int]:
        terms: list[int] = []
        for part in text.split():  # white space always ends a word
            found = self._known.get(part)
            terms += self._add(part) if found is None else found
        return terms

    def _add(self, part: str) -> list[int]:
        found = []
        for word, _ in self._words(part):
            found.append(term := self.term(word))
            self.seen.setdefault(term, self.lower(word))
        if len(part) <= _LONGEST:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[part] = found
        return found

    def spans(self, text: str) -> list[WordSpan]:
        """Where in a text its terms are, in order.

        Args:
            text: The text.

        Returns:
            A span for each term, with repetition.
        """
        return [WordSpan(self.term(word), start, start + len(word)) for word, start in self._words(text)]

    def lower(self, word: str) -> str:
        """A word in lower case, as its language has it."""
        lower = (word.translate(_DOTTED) if self.language == "turkish" else word).lower()
        return lower.replace("i\u0307", "i")  # of a dotted capital, as in the name of Istanbul

    def stem(self, word: str) -> str:
        """What is left of a word; two words that leave the same are one term."""
        lower = self._as_meant(word)
        if self._stemmer is None or not _LETTERS.fullmatch(lower):  # codes and numbers stay as they are
            return lower
        with self._lock:
            return str(self._stemmer.stemWord(lower))

    def _as_meant(self, word: str) -> str:
        """In lower case, in one of the ways that a computer may write it."""
        if not word.isascii():
            word = _FORMS.sub(lambda forms: unicodedata.normalize("NFKC", forms.group()), _INVISIBLE.sub("", word))
            word = unicodedata.normalize("NFC", word).translate(_APOSTROPHES)
        return self.lower(word)

    def term(self, word: str) -> int:
        """The id of a word."""
        kept = self.kept.get(self.lower(word)) if self.kept else None
        return _id(self.stem(word)) if kept is None else kept

    def collisions(self, words: Iterable[str]) -> int:
        """How many terms share their id with another one.

        Args:
            words: Words, in any form.

        Returns:
            The number of different terms less that of different ids.
        """
        stems = {self.stem(word) for word in words}
        return len(stems) - len(set(map(_id, stems)))

    def _words(self, text: str) -> Iterator[tuple[str, int]]:
        """The words of a text and where they begin."""
        start = 0
        for number, run in enumerate(_RUNS.split(text)):
            found = self._cut(run) if number % 2 else ((word.group(), word.start()) for word in _WORD.finditer(run))
            for word, place in found:
                if _HOLDS_LETTER.search(word) and not (self.stop_words and self._as_meant(word) in self.stop_words):
                    yield word, start + place
            start += len(run)

    def _cut(self, run: str) -> Iterator[tuple[str, int]]:
        """The terms in a run of a script without spaces and where they begin in it."""
        if self._split is None:
            yield from ((run[i : i + 2], i) for i in range(max(1, len(run) - 1)))
            return
        end = 0
        for piece in self._split(run):
            place = run.find(piece, end) if piece else -1
            if place >= 0:
                yield piece, place
                end = place + len(piece)

    def __getstate__(self) -> dict[str, Any]:
        names = ("language", "stop_words", "vocab_size", "hash", "stemmer", "kept", "_split")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up()


class WordNames:
    """The words behind terms, as they stand in texts, and how often: what people are shown instead of stems.

    Args:
        words: Finds the words.
    """

    def __init__(self, words: Words) -> None:
        self.words = words
        self.counts: dict[int, Counter[str]] = {}

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        """Passes texts on, and counts their words."""
        for text in texts:
            if isinstance(text, str):
                for term, start, end in self.words.spans(text):
                    self.counts.setdefault(term, Counter())[self.words.lower(text[start:end])] += 1
            yield text

    def merge(self, other: WordNames) -> None:
        """Adds the counts of ``other``, which is not modified."""
        for term, names in other.counts.items():
            self.counts.setdefault(term, Counter()).update(names)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The whole state as tensors ``terms`` and ``counts`` (int64), and ``words`` (UTF-8, one per line)."""
        rows = [
            (term, word, count) for term, names in sorted(self.counts.items()) for word, count in sorted(names.items())
        ]
        text = "\n".join(word for _, word, _ in rows).encode("utf-8", "surrogatepass")
        return {
            "terms": torch.tensor([term for term, _, _ in rows], dtype=torch.int64),
            "counts": torch.tensor([count for _, _, count in rows], dtype=torch.int64),
            "words": torch.frombuffer(bytearray(text or b"\n"), dtype=torch.uint8),
        }

    def read_tensors(self, tensors: Mapping[str, torch.Tensor], stemmer: str | None) -> None:
        """Takes over what :meth:`to_tensors` gave; words stay the terms that they are there.

        Args:
            tensors: As given by it.
            stemmer: Version of PyStemmer that they were made with; None: not known.

        Raises:
            KeyError: If a tensor is missing.
            ValueError: If they do not fit together.
        """
        terms, counts = tensors["terms"].tolist(), tensors["counts"].tolist()
        words = tensors["words"].numpy().tobytes().decode("utf-8", "surrogatepass").split("\n") if terms else []
        self.counts = {}
        for term, word, count in zip(terms, words, counts, strict=True):
            self.counts.setdefault(term, Counter())[word] = count
        if stemmer != self.words.stemmer:
            others = {word: term for term, word in zip(terms, words, strict=True) if self.words.term(word) != term}
            self.words = self.words.keeping(others, stemmer)

    def best(self) -> dict[int, str]:
        """The most frequent word of each term, in lower case; of two, the one that comes first in the alphabet."""
        return {term: min(names, key=lambda name: (-names[name], name)) for term, names in self.counts.items()}


class WordVocabulary:
    """What a head decodes to where terms are words: of the LM head's tokens, those that are a word alone.

    Has the members of :class:`~st_keytokens.terms.vocabulary.Vocabulary` that decoding and reading need.

    Args:
        words: Finds the words of texts.
        tokens: The vocabulary of the model's tokenizer; None where it has none.
        names: Words by term, see :meth:`WordNames.best`.

    Attributes:
        names: As given.
        token_names: A token for each term that is one, once :attr:`terms` was asked for.
        vocab_size: Number of terms, far more than occur.
        hash: Of the words.
        fold: True: all forms of a word are one term.
    """

    kind = "words"
    fold = True

    def __init__(self, words: Words, tokens: Vocabulary | None = None, names: Mapping[int, str] | None = None) -> None:
        self.words, self.tokens, self.names = words, tokens, dict(names or {})
        self.vocab_size, self.hash = words.vocab_size, words.hash
        self.token_names: dict[int, str] = {}
        self.strings = _Strings(self)

    def take(self, names: WordNames) -> None:
        """Names words, and makes them the terms, as a calibration does."""
        self.names.update(names.best())
        kept, stemmer = names.words.kept, names.words.stemmer
        if (kept, stemmer) != (self.words.kept, self.words.stemmer):
            self.words = self.words.keeping(kept, stemmer)
            self.__dict__.pop("terms", None)
            self.__dict__.pop("is_masked", None)

    @property
    def token_count(self) -> int:
        """Number of rows of the LM head."""
        return 0 if self.tokens is None else self.tokens.vocab_size

    @cached_property
    def terms(self) -> NDArray[np.int64]:
        """The term of each token that is a word, int64, shape ``(token_count,)``; 0 for all others."""
        terms = np.zeros(self.token_count, dtype=np.int64)
        if self.tokens is None:
            return terms
        forms: dict[int, list[str]] = {}  # tokens of a term, the most frequent first, as tokenizers number them
        for row in np.flatnonzero(self.tokens.begins_word & ~self.tokens.is_masked).tolist():
            string = self.tokens.strings[row]
            spans = self.words.spans(string)
            if len(spans) == 1 and spans[0].end - spans[0].start == len(string):
                terms[row] = spans[0].term
                forms.setdefault(spans[0].term, []).append(string.lower())
        self.token_names = {term: self._name(held) for term, held in forms.items()}
        return terms

    def _name(self, forms: Sequence[str]) -> str:
        """The first form that is a word: not a piece of other forms, as "telescop" is, which has no plural in "s"."""
        return next((form for form in forms if form + "s" in forms or form != self.words.stem(form)), forms[0])

    @cached_property
    def is_masked(self) -> NDArray[np.bool_]:
        """Whether a token is none of these, bool, shape ``(token_count,)``."""
        masked: NDArray[np.bool_] = self.terms == 0
        return masked

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"WordVocabulary(language={self.words.language!r}, hash={self.hash[:12]!r})"


class _Strings:
    """Readable words by term: as the calibration's texts have them, as they were last seen, or a token."""

    def __init__(self, vocabulary: WordVocabulary) -> None:
        self._vocabulary = vocabulary

    def __getitem__(self, term: int) -> str:
        term, vocabulary = int(term), self._vocabulary
        name = vocabulary.names.get(term) or vocabulary.words.seen.get(term) or vocabulary.token_names.get(term)
        return f"<{term}>" if name is None else name


@cache
def _stemmer_version() -> str:
    return metadata.version("PyStemmer")


def _id(stem: str) -> int:
    digest = blake2b(stem.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> (32 - _BITS)
