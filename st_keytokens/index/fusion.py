"""Fusion of rankings: several scored lists of the same things become one.

A ranking is a sequence of ``(id, score)`` pairs, best first. Reciprocal rank fusion looks at the ranks only and so
needs no common scale; score fusion adds normalised scores and so keeps how clear a lead was; adaptive fusion is score
fusion with sides that count as far as they single out documents for this query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from st_keytokens.shared.checks import check_choice, checked_float

__all__ = [
    "FUSIONS",
    "FusedHit",
    "FusionFunction",
    "FusionName",
    "adaptive_fusion",
    "reciprocal_rank_fusion",
    "score_fusion",
]


_TYPICAL_LEAD, _LEAD_RANK, _LEAST_DENSE = 0.3, 10, 0.5
_LARGEST = 1e100  # of a score and a weight, so that no sum of their products overflows

Id = TypeVar("Id", bound=Hashable)
Normalization = Literal["min-max", "z-score", "none"]
Rankings = Mapping[str, Sequence[tuple[Id, float]]]


@dataclass(frozen=True)
class FusedHit(Generic[Id]):
    """One id of a fused ranking.

    Attributes:
        id: What was ranked.
        score: The fused score.
        components: Its score in every ranking that holds it, as given there.
        ranks: Its rank in every ranking that holds it, from 1.
    """

    id: Id
    score: float
    components: dict[str, float]
    ranks: dict[str, int]


def reciprocal_rank_fusion(
    rankings: Rankings[Id], *, weights: Mapping[str, float] | None = None, k: float = 60
) -> list[FusedHit[Id]]:
    """Fuse by rank: the score of an id is the sum of ``weight / (k + rank)`` over the rankings that hold it.

    Args:
        rankings: Rankings by name, each best first, without an id twice, scores within 1e100.
        weights: Factor of each ranking, 0 to 1e100; 1 where not named.
        k: How little the first ranks stand out, finite, at least 0.

    Returns:
        Every id once, by descending score; ties in order of first appearance.

    Raises:
        TypeError: If a score, a weight or ``k`` is not a number.
        ValueError: If an id is twice in a ranking, a score is not finite, a weight names no ranking or is negative, or
            ``k`` is negative.

    Source:
        Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
        methods". Differs from it in: weights.

    >>> fused = reciprocal_rank_fusion({"dense": [("a", 0.9), ("b", 0.8)], "sparse": [("b", 7.0)]}, k=1)
    >>> [(hit.id, round(hit.score, 3), hit.ranks) for hit in fused]
    [('b', 0.833, {'dense': 2, 'sparse': 1}), ('a', 0.5, {'dense': 1})]
    """
    k = checked_float("k", k, minimum=0)
    factors = _checked(rankings, weights)
    points = {name: [1 / (k + rank) for rank in range(1, len(ranking) + 1)] for name, ranking in rankings.items()}
    return _fused(rankings, points, factors)


def score_fusion(
    rankings: Rankings[Id],
    *,
    weights: Mapping[str, float] | None = None,
    normalization: Normalization = "min-max",
) -> list[FusedHit[Id]]:
    """Fuse by score: the score of an id is the weighted sum of its normalised scores.

    An id that a ranking does not hold counts there as 0, with ``"z-score"`` as the last one that it does hold.

    Args:
        rankings: Rankings by name, each best first, without an id twice, scores within 1e100.
        weights: Factor of each ranking, 0 to 1e100; 1 where not named.
        normalization: ``"min-max"`` maps a ranking's scores to 0..1 (to 1 where all are equal), ``"z-score"`` to mean
            0 and standard deviation 1 (to 0 where all are equal), ``"none"`` leaves them.

    Returns:
        Every id once, by descending score; ties in order of first appearance.

    Raises:
        TypeError: If a score or a weight is not a number.
        ValueError: If an id is twice in a ranking, a score is not finite, a weight names no ranking or is negative, or
            the normalization is unknown.

    >>> fused = score_fusion({"dense": [("a", 0.9), ("b", 0.7)], "sparse": [("b", 7.0), ("c", 2.0)]})
    >>> [(hit.id, hit.score, hit.components) for hit in fused]
    [('a', 1.0, {'dense': 0.9}), ('b', 1.0, {'dense': 0.7, 'sparse': 7.0}), ('c', 0.0, {'sparse': 2.0})]
    """
    check_choice("normalization", normalization, get_args(Normalization))
    return _score_fused(rankings, _checked(rankings, weights), normalization)


def adaptive_fusion(rankings: Rankings[Id], *, weights: Mapping[str, float] | None = None) -> list[FusedHit[Id]]:
    """Score fusion in which each query decides how much ``"dense"`` and ``"sparse"`` rankings count: by their lead.

    The lead is what the tenth score lacks of the first. What singles out few documents has a large lead, what many
    documents share about equally a small one. A ranking's weight is multiplied by its lead over one that is usual:

    - A sparse lead is a share of the first score, and 1 where there are fewer than ten hits; 0.3 is usual.
    - Dense scores have no zero of their own, so that a dense lead is a share of what the middle hit, of rank ``M``,
      lacks of the first; ``1 / log10(M)`` is usual, that of scores which fall with the logarithm of the rank. Up to
      twenty hits count as usual, and more at least half as much, so that something ranks what no word tells apart.

    Args:
        rankings: Rankings by name, each best first, without an id twice, scores within 1e100; ``"sparse"`` may be
            among them, with scores above zero, and ``"dense"``.
        weights: Factor of each ranking, 0 to 1e100; 1 where not named.

    Returns:
        As :func:`score_fusion`.

    Raises:
        TypeError: See :func:`score_fusion`.
        ValueError: See :func:`score_fusion`.

    Source:
        Predicting from its scores how well a ranking serves a query is common, see Shtok et al. 2012, "Predicting
        Query Performance by Query-Drift Estimation"; this predictor is a simple one of our own.

    >>> words = [("a", 10.0)] + [(f"other {n}", 9.0) for n in range(20)]
    >>> adaptive_fusion({"dense": [("b", 0.9), ("c", 0.7)], "sparse": words})[0].id
    'b'
    >>> adaptive_fusion({"dense": [("b", 0.9), ("c", 0.7)], "sparse": [*words[:9], ("d", 3.0)]})[0].id
    'a'
    """
    factors = _checked(rankings, weights)
    sparse, dense = ([score for _, score in rankings.get(side, ())] for side in ("sparse", "dense"))
    if sparse and sparse[0] > 0:
        tenth = sparse[_LEAD_RANK - 1] if len(sparse) >= _LEAD_RANK else 0.0
        factors["sparse"] *= max(0.0, 1 - max(0.0, tenth) / sparse[0]) / _TYPICAL_LEAD
    middle = len(dense) // 2  # the lower half may be all that a small corpus holds
    if middle > _LEAD_RANK and dense[0] > dense[middle - 1]:
        lead = (dense[0] - dense[_LEAD_RANK - 1]) / (dense[0] - dense[middle - 1])
        factors["dense"] *= max(_LEAST_DENSE, lead * math.log(middle, _LEAD_RANK))
    return _score_fused(rankings, factors, "min-max")


FusionFunction = Callable[..., list[FusedHit[Any]]]
FusionName = Literal["adaptive", "score", "rrf"]
FUSIONS: dict[str, FusionFunction] = {
    "adaptive": adaptive_fusion,
    "score": score_fusion,
    "rrf": reciprocal_rank_fusion,
}
"""What a search calls them."""


def _checked(rankings: Rankings[Id], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Check the rankings, and give every one its factor."""
    for name, ranking in rankings.items():
        seen: set[Id] = set()
        for item, score in ranking:
            try:
                is_within = math.fabs(score) <= _LARGEST
            except OverflowError:  # a whole number beyond all floats
                is_within = False
            if not is_within:
                rule = "within 1e100" if abs(score) < math.inf else "finite"
                raise ValueError(f"scores must be {rule}, got {score} for {item!r} in ranking {name!r}.")
            if item in seen:
                raise ValueError(f"ids must be unique in a ranking, got {item!r} twice in ranking {name!r}.")
            seen.add(item)
    factors = dict.fromkeys(rankings, 1.0)
    for name, weight in (weights or {}).items():
        if name not in rankings:
            raise ValueError(f"weights must name rankings among {list(rankings)}, got {name!r}.")
        try:
            is_allowed = math.fabs(weight) <= _LARGEST and weight >= 0
        except OverflowError:
            is_allowed = False
        if not is_allowed:
            rule = "at most 1e100" if 0 <= weight < math.inf else "finite and >= 0"
            raise ValueError(f"weights must be {rule}, got {weight} for {name!r}.")
        factors[name] = float(weight)
    return factors


def _normalized(scores: list[float], normalization: str) -> list[float]:
    if normalization == "none" or not scores:
        return scores
    low, high = min(scores), max(scores)
    if low == high:
        return [1.0 if normalization == "min-max" else 0.0] * len(scores)
    scaled = [(score - low) / (high - low) for score in scores]
    if normalization == "min-max":
        return scaled
    mean = math.fsum(scaled) / len(scaled)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scaled) / len(scaled))
    return [(score - mean) / deviation for score in scaled]


def _score_fused(rankings: Rankings[Id], factors: Mapping[str, float], normalization: str) -> list[FusedHit[Id]]:
    points = {name: _normalized([score for _, score in ranking], normalization) for name, ranking in rankings.items()}
    absent = {name: min(row, default=0.0) for name, row in points.items()} if normalization == "z-score" else {}
    return _fused(rankings, points, factors, absent)


def _fused(
    rankings: Rankings[Id],
    points: Mapping[str, list[float]],
    factors: Mapping[str, float],
    absent: Mapping[str, float] | None = None,
) -> list[FusedHit[Id]]:
    """Sum every id's points over the rankings that hold it, and what an absent id gets in the others, 0 by default."""
    components: dict[Id, dict[str, float]] = {}
    ranks: dict[Id, dict[str, int]] = {}
    for name, ranking in rankings.items():
        for rank, (item, score) in enumerate(ranking, start=1):
            components.setdefault(item, {})[name] = float(score)
            ranks.setdefault(item, {})[name] = rank
    scores = dict.fromkeys(ranks, 0.0)
    for name, row in points.items():
        factor, without = factors[name], (absent or {}).get(name, 0.0)
        for item, held in ranks.items():
            scores[item] += factor * (row[held[name] - 1] if name in held else without)
    order = sorted(scores, key=scores.__getitem__, reverse=True)  # stable: ties in order of first appearance
    return [FusedHit(item, scores[item], components[item], ranks[item]) for item in order]
