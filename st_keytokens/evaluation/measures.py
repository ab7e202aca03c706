"""Measures of rankings for each query, through ir-measures, and whether a difference over queries may be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from st_keytokens.evaluation.collections import Collection
    from st_keytokens.evaluation.runs import Ranking

__all__ = ["MEASURES", "bootstrap_interval", "holm", "measure_queries", "randomization_test"]

_BLOCK = 1_000_000  # random numbers held at a time

MEASURES: dict[str, str] = {"nDCG@10": "nDCG@10", "R@100": "R@100", "MRR@10": "RR@10", "MAP": "AP"}
"""The measures by the name that tables use, and what ir-measures calls them."""


def measure_queries(
    qrels: Mapping[str, Mapping[str, int]],
    rankings: Mapping[str, Sequence[str]],
    measures: Mapping[str, str] = MEASURES,
) -> dict[str, NDArray[np.float64]]:
    """Each measure for each query. Ranks alone count, ties are in the order of the ranking.

    Args:
        qrels: Relevance of documents by id, for each query; above 0 is relevant, and nDCG's gain is the relevance.
        rankings: Document ids of each query, best first. A query that is missing here counts as an empty ranking.
        measures: Names, and what ir-measures calls them.

    Returns:
        For each measure one value per query, float64, in the order of ``qrels``; 0 for an empty ranking.

    Raises:
        ImportError: If ir-measures is not installed.
        ValueError: If a ranking is of a query without judgements, or names a document twice.

    >>> values = measure_queries({"q": {"d1": 1, "d2": 1}}, {"q": ["d3", "d1"]})
    >>> {name: round(float(value[0]), 3) for name, value in values.items()}
    {'nDCG@10': 0.387, 'R@100': 0.5, 'MRR@10': 0.5, 'MAP': 0.25}
    """
    ir_measures = import_extra("ir_measures")
    run: dict[str, dict[str, float]] = {}
    for query_id, ranking in rankings.items():
        if query_id not in qrels:
            raise ValueError(f"rankings must be of queries in qrels, got one of {query_id!r}.")
        run[query_id] = {doc_id: float(-rank) for rank, doc_id in enumerate(ranking)}
        if len(run[query_id]) != len(ranking):
            raise ValueError(f"rankings must name a document once, got one twice for query {query_id!r}.")
    position = {query_id: i for i, query_id in enumerate(qrels)}
    parsed = {_parse(ir_measures, theirs): ours for ours, theirs in measures.items()}
    values = {name: np.zeros(len(qrels)) for name in measures}
    judged = {query_id: dict(judgements) for query_id, judgements in qrels.items()}
    for metric in ir_measures.iter_calc(list(parsed), judged, run):
        values[parsed[metric.measure]][position[metric.query_id]] = metric.value
    return values


def _parse(ir_measures: Any, name: str) -> Any:
    """A measure by its name; ir-measures' own parser is for those with arguments, as it fails from Python 3.14 on."""
    kind, _, cutoff = name.partition("@")
    if kind not in ir_measures.measures.registry or not (cutoff.isdecimal() or name == kind):
        return ir_measures.parse_measure(name)
    measure = ir_measures.measures.registry[kind]()
    return measure @ int(cutoff) if cutoff else measure


def measure_collection(collection: Collection, rankings: Sequence[Ranking]) -> dict[str, NDArray[np.float64]]:
    """Each measure for each query of a collection, or for the first of them, by the rows that were ranked."""
    ids = collection.query_ids[: len(rankings)]
    found = {
        query_id: [collection.doc_ids[row] for row in rows] for query_id, (rows, _) in zip(ids, rankings, strict=True)
    }
    return measure_queries({query_id: collection.qrels[query_id] for query_id in ids}, found)


def randomization_test(a: ArrayLike, b: ArrayLike, *, samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean difference of paired values, by swapping the pairs at random.

    Args:
        a: One value per query.
        b: The other's values of the same queries, in the same order.
        samples: Random swappings. Where all ``2 ** N`` are no more than these, all of them are taken instead, and
            the value is exact.
        seed: Of the random numbers.

    Returns:
        The share of swappings whose mean difference is at least as large as the real one, either way. Sampled ones
        count the real one as well, so that it is never 0.

    Raises:
        ValueError: If the numbers of values differ, there is none, one is not finite, or samples is below 1.

    Source:
        Smucker, Allan and Carterette 2007, "A comparison of statistical significance tests for information retrieval
        evaluation".

    >>> randomization_test([3.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    0.25
    """
    differences = _differences(a, b, samples)
    size = len(differences)
    observed = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()  # rounding must not split ties
    if size < 60 and 2**size <= samples:
        every = np.arange(2**size)[:, None] >> np.arange(size) & 1
        return float((np.abs((2 * every - 1) @ differences) >= observed).mean())
    generator = np.random.default_rng(seed)
    reached = 0
    for rows in _blocks(samples, size):
        signs = 2.0 * generator.integers(0, 2, (rows, size)) - 1.0
        reached += int((np.abs(signs @ differences) >= observed).sum())
    return (reached + 1) / (samples + 1)


def bootstrap_interval(
    a: ArrayLike,
    b: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``a - b``.

    Args:
        a: One value per query.
        b: The other's values of the same queries, in the same order.
        strata: A whole number for each query, such as that of its collection: queries are resampled within theirs, and
            the interval is that of the mean of the strata's means. None: all queries are one stratum.
        confidence: Of the interval, between 0 and 1.
        samples: Resamplings of the queries.
        seed: Of the random numbers.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: If the numbers of values differ, there is none, one is not finite, samples is below 1,
            confidence out of its range, or strata not one for each query.

    >>> bootstrap_interval([2.0, 2.0], [1.0, 1.0])
    (1.0, 1.0)
    >>> bootstrap_interval([1.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0], strata=[0, 1, 1, 1])
    (3.0, 3.0)
    """
    differences = _differences(a, b, samples)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
    labels = np.zeros(len(differences)) if strata is None else np.asarray(strata)
    if labels.shape != differences.shape:
        raise ValueError(f"strata must be one for each query, got shape {labels.shape} for {differences.shape}.")
    generator, parts = np.random.default_rng(seed), [differences[labels == label] for label in np.unique(labels)]
    means = np.mean([_resampled_means(part, samples, generator) for part in parts], axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that the chance of any false finding is bounded.

    Args:
        p_values: Of the comparisons made.

    Returns:
        Corrected values in the same order, at most 1.

    Raises:
        ValueError: If a value is not between 0 and 1.

    Source:
        Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.5, 0.03])
    [0.03, 0.5, 0.06]
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"p_values must be between 0 and 1, got {wrong[0]}.")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


def import_extra(module: str) -> Any:
    """A package of the extra ``evaluation``; ImportError says what to install."""
    try:
        return import_module(module)
    except ImportError as err:
        what, package = "Measuring" if module == "ir_measures" else "BM25", module.replace("_", "-")
        raise ImportError(f'{what} needs {package}: pip install "st-keytokens[evaluation]"') from err


def _differences(a: ArrayLike, b: ArrayLike, samples: int) -> NDArray[np.float64]:
    ours, theirs = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if ours.ndim != 1 or ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"a and b must be paired values, at least one, got shapes {ours.shape} and {theirs.shape}.")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("a and b must be finite, got NaN or infinity.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    return ours - theirs


def _resampled_means(values: NDArray[np.float64], samples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    size = len(values)
    blocks = [values[generator.integers(0, size, (rows, size))].mean(axis=1) for rows in _blocks(samples, size)]
    return np.concatenate(blocks)


def _blocks(samples: int, size: int) -> list[int]:
    rows = max(1, _BLOCK // size)
    return [min(rows, samples - start) for start in range(0, samples, rows)]
