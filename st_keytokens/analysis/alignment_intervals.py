"""Confidence intervals over texts: of means by the bootstrap, of the global rate by leaving out one text at a time."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

__all__ = ["Estimate", "global_rate", "mean_estimates"]

_BLOCK = 4_000_000  # resampled texts held at a time


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval over texts.

    Attributes:
        value: The value on all texts.
        low: Lower end of the interval; None for a single text, which says nothing about others.
        high: Upper end.
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_estimates(values: NDArray[np.float64], *, confidence: float, samples: int, seed: int) -> list[Estimate]:
    """Means over texts with percentile bootstrap intervals; all columns share the resampled texts.

    Args:
        values: Shape ``(N, M)``, one row a text, one column a measure.
        confidence: Of the intervals, between 0 and 1.
        samples: Resamplings of the texts.
        seed: Of the random numbers.

    Returns:
        One estimate a column.

    >>> mean_estimates(np.array([[1.0], [1.0]]), confidence=0.95, samples=10, seed=0)
    [Estimate(value=1.0, low=1.0, high=1.0)]
    """
    count, means = len(values), values.mean(axis=0).tolist()
    if count == 1:
        return [Estimate(mean, None, None) for mean in means]
    generator, resampled = np.random.default_rng(seed), []
    rows = max(1, _BLOCK // count)
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        drawn = generator.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        resampled.append(weights @ values / count)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(resampled), [tail, 1 - tail], axis=0)
    return [Estimate(*ends) for ends in zip(means, low.tolist(), high.tolist(), strict=True)]


def global_rate(
    found: list[NDArray[np.int64]], own: list[NDArray[np.int64]], vocab_size: int, *, confidence: float
) -> Estimate:
    """Share of all texts' terms that some text's decoded terms hit, with a jackknife interval over texts.

    The bootstrap does not serve here: a resample repeats texts, so it covers fewer distinct terms than the texts
    themselves, and its rates are off centre and too close together. Leaving out each text in turn is exact, needs no
    random numbers and no second look at the texts: only terms that a single text has can go with it.

    Args:
        found: For each text its own terms among its decoded ones, distinct.
        own: For each text all of its own terms, distinct.
        vocab_size: Number of terms.
        confidence: Of the interval, between 0 and 1.

    Returns:
        The rate, its interval within 0 and 1.

    >>> global_rate([np.array([1]), np.array([1])], [np.array([1, 2]), np.array([1])], 3, confidence=0.95).value
    0.5
    """
    (hit, hit_alone), (all_, alone) = (_counts(ids, vocab_size) for ids in (found, own))
    count, rate = len(own), hit / all_
    remaining = all_ - alone  # terms without each text; none where one text has them all
    if count == 1 or not remaining.all():
        return Estimate(rate, None, None)
    left_out = (hit - hit_alone) / remaining
    deviation = float(np.sqrt((count - 1) * left_out.var()))
    width = NormalDist().inv_cdf((1 + confidence) / 2) * deviation
    return Estimate(rate, max(0.0, rate - width), min(1.0, rate + width))


def _counts(ids: list[NDArray[np.int64]], vocab_size: int) -> tuple[int, NDArray[np.int64]]:
    """Number of distinct terms, and for each text the number that no other text has."""
    indptr = np.cumsum([0, *map(len, ids)])
    indices = np.concatenate(ids)
    rows = csr_matrix((np.ones(len(indices), dtype=np.int64), indices, indptr), shape=(len(ids), vocab_size))
    frequencies = np.bincount(indices, minlength=vocab_size)
    alone: NDArray[np.int64] = rows @ (frequencies == 1).astype(np.int64)
    return int(np.count_nonzero(frequencies)), alone
