"""How to search, and what is found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from st_keytokens.checks import check_choice, checked_float
from st_keytokens.index.documents import MatchedTerm
from st_keytokens.index.filters import Filter
from st_keytokens.index.fusion import FUSIONS, FusedHit, FusionName
from st_keytokens.index.search import Mode, Plan

__all__ = ["Fusion", "RetrievedHit", "SearchSettings"]

Fusion = FusionName

_SIDES = ("dense", "sparse")


@dataclass(frozen=True)
class SearchSettings:
    """How to search. Change one for a call with ``dataclasses.replace(settings, top_k=3)``.

    Attributes:
        mode: ``"sparse"``, ``"dense"`` or ``"hybrid"``; None for hybrid where there are dense rows or a dense ranking
            from outside, and sparse elsewhere.
        top_k: At most so many hits.
        filter: Which documents may be found: a dictionary over the metadata, a function of a document, or a
            collection of ids; see :mod:`st_keytokens.index.filters`.
        fusion: ``"adaptive"`` for min-max normalised scores, the sparse ones weighed by how clearly the query's terms
            single out documents; ``"score"`` for the same without that; ``"rrf"`` for reciprocal ranks. Only for
            hybrid.
        weights: Factors of ``"dense"`` and ``"sparse"`` in the fusion, 1 where not named. None: the encoder's
            ``fusion_weights``.
        depth: How many hits of each side are fused; None for ``max(100, 10 * top_k)``.
        has_matches: Whether hits say which terms they matched.

    Raises:
        TypeError: If a number is none, or the filter is none of these.
        ValueError: If a value is not one of its choices, or out of its range.
    """

    mode: Mode | None = None
    top_k: int = 10
    filter: Filter | None = None
    fusion: Fusion = "adaptive"
    weights: Mapping[str, float] | None = None
    depth: int | None = None
    has_matches: bool = False

    def __post_init__(self) -> None:
        Plan(self.mode or "sparse", self.top_k, self.depth, "rrf", None)
        check_choice("fusion", self.fusion, get_args(Fusion))
        is_filter = self.filter is None or callable(self.filter) or isinstance(self.filter, (Mapping, Collection))
        if not is_filter or isinstance(self.filter, (str, bytes)):
            raise TypeError(
                "filter must be a dictionary, a function or a collection of ids, got "
                f"{type(self.filter).__name__} {self.filter!r:.60}."
            )
        for name, weight in (self.weights or {}).items():
            check_choice("weights", name, _SIDES)
            checked_float(f"weights[{name!r}]", weight, minimum=0)

    @property
    def fused_depth(self) -> int:
        """How many hits of each side are fused; also what to ask a vector store for."""
        return self.depth or max(100, 10 * self.top_k)

    @property
    def fuse(self) -> Callable[..., list[FusedHit[Any]]]:
        """The function of ``fusion``."""
        return FUSIONS[self.fusion]


@dataclass(frozen=True)
class RetrievedHit:
    """A found document.

    Attributes:
        id: Its id; None for one of a store that gives none.
        score: What the ranking is by: the sparse or dense score, or the fused one.
        rank: Its rank, from 1.
        text: Its text, or None where none was given.
        metadata: Its metadata as they were given, empty where none were.
        scores: The scores of the sides that found it, ``"dense"`` and ``"sparse"``.
        matches: The terms that it shares with the query, by falling contribution, where they were asked for. Empty
            for a document that our index does not hold.
        outside: Its position in the ranking from outside, from 0; None where that does not hold it.
    """

    id: str | None
    score: float
    rank: int
    text: str | None
    metadata: dict[str, Any]
    scores: dict[str, float]
    matches: list[MatchedTerm] | None = None
    outside: int | None = None
