"""Relatedness and similarity: how the overlap of key tokens agrees with human judgements of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.stats
import torch
from numpy.typing import ArrayLike, NDArray

from st_keytokens.encoder.encoder import KeyTokenEncoder, without_silent
from st_keytokens.encoder.forward_pass import as_sparse
from st_keytokens.encoder.pooled_vectors import hybrid_embeddings, pooled_vectors
from st_keytokens.shared.checks import checked_float, checked_int
from st_keytokens.shared.markdown import markdown_table
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.terms.literal_terms import check_texts
from st_keytokens.terms.weighting import count_terms

__all__ = ["PAIR_MEASURES", "JudgedCorrelation", "Relatedness", "compare_with_judgements"]

_BLOCK = 200  # resamples ranked at a time
_ROWS = 1024  # vectors decoded at a time


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
        batch_size: Texts a forward pass at most.
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


@dataclass(frozen=True)
class JudgedCorrelation:
    """How a measure of pairs agrees with their judgements.

    Attributes:
        spearman: Rank correlation over all pairs; None where the measure gives every pair the same value.
        low: Lower end of its interval.
        high: Upper end of its interval.
        difference: From the dense cosine's correlation on the same pairs, None for that itself.
        difference_low: Lower end of the difference's interval.
        difference_high: Upper end of the difference's interval.
        zero_share: Share of pairs for which the measure is 0.
    """

    spearman: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    zero_share: float


def judged_correlations(
    values: Mapping[str, NDArray[np.float64]],
    human: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, JudgedCorrelation]:
    """Spearman's correlation of each measure with judgements, and its difference from the first measure's."""
    generator, tail = np.random.default_rng(seed), (1 - confidence) / 2
    resampled = np.zeros((len(values), samples))
    for start in range(0, samples, _BLOCK):
        chosen = generator.integers(0, len(human), (min(_BLOCK, samples - start), len(human)))
        ranks = scipy.stats.rankdata(human[chosen], axis=1)
        for position, of_measure in enumerate(values.values()):
            of_block = _pearson(scipy.stats.rankdata(of_measure[chosen], axis=1), ranks)
            resampled[position, start : start + len(chosen)] = np.nan_to_num(of_block)

    def with_ends(value: float, of_samples: NDArray[np.float64]) -> tuple[float | None, float | None, float | None]:
        if np.isnan(value):
            return None, None, None
        low, high = np.quantile(of_samples, [tail, 1 - tail]).tolist()
        return value, low, high

    ranks = scipy.stats.rankdata(human)[None]
    spearman = [float(_pearson(scipy.stats.rankdata(of_measure)[None], ranks)[0]) for of_measure in values.values()]
    found = {}
    for position, (name, of_measure) in enumerate(values.items()):
        difference = spearman[position] - spearman[0] if position else float("nan")
        found[name] = JudgedCorrelation(
            *with_ends(spearman[position], resampled[position]),
            *with_ends(difference, resampled[position] - resampled[0]),
            float((of_measure == 0).mean()),
        )
    return found


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of each row of ``a`` with that of ``b``; NaN where one is constant."""
    x, y = (part - part.mean(axis=1, keepdims=True) for part in (a, b))
    lengths = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    found: NDArray[np.float64] = np.full(len(x), np.nan)
    np.divide((x * y).sum(axis=1), lengths, out=found, where=lengths > 0)
    return found


def _values(
    encoder: KeyTokenEncoder, texts: list[str], top_k: int, batch_size: int, progress: bool
) -> dict[str, NDArray[np.float64]]:
    """Each measure of each pair; every text is embedded once."""
    known = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(known)}
    rows = np.array([place[text] for text in texts])
    pooled, _ = pooled_vectors(encoder, known, batch_size=batch_size, show_progress_bar=progress)
    both, literal = hybrid_embeddings(encoder, pooled, known), encoder.literal_terms(known)
    parts = []
    with encoder.lock, torch.inference_mode():
        for start in range(0, len(pooled), _ROWS):
            block = torch.from_numpy(pooled[start : start + _ROWS].copy())
            parts.append(as_sparse(encoder.head.decode(block, max_active_dims=top_k), encoder.vocabulary))
    decoded = without_silent(SparseEmbeddings.concatenate(parts), literal)
    counts = count_terms(literal, encoder.vocabulary.vocab_size)
    of_pairs = HybridEmbeddings(None if both.dense is None else both.dense[rows], both.sparse[rows])
    return {name: measure(of_pairs, decoded[rows], counts[rows]) for name, measure in PAIR_MEASURES.items()}


def weighted_jaccard(sparse: SparseEmbeddings) -> NDArray[np.float64]:
    """Of each row of the first half with that of the second: sum of the smaller weights over that of the larger."""
    matrix = sparse.to_scipy().astype(np.float64)
    half = len(sparse) // 2
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    smaller = np.asarray(matrix[:half].minimum(matrix[half:]).sum(axis=1)).ravel()
    return _quotients(smaller, sums[:half] + sums[half:] - smaller)


def cosine_overlap(sparse: SparseEmbeddings) -> NDArray[np.float64]:
    """Of each row of the first half with that of the second."""
    matrix = sparse.to_scipy().astype(np.float64)
    half = len(sparse) // 2
    products = np.asarray(matrix[:half].multiply(matrix[half:]).sum(axis=1)).ravel()
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return _quotients(products, lengths[:half] * lengths[half:])


def _dense_cosine(dense: NDArray[np.float32] | None) -> NDArray[np.float64]:
    if dense is None:
        raise ValueError("embeddings must have a dense part, got none.")
    vectors = dense.astype(np.float64)
    half = len(vectors) // 2
    lengths = np.linalg.norm(vectors, axis=1)
    return _quotients((vectors[:half] * vectors[half:]).sum(axis=1), lengths[:half] * lengths[half:])


def _quotients(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotients; 0 where there is nothing to divide by."""
    found: NDArray[np.float64] = np.zeros(len(parts))
    np.divide(parts, wholes, out=found, where=wholes > 0)
    return found


Measure = Callable[[HybridEmbeddings, SparseEmbeddings, SparseEmbeddings], NDArray[np.float64]]
"""From embeddings, decoded terms and counts of literal terms, of texts and then of the others, to a value a pair."""

PAIR_MEASURES: dict[str, Measure] = {
    "dense cosine": lambda both, decoded, counts: _dense_cosine(both.dense),
    "decoded cosine": lambda both, decoded, counts: cosine_overlap(decoded),
    "decoded Jaccard": lambda both, decoded, counts: weighted_jaccard(decoded),
    "sparse cosine": lambda both, decoded, counts: cosine_overlap(both.sparse),
    "literal Jaccard": lambda both, decoded, counts: weighted_jaccard(counts),
}
"""Measures of a pair by name: of the dense vectors; of the decoded key tokens, by the cosine and by the weighted
Jaccard index of their weights; of the sparse vectors that search uses; and of the counts of the texts' own tokens, for
which no model is needed."""


def _interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.3f} to {high:.3f}"
