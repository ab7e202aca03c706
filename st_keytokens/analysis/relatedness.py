"""Relatedness and similarity: how the overlap of key tokens agrees with human judgements of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from st_keytokens.analysis.relatedness_correlation import JudgedCorrelation, judged_correlations
from st_keytokens.analysis.relatedness_measures import PAIR_MEASURES
from st_keytokens.analysis.tables import markdown_table
from st_keytokens.checks import checked_float, checked_int
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.forward_pass import as_sparse
from st_keytokens.pooled_vectors import hybrid_embeddings, pooled_vectors
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.texts import check_texts
from st_keytokens.weighting import count_terms

__all__ = ["Relatedness", "compare_with_judgements"]

_ROWS = 1024  # vectors decoded at a time


@dataclass(frozen=True)
class Relatedness:
    """Measures of pairs beside human judgements.

    Attributes:
        pairs: How many.
        top_k: Decoded terms of a text.
        confidence: Of the intervals.
        correlations: By name of the measure, ``"dense cosine"`` first.
        values: By name of the measure, one value a pair.
        judgements: One a pair.
    """

    pairs: int
    top_k: int
    confidence: float
    correlations: Mapping[str, JudgedCorrelation]
    values: Mapping[str, NDArray[np.float64]]
    judgements: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """All but the single pairs, as JSON values: judgements may not be free to copy."""
        return {
            "pairs": self.pairs,
            "top_k": self.top_k,
            "confidence": self.confidence,
            "correlations": {name: asdict(found) for name, found in self.correlations.items()},
        }

    def table(self) -> str:
        """The correlations as Markdown, with their intervals."""
        rows: list[list[object]] = [
            [
                name,
                found.spearman,
                _interval(found.low, found.high),
                found.difference,
                _interval(found.difference_low, found.difference_high),
                f"{found.zero_share:.0%}",
            ]
            for name, found in self.correlations.items()
        ]
        interval = f"{self.confidence:.0%} interval"
        return markdown_table(["measure", "Spearman", interval, "from dense", interval, "pairs at 0"], rows)


def compare_with_judgements(
    encoder: KeyTokenEncoder,
    pairs: Sequence[tuple[str, str]],
    judgements: ArrayLike,
    *,
    top_k: int | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> Relatedness:
    """Correlates the overlap of key tokens with human judgements of pairs, beside the dense cosine.

    Args:
        encoder: The encoder, as it is set and calibrated. Both texts of a pair are documents.
        pairs: Texts.
        judgements: One number a pair, higher for more alike.
        top_k: Decoded terms of a text, at most as many as the head keeps; None: all of those.
        confidence: Of the percentile bootstrap intervals over pairs, the same resamples for all measures.
        samples: Resamplings.
        seed: Of them.
        batch_size: Texts a forward pass.
        show_progress_bar: Whether to show one.

    Returns:
        The correlation of each of :data:`PAIR_MEASURES`. In a resample in which a measure is constant it counts as 0.

    Raises:
        TypeError: If a text is not a string, or a number not of its kind.
        ValueError: If there are fewer than three pairs, judgements are not one a pair, not finite or all the same, or
            a number is out of its range.
    """
    human = np.asarray(judgements, dtype=np.float64)
    if len(pairs) < 3 or human.shape != (len(pairs),):
        raise ValueError(
            f"judgements must be one for each of at least three pairs, got shape {human.shape} for {len(pairs)} pairs."
        )
    if not np.isfinite(human).all() or len(np.unique(human)) == 1:
        raise ValueError("judgements must be finite and differ between pairs, got NaN, infinity or one value only.")
    confidence = checked_float("confidence", confidence, minimum=0.5, maximum=0.9999)
    samples, limit = checked_int("samples", samples, minimum=1), encoder.head.max_active_dims
    top_k = limit if top_k is None else checked_int("top_k", top_k, minimum=1, maximum=limit)
    texts = check_texts([text for text, _ in pairs] + [text for _, text in pairs], "pairs")
    values = _values(encoder, texts, top_k, batch_size, show_progress_bar)
    correlations = judged_correlations(values, human, confidence=confidence, samples=samples, seed=seed)
    return Relatedness(len(pairs), top_k, confidence, correlations, values, human)


def _values(
    encoder: KeyTokenEncoder, texts: list[str], top_k: int, batch_size: int, progress: bool
) -> dict[str, NDArray[np.float64]]:
    """Each measure of each pair; every text is embedded once."""
    known = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(known)}
    rows = np.array([place[text] for text in texts])
    pooled, _ = pooled_vectors(encoder, known, batch_size=batch_size, show_progress_bar=progress)
    both = hybrid_embeddings(encoder, pooled, known)
    literal = encoder.literal_terms(known)
    decoded = _decoded(encoder, pooled, literal, top_k)
    counts = count_terms(literal, encoder.vocabulary.vocab_size)
    of_pairs = HybridEmbeddings(None if both.dense is None else both.dense[rows], both.sparse[rows])
    return {name: measure(of_pairs, decoded[rows], counts[rows]) for name, measure in PAIR_MEASURES.items()}


def _decoded(
    encoder: KeyTokenEncoder, pooled: NDArray[np.float32], literal: Sequence[NDArray[np.int64]], top_k: int
) -> SparseEmbeddings:
    """Decoded terms alone, and none of a text without a term of its own."""
    parts = [SparseEmbeddings.empty(0, encoder.vocabulary.vocab_size)]
    with encoder.lock, torch.inference_mode():
        for start in range(0, len(pooled), _ROWS):
            block = torch.from_numpy(pooled[start : start + _ROWS].copy())
            for row, terms in enumerate(literal[start : start + _ROWS]):
                if not len(terms):
                    block[row] = 0.0
            parts.append(as_sparse(encoder.head.decode(block, max_active_dims=top_k), encoder.vocabulary))
    return SparseEmbeddings.concatenate(parts)


def _interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.3f} to {high:.3f}"
