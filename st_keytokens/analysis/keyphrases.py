"""Ranked phrases against the key phrases that people gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from st_keytokens.analysis.alignment_intervals import Estimate, mean_estimates
from st_keytokens.analysis.keyphrases_candidates import comparable
from st_keytokens.checks import check_choice, checked_float, checked_int

__all__ = ["KeyphraseComparison", "measure_keyphrases"]

Unit = Literal["phrase", "word"]


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
        head = ["", *(f"{label}@{cut}" for cut in cuts for label in ("P", "R", "F1"))]
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        for name, row in self.rows.items():
            cells = [
                str(found) if measure == "f1" else f"{found.value:.3f}"
                for cut in cuts
                for measure, found in row[cut].items()
            ]
            lines.append([name, *cells])
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)


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
    checked_int("samples", samples, minimum=1)
    if not 0 < checked_float("confidence", confidence) < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
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
