"""The shift's effect: what a backbone's embeddings decode to, moved along their first component by more or less."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.analysis.alignment import Alignment, AlignmentTally, decoded_terms, document_frequencies, own_terms
from st_keytokens.analysis.contribution import bound_lm_head, fed_logits, float32_logits
from st_keytokens.analysis.estimates import check_resampling
from st_keytokens.analysis.spectrum import Spectrum, Variation, blocks_of
from st_keytokens.decoding.decoding import check_finite
from st_keytokens.decoding.first_component import Dense, FirstComponent, check_embeddings, shift
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.shared.checks import checked_float, checked_int
from st_keytokens.shared.markdown import markdown_table
from st_keytokens.terms.literal_terms import check_texts

__all__ = ["ShiftSweep", "sweep_shift"]

_BLOCK_LOGITS = 1_250_000  # 5 MB of float32: what follows the product is bound by memory, as in decoding


def sweep_shift(
    backbone: KeyTokenEncoder,
    texts: Sequence[str],
    *,
    component: Variation | Spectrum | FirstComponent | None = None,
    shifts: Sequence[float] | None = None,
    embeddings: Dense | Iterable[Dense] | None = None,
    ks: Sequence[int] = (1, 10),
    top_k: int = 10,
    max_document_share: float = 1.0,
    prompt: str | None = None,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> ShiftSweep:
    """Alignment of shifted embeddings ``h + λ u`` as a function of λ, and the λ that the data suggests.

    The suggestion needs neither labels nor the embedder: it is the λ with the highest global alignment rate, see
    :attr:`ShiftSweep.suggested_shift`. Beside it stands the λ at which decoded terms say most about which text they
    come from.

    The texts are embedded once; every shift only adds a multiple of one vector to the logits. Logits are those of the
    LM head, in float32, without correction or standardisation.

    Args:
        backbone: Encoder of the language model, pooled as the embedder; or any other encoder.
        texts: The texts.
        component: Gives the direction ``u``, with its sign, and the range of shifts: a variation, whose ``v_1`` is
            then marked, a spectrum, or a calibration's first component. None: that of the encoder's calibration.
        shifts: Values of λ, in embedding units, in any order. None: 25 from ``-2 c`` to ``c``, where ``c`` is the mean
            projection on ``u``, so that ``-c``, which takes the component away on average, and 0 are among them;
            and ``v_1``, where it is known.
        embeddings: Pooled embeddings of the texts, shape ``(N, d)``, or an iterable of such matrices. None: texts are
            embedded.
        ks: Numbers of decoded terms for Hit@k.
        top_k: Decoded terms of each text that the information is measured on.
        max_document_share: Only terms that occur in at most this share of the texts count, on both sides; below 1 it
            leaves out function words.
        prompt: Put before each text. None: the model's own for documents.
        confidence: Of the intervals, between 0 and 1.
        samples: Resamplings of the texts.
        seed: Of the random numbers.
        batch_size: Texts a forward pass at most.
        show_progress_bar: Whether to show one.

    Returns:
        The sweep, its shifts ascending and distinct.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If there is no text or shift, a shift is NaN or infinite, a text is blank, the component is
            missing or does not fit, texts and embeddings differ in number, no text has a term that counts, or a
            number is out of its range.

    Source:
        Nie et al. 2025 (arXiv 2406.17378), where λ is close to ``v_1`` and set by hand. Differs from it in measuring a
        range, and in the suggestion.
    """
    check_resampling(confidence, samples)
    top_k, texts = checked_int("top_k", top_k, minimum=1), check_texts(texts)
    share = checked_float("max_document_share", max_document_share, minimum=0, maximum=1)
    first, variation = _first_component(component, backbone)
    grid = _shifts(shifts, first, variation)
    backbone = backbone.over_tokens()
    lm_head, vocabulary = bound_lm_head(backbone.head), backbone.head.token_vocabulary
    ids = backbone.literal_terms(texts)
    is_counted = document_frequencies(ids, len(vocabulary)) <= share * len(texts)
    own = [own_terms(row[is_counted[row]]) for row in ids]
    terms = torch.from_numpy(vocabulary.terms).to(lm_head.device)
    is_out = torch.from_numpy(vocabulary.is_masked | ~is_counted[vocabulary.terms]).to(lm_head.device)
    tallies = [AlignmentTally(len(vocabulary), ks) for _ in grid]
    counts = np.zeros((len(grid), len(vocabulary)), dtype=np.int64)
    seen, rows = 0, max(1, _BLOCK_LOGITS // lm_head.vocab_size)
    source = backbone if embeddings is None else embeddings
    given = None if embeddings is not None else texts
    for block in blocks_of(source, given, prompt=prompt, batch_size=batch_size, show_progress_bar=show_progress_bar):
        check_embeddings(block, lm_head.embedding_dimension)
        check_finite(block, seen)
        for part in torch.split(block, rows):
            of_part = own[seen : seen + len(part)]
            if len(of_part) < len(part):
                raise _unequal(seen + len(part), len(texts))
            depth = max([top_k, *ks, *(terms_of.cut for terms_of in of_part)])
            for place, scores in enumerate(_shifted_logits(lm_head, part, first.direction, grid)):
                decoded = decoded_terms(scores, terms, is_out, depth).cpu().numpy()
                tallies[place].update(decoded, of_part)
                kept = decoded[:, :top_k]
                counts[place] += np.bincount(kept[kept >= 0], minlength=len(vocabulary))
            seen += len(part)
    if seen < len(texts) or not texts:
        raise _unequal(seen, len(texts))
    return ShiftSweep(
        np.array(grid),
        tuple(tally.result("clean", confidence=confidence, samples=samples, seed=seed) for tally in tallies),
        np.array([mutual_information(row, len(texts)) for row in counts]),
        first.coefficient,
        variation,
        top_k,
        share,
    )


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
        return self._best([alignment.global_alignment_rate.value for alignment in self.alignments])

    @property
    def most_informative_shift(self) -> float:
        """The λ with the most information, of several the smallest by size; it does not even look at own terms."""
        return self._best(self.information.tolist())

    @property
    def best_aligned_shift(self) -> float:
        """The λ with the highest local alignment rate, of several the smallest by size.

        Function words, which most texts hold, weigh in it as much as others do.
        """
        return self._best([alignment.local_alignment_rate.value for alignment in self.alignments])

    def _best(self, values: list[float]) -> float:
        shifts: list[float] = self.shifts.tolist()
        return min((-value, abs(shift), shift) for shift, value in zip(shifts, values, strict=True))[2]

    def _rows(self) -> Iterator[tuple[float, float, Alignment]]:
        return zip(self.shifts.tolist(), self.information.tolist(), self.alignments, strict=True)

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
                    "shift": amount,
                    "information": information,
                    "hits": {str(k): asdict(hit) for k, hit in alignment.hits.items()},
                    "local_alignment_rate": asdict(alignment.local_alignment_rate),
                    "global_alignment_rate": asdict(alignment.global_alignment_rate),
                }
                for amount, information, alignment in self._rows()
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
        rows = [
            [
                amount,
                *(hit.value for hit in alignment.hits.values()),
                alignment.local_alignment_rate.value,
                alignment.global_alignment_rate.value,
                information,
                ", ".join(n for n, at in marks if at is not None and math.isclose(at, amount, abs_tol=1e-12)) or None,
            ]
            for amount, information, alignment in self._rows()
        ]
        hits = (f"Hit@{k}" for k in self.alignments[0].hits)
        return markdown_table(["λ", *hits, "local rate", "global rate", "information (bits)", ""], rows)


def _first_component(
    component: Variation | Spectrum | FirstComponent | None, backbone: KeyTokenEncoder
) -> tuple[FirstComponent, float | None]:
    """The component, and v_1 where it is known."""
    if isinstance(component, Variation):
        return component.spectrum.first_component, float(component.variations[0])
    if isinstance(component, Spectrum):
        return component.first_component, None
    if isinstance(component, FirstComponent):
        return component, None
    if component is not None:
        raise TypeError(
            f"component must be a Variation, a Spectrum or a FirstComponent, got {type(component).__name__}: a shift "
            "needs the component's sign and mean projection."
        )
    if backbone.calibration is None:
        raise ValueError(
            "component must be given where the encoder has no calibration, got None. Pass "
            "measure_variation(embedder, backbone, texts), or measure_spectrum(backbone, texts)."
        )
    return backbone.calibration.first_component, None


def _shifts(shifts: Sequence[float] | None, first: FirstComponent, variation: float | None) -> list[float]:
    if shifts is None:
        if first.coefficient == 0:
            raise ValueError(
                "shifts must be given where the mean projection on the first component is zero, got None. Pass the "
                "values of λ."
            )
        grid = (np.arange(-16, 9) * (first.coefficient / 8)).tolist()
        return sorted({*grid, *([] if variation is None else [variation])})
    if not len(shifts):
        raise ValueError("shifts must hold at least one value of λ, got none.")
    return sorted({checked_float("shifts", value) for value in shifts})


def _shifted_logits(
    lm_head: LMHead, embeddings: Tensor, direction: Tensor, shifts: Sequence[float]
) -> Iterator[Tensor]:
    """Logits of embeddings at each shift."""
    with torch.no_grad():
        embeddings = embeddings.to(lm_head.device, torch.float32)
        direction = direction.to(embeddings)
        if not lm_head.is_affine:
            yield from (float32_logits(lm_head, shift(embeddings, direction, amount)) for amount in shifts)
            return
        logits = float32_logits(lm_head, shift(embeddings, direction, 0.0))
        fed = fed_logits(lm_head, direction)
        yield from (torch.add(logits, fed, alpha=amount) for amount in shifts)


def _unequal(rows: int, texts: int) -> ValueError:
    if not texts:
        return ValueError("texts must hold at least one text, got none.")
    return ValueError(f"embeddings must have one row a text, got {rows} rows or more for {texts} texts.")


def mutual_information(counts: NDArray[np.int64], texts: int) -> float:
    """In bits, of texts and their decoded terms, of which each text has the same number; ``counts`` is by term."""
    present = counts[counts > 0]
    if not len(present):
        return 0.0
    shares = present / present.sum()
    return float(-(shares * np.log2(shares)).sum() - math.log2(present.sum() / texts))
