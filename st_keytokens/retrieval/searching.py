"""How to search, and what is found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from st_keytokens.index.documents import Hit, MatchedTerm
from st_keytokens.index.filters import Condition, Filter, ParsedFilter
from st_keytokens.index.fusion import FUSIONS, FusedHit, FusionName
from st_keytokens.index.search import SIDES, Mode, SearchPlan, default_depth
from st_keytokens.retrieval.metadata import KINDS_KEY, restored
from st_keytokens.shared.checks import check_choice, checked_float

__all__ = ["Fusion", "RetrievedHit", "SearchSettings", "checked_sides", "retrieved"]

Fusion = FusionName


@dataclass(frozen=True)
class SearchSettings:
    """How to search. Change one for a call with ``dataclasses.replace(settings, top_k=3)``.

    Attributes:
        mode: ``"sparse"``, ``"dense"`` or ``"hybrid"``; None for hybrid where there are dense rows or a dense ranking
            from outside, and sparse elsewhere.
        top_k: At most so many hits.
        filter: Which documents may be found: a dictionary over the metadata, a function of a document, or a
            collection of ids; see :mod:`st_keytokens.index.filters`.
        fusion: ``"adaptive"`` for min-max normalised scores, each side weighed by how clearly it singles out
            documents for the query; ``"score"`` for the same without that; ``"rrf"`` for reciprocal ranks. Only for
            hybrid.
        weights: Factors of ``"dense"``, ``"sparse"`` and ``others`` in the fusion, 1 where not named. None: the
            encoder's ``fusion_weights``.
        depth: How many hits of each side are fused; None for ``max(100, 10 * top_k)``.
        has_matches: Whether hits say which terms they matched.
        needs_known_word: Whether a sparse search finds nothing for a query none of whose own words a document has;
            only where terms are words. What such a query decodes to is noise: its best scores are those of real
            queries, nearly all of which have a word that is known (``docs/results/unknown-words.json``).
        others: Names of rankings from outside that are fused beside the dense and the sparse one.
        group_by: A key of the metadata of whose values each is found once, by its best document; documents without
            the key are found all. None: no groups.

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
    needs_known_word: bool = True
    others: tuple[str, ...] = ()
    group_by: str | None = None

    def __post_init__(self) -> None:
        plan = SearchPlan.checked(mode=self.mode, top_k=self.top_k, depth=self.depth)
        object.__setattr__(self, "top_k", plan.top_k)
        object.__setattr__(self, "depth", None if self.depth is None else plan.depth)
        check_choice("fusion", self.fusion, get_args(Fusion))
        is_filter = (
            self.filter is None or callable(self.filter) or isinstance(self.filter, Mapping | Collection | Condition)
        )
        if not is_filter or isinstance(self.filter, (str, bytes)):
            raise TypeError(
                "filter must be a dictionary, a function or a collection of ids, got "
                f"{type(self.filter).__name__} {self.filter!r:.60}."
            )
        if self.weights is not None and not isinstance(self.weights, Mapping):
            raise TypeError(
                f"weights must be a dictionary of 'dense' and 'sparse', got {type(self.weights).__name__} "
                f"{self.weights!r:.60}. Give {{'dense': 1.0, 'sparse': 2.0}}."
            )
        if self.group_by is not None and not isinstance(self.group_by, str):
            raise TypeError(
                f"group_by must be a key of the metadata, got {type(self.group_by).__name__} {self.group_by!r:.60}."
            )
        for name, weight in (self.weights or {}).items():
            check_choice("weights", name, (*SIDES, *self.others))
            checked_float(f"weights[{name!r}]", weight, minimum=0)

    @property
    def fused_depth(self) -> int:
        """How many hits of each side are fused; also what to ask a vector store for."""
        return self.depth or default_depth(self.top_k)

    @property
    def fuse(self) -> Callable[..., list[FusedHit[Any]]]:
        """The function of ``fusion``."""
        return FUSIONS[self.fusion]

    def plan(self, *, mode: Mode, weights: Mapping[str, float] | None, filter: ParsedFilter | None) -> SearchPlan:
        """The plan of a search with these settings, which are checked, once what was open in them is known."""
        return SearchPlan(mode, self.top_k, self.fused_depth, self.fusion, weights, filter)


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
        outside: Its position in the first ranking from outside that holds it, from 0; None where none does.
        side: The name of that ranking.
    """

    id: str | None
    score: float
    rank: int
    text: str | None
    metadata: dict[str, Any]
    scores: dict[str, float]
    matches: list[MatchedTerm] | None = None
    outside: int | None = None
    side: str = "dense"


def retrieved(hits: Sequence[Hit]) -> list[RetrievedHit]:
    """Hits of our index, their metadata as they were given."""
    return [
        RetrievedHit(
            hit.id,
            hit.score,
            hit.rank,
            hit.text,
            restored(hit.metadata) if KINDS_KEY in hit.metadata else hit.metadata,
            hit.scores,
        )
        for hit in hits
    ]


def checked_sides(retrievers: object, kind: type[Any], instead: str) -> dict[str, Any]:
    """More sides of a hybrid by their names, as an application gives them.

    Args:
        retrievers: A dictionary; None for none.
        kind: The host's class of retrievers.
        instead: What an error advises for something else than one.

    Raises:
        TypeError: If it is no dictionary, or holds something else than retrievers.
        ValueError: If a name is no string, empty, or that of one of our own sides.
    """
    if retrievers is None:
        return {}
    if not isinstance(retrievers, Mapping):
        raise TypeError(
            f"retrievers must be a dictionary of retrievers by name, got {type(retrievers).__name__}. "
            "For example {'bm25': bm25_retriever}."
        )
    for name, retriever in retrievers.items():
        if not isinstance(name, str) or not name or name in SIDES:
            raise ValueError(f"retrievers must have names other than 'dense' and 'sparse', got {name!r:.60}.")
        if not isinstance(retriever, kind):
            raise TypeError(f"retrievers must be retrievers, got {type(retriever).__name__} for {name!r}. {instead}")
    return dict(retrievers)
