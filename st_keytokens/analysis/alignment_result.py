"""What measuring alignment gives: rates, their intervals, the values of each text, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_keytokens.analysis.alignment_intervals import Estimate
from st_keytokens.analysis.alignment_terms import Definition

__all__ = ["Alignment", "AlignmentComparison", "TextAlignments"]


@dataclass(frozen=True, eq=False)
class TextAlignments:
    """Alignment of each text that has terms.

    Attributes:
        positions: Which of the texts given, int64 ``(N,)``; those without terms are left out.
        term_counts: Distinct own terms, int64 ``(N,)``.
        is_hit: Whether an own term is among the first k decoded ones, bool ``(N, len(ks))``.
        shares: Own terms among the first k, of as many as could be, float64 ``(N, len(ks))``.
        local_alignment_rates: Own terms among the decoded ones up to the cut, over ``term_counts``, float64 ``(N,)``.
        precisions: The same over the number of those decoded ones, float64 ``(N,)``.
    """

    positions: NDArray[np.int64]
    term_counts: NDArray[np.int64]
    is_hit: NDArray[np.bool_]
    shares: NDArray[np.float64]
    local_alignment_rates: NDArray[np.float64]
    precisions: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Alignment:
    """How well decoded terms are the texts' own.

    Attributes:
        definition: ``"clean"`` or ``"nie2025"``.
        text_count: Texts that were measured.
        without_terms: Texts that were left out, since they have no terms.
        hits: Hit@k, by k: the share of texts with an own term among their first k decoded ones.
        shares: By k, own terms among the first k decoded ones over ``min(k, number of own terms)``, mean over texts.
        local_alignment_rate: Mean over texts of own terms among the decoded ones up to the cut over own terms.
        global_alignment_rate: The union of those over the union of all texts' own terms. It falls with the number of
            texts, so compare it on the same texts only.
        precision: Mean over texts of own terms among the decoded ones up to the cut over the number of those decoded
            ones. By the clean definition the cut is the number of own terms, and this is the local alignment rate
            wherever the vocabulary has that many terms.
        per_text: The values of each text.
    """

    definition: Definition
    text_count: int
    without_terms: int
    hits: dict[int, Estimate]
    shares: dict[int, Estimate]
    local_alignment_rate: Estimate
    global_alignment_rate: Estimate
    precision: Estimate
    per_text: TextAlignments

    def to_dict(self, *, has_texts: bool = False) -> dict[str, Any]:
        """Everything as JSON values.

        Args:
            has_texts: Whether the values of each text are among them.
        """
        content: dict[str, Any] = {
            "definition": self.definition,
            "text_count": self.text_count,
            "without_terms": self.without_terms,
            "hits": {str(k): asdict(found) for k, found in self.hits.items()},
            "shares": {str(k): asdict(found) for k, found in self.shares.items()},
            "local_alignment_rate": asdict(self.local_alignment_rate),
            "global_alignment_rate": asdict(self.global_alignment_rate),
            "precision": asdict(self.precision),
        }
        if has_texts:
            content["per_text"] = {name: values.tolist() for name, values in vars(self.per_text).items()}
        return content

    def table(self) -> str:
        """A Markdown table of one row."""
        return alignment_table({"": self})


@dataclass(frozen=True, eq=False)
class AlignmentComparison:
    """Alignment of the same texts under several embedders and settings.

    Attributes:
        rows: Alignments by name; the frequency baseline, which answers every text with the texts' own most frequent
            terms, is the last one where it was wanted.
        is_folded: Whether terms are tokens folded over case and space; otherwise they are raw tokens.
        max_document_share: Only terms that occur in at most this share of the texts were counted.
        calibration: For each embedder what its first component and logit statistics were fitted on:
            ``"calibration"``, the encoder's own, ``"these texts"``, or ``"none"`` where no variant needed any.
    """

    rows: dict[str, Alignment]
    is_folded: bool
    max_document_share: float
    calibration: dict[str, str]

    def to_dict(self, *, has_texts: bool = False) -> dict[str, Any]:
        """Everything as JSON values.

        Args:
            has_texts: Whether the values of each text are among them.
        """
        return {
            "terms": "folded" if self.is_folded else "raw tokens",
            "max_document_share": self.max_document_share,
            "calibration": self.calibration,
            "rows": {name: alignment.to_dict(has_texts=has_texts) for name, alignment in self.rows.items()},
        }

    def table(self) -> str:
        """A Markdown table, one row for each alignment."""
        return alignment_table(self.rows)


def alignment_table(rows: Mapping[str, Alignment], ks: Sequence[int] | None = None) -> str:
    """A Markdown table of alignments.

    Args:
        rows: Alignments by name.
        ks: Of which Hit@k and shares are shown. None: 1 and 10 where they were measured, else the largest one.

    Returns:
        Markdown; precision has a column only where it differs from the local alignment rate.
    """
    measured = list(next(iter(rows.values())).hits)
    ks = ([k for k in (1, 10) if k in measured] or measured[-1:]) if ks is None else list(ks)
    has_precision = any(row.precision != row.local_alignment_rate for row in rows.values())
    head = ["", *(f"Hit@{k}" for k in ks), *(f"share@{k}" for k in ks), "local rate", "global rate"]
    lines = [[*head, *(["precision"] if has_precision else [])]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, row in rows.items():
        values = [*(row.hits[k] for k in ks), *(row.shares[k] for k in ks)]
        values += [row.local_alignment_rate, row.global_alignment_rate, *([row.precision] if has_precision else [])]
        lines.append([name, *map(str, values)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
