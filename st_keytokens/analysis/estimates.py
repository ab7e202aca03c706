"""Means and rates over texts with their confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from st_keytokens.shared.checks import checked_float, checked_int

__all__ = ["Estimate", "check_resampling", "global_rate", "mean_estimates"]

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
        values: Shape ``(N, M)``, one row for each text, one column for each measure.
        confidence: Of the intervals, between 0 and 1.
        samples: Resamplings of the texts.
        seed: Of the random numbers.

    Returns:
        One estimate for each column.

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
    """Share of all texts' distinct terms that some text's decoded terms hit, with a jackknife interval over texts.

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
    (hit, hit_alone), (all_, alone) = (_distinct(ids, vocab_size) for ids in (found, own))
    count, rate = len(own), hit / all_
    remaining = all_ - alone  # terms without each text; none where one text has them all
    if count == 1 or not remaining.all():
        return Estimate(rate, None, None)
    left_out = (hit - hit_alone) / remaining
    deviation = float(np.sqrt((count - 1) * left_out.var()))
    width = NormalDist().inv_cdf((1 + confidence) / 2) * deviation
    return Estimate(rate, max(0.0, rate - width), min(1.0, rate + width))


def _distinct(ids: list[NDArray[np.int64]], vocab_size: int) -> tuple[int, NDArray[np.int64]]:
    """Number of distinct terms, and for each text the number that no other text has."""
    indptr, indices = np.cumsum([0, *map(len, ids)]), np.concatenate(ids)
    rows = csr_matrix((np.ones(len(indices), dtype=np.int64), indices, indptr), shape=(len(ids), vocab_size))
    frequencies = np.bincount(indices, minlength=vocab_size)
    alone: NDArray[np.int64] = rows @ (frequencies == 1).astype(np.int64)
    return int(np.count_nonzero(frequencies)), alone


def check_resampling(confidence: float, samples: int) -> None:
    """Check the settings of intervals.

    Args:
        confidence: Of the intervals.
        samples: Resamplings of the texts.

    Raises:
        TypeError: If one is not a number of its kind.
        ValueError: If confidence is not between 0 and 1, or samples below 1.
    """
    if not 0 < checked_float("confidence", confidence) < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
    checked_int("samples", samples, minimum=1)
