"""What sweeping the shift gives: alignment and information by λ, the λ that they suggest, a table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_keytokens.analysis.alignment_result import Alignment
from st_keytokens.analysis.tables import markdown_table

__all__ = ["ShiftSweep", "mutual_information"]


@dataclass(frozen=True, eq=False)
class ShiftSweep:
    """Alignment of shifted embeddings ``h + λ u_1`` by λ.

    A shift means something only beside the ``u_1`` that it goes along: the one whose sign makes the mean projection
    of the backbone's embeddings positive.

    Attributes:
        shifts: Values of λ, in embedding units, ascending, shape ``(L,)``.
        alignments: Of the texts at each.
        information: Mutual information of the texts and their ``top_k`` decoded terms at each, in bits, ``(L,)``:
            how much one of a text's decoded terms tells about which of the texts it is. At most the binary logarithm
            of the number of texts, so compare it on the same texts only.
        coefficient: Mean projection of the embeddings that the component was fitted on; ``-coefficient`` takes the
            component away on average.
        variation: ``v_1``, the mean change of the first component from backbone to embedder, where it is known.
        top_k: Decoded terms of each text that the information is of.
        max_document_share: Only terms that occur in at most this share of the texts were counted.
    """

    shifts: NDArray[np.float64]
    alignments: tuple[Alignment, ...]
    information: NDArray[np.float64]
    coefficient: float
    variation: float | None
    top_k: int
    max_document_share: float

    @property
    def suggested_shift(self) -> float:
        """The λ with the highest global alignment rate, of several the smallest by size.

        It needs the texts and their own terms, but neither labels nor the embedder. The rate asks for different terms
        from different texts: terms that every text decodes to, be they function words, which too small a shift
        leaves, or those least like them, which too large a one brings, count once. It is a region rather than a
        point: the rate is flat around it, and it moves with the number of texts.
        """
        return self._best(np.array([alignment.global_alignment_rate.value for alignment in self.alignments]))

    @property
    def most_informative_shift(self) -> float:
        """The λ with the most information, of several the smallest by size; it does not even look at own terms."""
        return self._best(self.information)

    @property
    def best_aligned_shift(self) -> float:
        """The λ with the highest local alignment rate, of several the smallest by size.

        Function words, which most texts hold, weigh in it as much as others do.
        """
        return self._best(np.array([alignment.local_alignment_rate.value for alignment in self.alignments]))

    def _best(self, values: NDArray[np.float64]) -> float:
        order = np.lexsort((np.abs(self.shifts), -values))
        return float(self.shifts[order[0]])

    def nearest(self, shift: float) -> Alignment:
        """The alignment at the λ of the sweep that is nearest to one."""
        return self.alignments[int(np.argmin(np.abs(self.shifts - shift)))]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values of each text as JSON values."""
        return {
            "coefficient": self.coefficient,
            "variation": self.variation,
            "suggested_shift": self.suggested_shift,
            "most_informative_shift": self.most_informative_shift,
            "best_aligned_shift": self.best_aligned_shift,
            "top_k": self.top_k,
            "max_document_share": self.max_document_share,
            "text_count": self.alignments[0].text_count,
            "rows": [
                {
                    "shift": shift,
                    "information": information,
                    "hits": {str(k): asdict(hit) for k, hit in alignment.hits.items()},
                    "local_alignment_rate": asdict(alignment.local_alignment_rate),
                    "global_alignment_rate": asdict(alignment.global_alignment_rate),
                }
                for shift, information, alignment in zip(
                    self.shifts.tolist(), self.information.tolist(), self.alignments, strict=True
                )
            ],
        }

    def table(self) -> str:
        """One row a shift, as Markdown, with what is special about it."""
        marks = [
            ("none", 0.0),
            ("component gone on average", -self.coefficient),
            ("v₁", self.variation),
            ("suggested", self.suggested_shift),
            ("most information", self.most_informative_shift),
            ("best local rate", self.best_aligned_shift),
        ]
        ks = list(self.alignments[0].hits)
        rows: list[list[object]] = []
        for shift, information, alignment in zip(
            self.shifts.tolist(), self.information.tolist(), self.alignments, strict=True
        ):
            notes = [note for note, at in marks if at is not None and math.isclose(at, shift, abs_tol=1e-12)]
            rates = alignment.local_alignment_rate, alignment.global_alignment_rate
            rows.append(
                [
                    shift,
                    *(alignment.hits[k].value for k in ks),
                    *(rate.value for rate in rates),
                    information,
                    ", ".join(notes) or None,
                ]
            )
        head = ["λ", *(f"Hit@{k}" for k in ks), "local rate", "global rate", "information (bits)", ""]
        return markdown_table(head, rows)


def mutual_information(counts: NDArray[np.int64], texts: int) -> float:
    """Mutual information of texts and their decoded terms, of which all texts have the same number.

    Args:
        counts: In how many texts each term is among the decoded ones, shape ``(V,)``.
        texts: Number of texts.

    Returns:
        In bits: the entropy of a term drawn from a text drawn at random, less that of a term of a known text.

    >>> mutual_information(np.array([4, 4, 0]), 4)  # two terms, the same for four texts
    0.0
    >>> mutual_information(np.array([1, 1, 1, 1]), 4)  # each its own
    2.0
    """
    present = counts[counts > 0]
    if not len(present):
        return 0.0
    shares = present / present.sum()
    return float(-(shares * np.log2(shares)).sum() - math.log2(present.sum() / texts))
