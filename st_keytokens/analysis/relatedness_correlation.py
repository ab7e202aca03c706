"""Rank correlations with human judgements, with intervals by resampling the pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray

__all__ = ["JudgedCorrelation", "judged_correlations"]

_BLOCK = 200  # resamples ranked at a time


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
    """Spearman's correlation of each measure with judgements, and its difference from the first measure's.

    Args:
        values: One value a pair, by name of the measure.
        human: One judgement a pair, not all the same.
        confidence: Of the percentile bootstrap intervals.
        samples: Resamplings of the pairs, the same for all measures.
        seed: Of them.

    Returns:
        By name. In a resample in which a measure, or the judgements, are constant, the correlation counts as 0.

    >>> found = judged_correlations({"a": np.array([1.0, 2.0, 3.0, 4.0])}, np.array([1.0, 3.0, 2.0, 4.0]), samples=9)
    >>> round(found["a"].spearman, 3)
    0.8
    """
    generator, tail = np.random.default_rng(seed), (1 - confidence) / 2
    resampled = np.zeros((len(values), samples))
    for start in range(0, samples, _BLOCK):
        chosen = generator.integers(0, len(human), (min(_BLOCK, samples - start), len(human)))
        ranks = scipy.stats.rankdata(human[chosen], axis=1)
        for position, of_measure in enumerate(values.values()):
            of_block = _pearson(scipy.stats.rankdata(of_measure[chosen], axis=1), ranks)
            resampled[position, start : start + len(chosen)] = np.nan_to_num(of_block)
    found = {}
    whole = scipy.stats.rankdata(human)[None]
    first = float(_pearson(scipy.stats.rankdata(next(iter(values.values())))[None], whole)[0])
    for position, (name, of_measure) in enumerate(values.items()):
        spearman = float(_pearson(scipy.stats.rankdata(of_measure)[None], whole)[0])
        zero_share = float((of_measure == 0).mean())
        if np.isnan(spearman):
            found[name] = JudgedCorrelation(None, None, None, None, None, None, zero_share)
            continue
        low, high = np.quantile(resampled[position], [tail, 1 - tail]).tolist()
        if not position or np.isnan(first):
            found[name] = JudgedCorrelation(spearman, low, high, None, None, None, zero_share)
            continue
        below, above = np.quantile(resampled[position] - resampled[0], [tail, 1 - tail]).tolist()
        found[name] = JudgedCorrelation(spearman, low, high, spearman - first, below, above, zero_share)
    return found


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of each row of ``a`` with that of ``b``; NaN where one is constant."""
    x, y = (part - part.mean(axis=1, keepdims=True) for part in (a, b))
    lengths = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    found: NDArray[np.float64] = np.full(len(x), np.nan)
    np.divide((x * y).sum(axis=1), lengths, out=found, where=lengths > 0)
    return found
