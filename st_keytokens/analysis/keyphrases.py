"""Key phrases: candidates, their rankings, and how those agree with the key phrases that people gave."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from st_keytokens.analysis.estimates import Estimate, check_resampling, mean_estimates
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.key_token_head import HeadSettings, KeyTokenHead
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.shared.markdown import markdown_table
from st_keytokens.terms.term_values import TermValues
from st_keytokens.terms.vocabulary import Vocabulary

__all__ = [
    "KeyphraseComparison",
    "candidate_phrases",
    "measure_keyphrases",
    "rank_by_embedding",
    "rank_by_key_tokens",
    "rank_by_tfidf",
]


_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_GAP = re.compile(r"\s+")
_ROWS = 32  # embeddings decoded at a time

Unit = Literal["phrase", "word"]


def measure_keyphrases(
    keyphrases: Sequence[Sequence[str]],
    rankings: Mapping[str, Sequence[Sequence[str]]],
    *,
    unit: Unit = "phrase",
    cuts: Sequence[int] = (5, 10, 15),
    normalize_word: Callable[[str], str] = str.casefold,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> KeyphraseComparison:
    """Precision, recall and F1 of ranked phrases against people's key phrases; the same matching for all rankings.

    Args:
        keyphrases: People's, of each text; those that are not in the text count as well, so that recall may not be
            able to reach 1.
        rankings: By name, phrases of each text, best first.
        unit: ``"phrase"``: two phrases match if all their normalised words are the same, in order. ``"word"``: what is
            ranked and matched are distinct words, a ranking's in order of its phrases.
        cuts: Numbers of phrases or words that are looked at. A text with fewer is divided by what it has, so that
            precision does not suffer from short texts.
        normalize_word: Of each word on both sides: case folding, or a stemmer.
        confidence: Of the intervals, between 0 and 1.
        samples: Resamplings of the texts.
        seed: Of the random numbers.

    Returns:
        The comparison.

    Raises:
        ValueError: If unit is unknown, a number out of its range, a ranking has not one list a text, or no text has
            a key phrase.

    >>> found = measure_keyphrases([["Search engines", "index"]], {"ours": [["index", "engine"]]}, cuts=[2])
    >>> {measure: estimate.value for measure, estimate in found.rows["ours"][2].items()}
    {'precision': 0.5, 'recall': 0.5, 'f1': 0.5}
    """
    check_choice("unit", unit, get_args(Unit))
    cuts = [checked_int("cuts", cut, minimum=1) for cut in cuts]
    check_resampling(confidence, samples)
    if not cuts or not rankings:
        raise ValueError(f"cuts and rankings must not be empty, got {len(cuts)} and {len(rankings)}.")
    for name, ranking in rankings.items():
        if len(ranking) != len(keyphrases):
            raise ValueError(
                f"rankings must have one list a text, got {len(ranking)} of {name!r} for {len(keyphrases)}."
            )
    wanted = [set(_items(phrases, unit, normalize_word)) for phrases in keyphrases]
    texts = [number for number, items in enumerate(wanted) if items]
    if not texts:
        raise ValueError(f"keyphrases must hold at least one, got none in {len(keyphrases)} texts.")
    rows: dict[str, dict[int, dict[str, Estimate]]] = {}
    f1_of_texts: dict[str, dict[int, list[float]]] = {}
    for name, ranking in rankings.items():
        found = [_items(ranking[number], unit, normalize_word) for number in texts]
        rows[name], f1_of_texts[name] = {}, {}
        for cut in cuts:
            values = np.array(
                [_rates(items[:cut], wanted[number]) for items, number in zip(found, texts, strict=True)]
            )
            estimates = mean_estimates(values, confidence=confidence, samples=samples, seed=seed)
            rows[name][cut] = dict(zip(("precision", "recall", "f1"), estimates, strict=True))
            f1_of_texts[name][cut] = values[:, 2].tolist()
    return KeyphraseComparison(unit, len(texts), len(keyphrases) - len(texts), rows, f1_of_texts)


@dataclass(frozen=True, eq=False)
class KeyphraseComparison:
    """What several rankings of the same texts' phrases reach.

    Attributes:
        unit: ``"phrase"`` or ``"word"``.
        text_count: Texts with key phrases, over which the means are.
        without_keyphrases: Texts without, which were left out.
        rows: For each ranking and cut, precision, recall and F1, each the mean over texts.
        f1_of_texts: For each ranking and cut the F1 of each text, for paired comparisons.
    """

    unit: Unit
    text_count: int
    without_keyphrases: int
    rows: dict[str, dict[int, dict[str, Estimate]]]
    f1_of_texts: dict[str, dict[int, list[float]]]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values of each text as JSON values."""
        return {
            "unit": self.unit,
            "text_count": self.text_count,
            "without_keyphrases": self.without_keyphrases,
            "rows": {
                name: {
                    str(cut): {measure: asdict(found) for measure, found in measures.items()}
                    for cut, measures in cuts.items()
                }
                for name, cuts in self.rows.items()
            },
        }

    def table(self) -> str:
        """A Markdown table, one row for each ranking."""
        cuts = list(next(iter(self.rows.values())))
        rows = [
            [name, *(e if measure == "f1" else e.value for cut in cuts for measure, e in found[cut].items())]
            for name, found in self.rows.items()
        ]
        return markdown_table(["", *(f"{label}@{cut}" for cut in cuts for label in ("P", "R", "F1"))], rows)


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


def rank_by_key_tokens(
    encoder: KeyTokenEncoder,
    texts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    embeddings: NDArray[np.float32] | None = None,
    settings: HeadSettings | None = None,
    batch_size: int = 32,
) -> list[list[str]]:
    """Candidates by what the text's embedding is decoded to.

    A word weighs the mean score of its tokens, a phrase the sum over its words of what is above zero.

    Args:
        encoder: Embeds and decodes the texts.
        texts: The texts.
        candidates: Phrases of each.
        embeddings: The texts' vectors, as ``KeyTokenEncoder.embed`` gives them. None: they are embedded.
        settings: Of the head, such as ``{"decode_with": "lm_head"}``. None: as it is set.
        batch_size: Texts a forward pass at most.

    Returns:
        The phrases of each text, the heaviest first; equal ones stay in order.

    Raises:
        TypeError: If a text is not a string.
        ValueError: If texts, candidates and embeddings differ in number, or see :meth:`KeyTokenEncoder.encode`.
    """
    _check_same_number(texts, candidates)
    rows = torch.from_numpy(encoder.embed(texts, batch_size=batch_size) if embeddings is None else embeddings)
    if len(rows) != len(texts):
        raise ValueError(f"embeddings must have one row a text, got {len(rows)} for {len(texts)}.")
    head = encoder.head.with_settings(**(settings or {}))
    ranked: list[list[str]] = []
    with torch.inference_mode():
        for start in range(0, len(texts), _ROWS):
            scores = _term_scores(head, rows[start : start + _ROWS])
            for row, phrases in zip(scores, candidates[start : start + _ROWS], strict=True):
                words = list(dict.fromkeys(word for phrase in phrases for word in words_of(phrase)))
                weights = dict(zip(words, _word_weights(encoder, words, row), strict=True))
                ranked.append(_by_sum(phrases, weights))
    return ranked


def rank_by_tfidf(texts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[str]]:
    """Candidates by TF-IDF of their words over these texts (scikit-learn's), a phrase the sum over its words.

    Args:
        texts: The texts, which also give the document frequencies.
        candidates: Phrases of each.

    Returns:
        The phrases of each text, the heaviest first; equal ones stay in order.

    Raises:
        ValueError: If texts and candidates differ in number.

    >>> rank_by_tfidf(["a cat, a dog and a cat", "one dog"], [["dog", "cat"], ["dog"]])
    [['cat', 'dog'], ['dog']]
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    _check_same_number(texts, candidates)
    vectorizer = TfidfVectorizer(analyzer=comparable)
    rows = vectorizer.fit_transform(texts)
    names = vectorizer.get_feature_names_out()
    ranked = []
    for number, phrases in enumerate(candidates):
        row = rows[number]
        ranked.append(_by_sum(phrases, dict(zip(names[row.indices], row.data.tolist(), strict=True))))
    return ranked


def rank_by_embedding(
    encoder: KeyTokenEncoder, texts: Sequence[str], candidates: Sequence[Sequence[str]], *, batch_size: int = 32
) -> list[list[str]]:
    """Candidates by the cosine of their own embedding with the text's, as KeyBERT ranks without diversification.

    Args:
        encoder: Whose dense embeddings; each distinct phrase is embedded once.
        texts: The texts.
        candidates: Phrases of each.
        batch_size: Texts a forward pass at most.

    Returns:
        The phrases of each text, the most similar first; equal ones stay in order.

    Raises:
        TypeError: If a text is not a string.
        ValueError: If texts and candidates differ in number, or see :meth:`KeyTokenEncoder.encode`.

    Source:
        Grootendorst, KeyBERT, https://github.com/MaartenGr/KeyBERT.
    """
    _check_same_number(texts, candidates)
    places = {phrase: place for place, phrase in enumerate(dict.fromkeys(p for row in candidates for p in row))}

    def directions(items: list[str]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = encoder.model.encode(
            items, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False
        )
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True).astype(np.float32)
        found: NDArray[np.float32] = rows / np.maximum(lengths, np.float32(1e-12))
        return found

    if not places:
        return [[] for _ in texts]
    whole, parts = directions(list(texts)), directions(list(places))
    ranked = []
    for vector, phrases in zip(whole, candidates, strict=True):
        scores = parts[[places[phrase] for phrase in phrases]] @ vector if phrases else np.zeros(0)
        ranked.append([phrases[i] for i in np.argsort(-scores, kind="stable")])
    return ranked


def _term_scores(head: KeyTokenHead, rows: torch.Tensor) -> Iterator[NDArray[np.float32] | TermValues]:
    """For each embedding what gives the scores of terms by their ids; ``-inf`` where one has none."""
    if isinstance(head.vocabulary, Vocabulary):
        yield from head.decode_scores(rows).cpu().numpy()
        return
    decoding = head.decoding()
    terms, places = np.unique(decoding.terms.cpu().numpy(), return_index=True)
    for row in decoding.scores(rows).cpu().numpy():
        yield TermValues(terms, row[places], -np.inf)


def _word_weights(
    encoder: KeyTokenEncoder, words: Sequence[str], scores: NDArray[np.float32] | TermValues
) -> list[float]:
    found = []
    for ids in encoder.literal_terms(words):
        values = scores[ids]
        values = values[np.isfinite(values)]  # the ridge decoder does not know every term
        found.append(max(0.0, float(values.mean())) if len(values) else 0.0)
    return found


def _by_sum(phrases: Sequence[str], weights: dict[str, float]) -> list[str]:
    scores = [sum(weights.get(word, 0.0) for word in words_of(phrase)) for phrase in phrases]
    return [phrases[i] for i in sorted(range(len(phrases)), key=lambda i: -scores[i])]


def _items(phrases: Sequence[str], unit: Unit, normalize_word: Callable[[str], str]) -> list[tuple[str, ...]]:
    """Distinct phrases, or distinct words, in order."""
    compared = [words for phrase in phrases if (words := comparable(phrase, normalize_word))]
    if unit == "word":
        compared = [(word,) for words in compared for word in words]
    return list(dict.fromkeys(compared))


def _rates(found: Sequence[tuple[str, ...]], wanted: set[tuple[str, ...]]) -> tuple[float, float, float]:
    hits = len(wanted.intersection(found))
    precision, recall = hits / max(len(found), 1), hits / len(wanted)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def words_of(text: str) -> list[str]:
    """The words of a text, as they are written: letters and digits, with hyphens and apostrophes inside."""
    return _WORD.findall(text)


def comparable(phrase: str, normalize_word: Callable[[str], str] = str.casefold) -> tuple[str, ...]:
    """A phrase as it is compared: its words, normalised."""
    return tuple(normalize_word(word) for word in words_of(phrase))


def _check_same_number(texts: Sequence[str], candidates: Sequence[Sequence[str]]) -> None:
    if isinstance(texts, str) or len(texts) != len(candidates):
        got = "one string" if isinstance(texts, str) else f"{len(candidates)} for {len(texts)}"
        raise ValueError(f"candidates must be one list for each text, got {got}.")
