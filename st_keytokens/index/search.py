"""Searching: the one plan of a search, how queries are embedded for it, and how sides are ranked and fused.

The index, the engines and the retrievers all search by a :class:`SearchPlan`. It is checked once, where a user's
arguments come in; what an encoder and an index decide (mode and weights, where they were not given) is filled in by
:meth:`SearchPlan.settled`; and every hybrid ranking is made by :meth:`SearchPlan.fused`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_keytokens.index.dense import best_dense, checked_dense
from st_keytokens.index.documents import MatchedTerm, checked_strings
from st_keytokens.index.filters import Condition, Filter, ParsedFilter, looks_inside, parse_filter, refused_condition
from st_keytokens.index.fusion import FUSIONS, FusedHit, FusionFunction
from st_keytokens.index.kernels import Ranking
from st_keytokens.index.store import Encoder, as_hybrid, check_sizes
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.terms.vocabulary import TermStrings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.index.segments import Postings
    from st_keytokens.index.snapshot import Snapshot

__all__ = [
    "SIDES",
    "Mode",
    "SearchPlan",
    "Side",
    "default_depth",
    "dense_rankings",
    "embedded_queries",
    "fused_rankings",
    "matched_terms",
]

Mode = Literal["hybrid", "sparse", "dense"]
Side = Literal["dense", "sparse"]

SIDES: tuple[Side, Side] = ("dense", "sparse")
_MODES: tuple[Mode, ...] = ("hybrid", "sparse", "dense")


def default_depth(top_k: int) -> int:
    """How many hits of each side are fused for ``top_k`` hits, where nothing is said."""
    return max(100, 10 * top_k)


@dataclass(slots=True)  # freezing would triple the time that it takes to make one
class SearchPlan:
    """How to search, checked. Made by :meth:`checked`, never altered; its constructor takes what is checked already.

    Attributes:
        mode: What to rank by; None until :meth:`settled` for what collection and queries have.
        top_k: At most so many hits for a query.
        depth: How many hits of each side are fused.
        fusion: The name of a fusion, or a function such as those of :mod:`st_keytokens.index.fusion`.
        weights: The sides' factors in it; None for 1 each, or for those of an engine's own fusion.
        filter: Which documents may be found; None for all.

    >>> plan = SearchPlan.checked(top_k=1, fusion="score", filter={"year": {"$gte": 2000}})
    >>> plan.depth, plan.condition
    (100, Compares(key='year', operator='$gte', bound=2000))
    >>> [hit.id for hit in plan.fused({"dense": [("a", 0.9), ("b", 0.8)], "sparse": [("a", 7.0)]})]
    ['a']
    """

    mode: Mode | None
    top_k: int
    depth: int
    fusion: str | FusionFunction
    weights: Mapping[str, float] | None
    filter: ParsedFilter | None

    @classmethod
    def checked(
        cls,
        *,
        mode: Mode | None = None,
        top_k: int = 10,
        depth: int | None = None,
        fusion: str | FusionFunction = "adaptive",
        weights: Mapping[str, float] | None = None,
        filter: Filter | None = None,
        fusions: Collection[str] = tuple(FUSIONS),
    ) -> SearchPlan:
        """A plan of a user's arguments.

        Args:
            mode: See :class:`SearchPlan`.
            top_k: See :class:`SearchPlan`.
            depth: See :class:`SearchPlan`; None for ``max(100, 10 * top_k)``.
            fusion: See :class:`SearchPlan`.
            weights: See :class:`SearchPlan`; the fusion checks them.
            filter: See :mod:`st_keytokens.index.filters`.
            fusions: The names that ``fusion`` may have.

        Raises:
            TypeError: If a number is not an integer, or the filter of another type.
            ValueError: If a number is below 1, a name is unknown, or the filter holds what is not allowed.
        """
        top_k = checked_int("top_k", top_k, minimum=1)
        depth = default_depth(top_k) if depth is None else checked_int("depth", depth, minimum=1)
        if mode is not None:
            check_choice("mode", mode, _MODES)
        if not callable(fusion) and fusion not in fusions:
            raise ValueError(f"fusion must be one of {', '.join(map(repr, fusions))} or a function, got {fusion!r}.")
        return cls(mode, top_k, depth, fusion, weights, None if filter is None else parse_filter(filter))

    @property
    def condition(self) -> Condition | None:
        """The filter for an engine: no function, and nothing that looks into lists, strings and dictionaries.

        Raises:
            TypeError: If it is a function.
            ValueError: If it looks into them.
        """
        if callable(self.filter):
            raise TypeError(
                "filter must be a dictionary or a collection of ids, got a function. An engine cannot call it."
            )
        if self.filter is not None and (refused := looks_inside(self.filter)):
            raise refused_condition(refused)
        return self.filter

    def is_hybrid(self, embedding_dimension: int | None) -> bool:
        """Whether queries are to be embedded for both sides, in an index of that dimension."""
        return self.mode == "hybrid" or (self.mode is None and bool(embedding_dimension))

    def settled(
        self,
        queries: HybridEmbeddings,
        *,
        vocab_size: int | None,
        embedding_dimension: int | None,
        encoder: Encoder | None,
    ) -> SearchPlan:
        """The plan for some queries, which are checked, with its mode and its weights.

        Args:
            queries: Their embeddings.
            vocab_size: That of the index or collection; None where it is not settled, which fits all.
            embedding_dimension: Likewise.
            encoder: Gives the weights of the fusions of our index where there are none.

        Raises:
            ValueError: If the queries are over another vocabulary, or the mode needs dense rows and these are missing
                or in another dimension.
        """
        mode, weights = self.mode, self.weights
        if mode is None:
            mode = "hybrid" if queries.dense is not None and embedding_dimension else "sparse"
        check_sizes("queries", queries, vocab_size, embedding_dimension, needs_dense=mode != "sparse")
        if mode != "sparse" and queries.dense is None and embedding_dimension is not None:
            raise ValueError("queries must have dense rows for this mode, got none. Use mode='sparse'.")
        if weights is None and encoder is not None and (callable(self.fusion) or self.fusion in FUSIONS):
            weights = encoder.fusion_weights
        if mode is self.mode and weights is self.weights:
            return self  # which is a tenth of a search of a small index
        return replace(self, mode=mode, weights=weights)

    def fused(self, rankings: Mapping[str, Sequence[tuple[Any, float]]]) -> list[FusedHit[Any]]:
        """The best ``top_k`` of the rankings of both sides, ``"dense"`` first, by the plan's fusion.

        Raises:
            TypeError: If a weight is not a number.
            ValueError: If a weight names no side or is negative, or a score is not finite.
        """
        fuse = self.fusion if callable(self.fusion) else FUSIONS[self.fusion]
        return fuse(rankings, weights=self.weights)[: self.top_k]

    def refuse_weights(self) -> None:
        """For an engine's fusion that has none.

        Raises:
            ValueError: If there are some.
        """
        if self.weights is not None:
            raise ValueError(f"weights must be None for fusion={self.fusion!r}, which has none. Use fusion='score'.")


def embedded_queries(
    name: str,
    queries: Sequence[str] | HybridEmbeddings | SparseEmbeddings,
    encoder: Callable[[str], Encoder],
    *,
    is_hybrid: bool,
) -> HybridEmbeddings:
    """Embeddings of queries, which are texts or embeddings already.

    Args:
        name: What errors call them.
        queries: The queries.
        encoder: Gives the encoder, checked, or raises where there is none; called for texts only, with ``name``.
        is_hybrid: Whether they are for a search by both sides.

    Raises:
        TypeError: If they are of another type.
    """
    if isinstance(queries, (HybridEmbeddings, SparseEmbeddings)):
        return as_hybrid(name, queries)
    texts = checked_strings(name, queries)
    return encoder(name).encode_query(texts, is_hybrid=is_hybrid)


def dense_rankings(
    snapshot: Snapshot, queries: NDArray[Any], mask: NDArray[np.bool_] | None, limit: int
) -> Iterator[Ranking]:
    """The best rows of a snapshot for each query by similarity, and their scores.

    Args:
        snapshot: What to search.
        queries: Dense embeddings in its dimension.
        mask: Rows that may be found, padded; None for all.
        limit: At most so many rows.

    Raises:
        ValueError: If a value is not finite.
    """
    rows = np.arange(snapshot.num_rows) if mask is None else np.flatnonzero(mask[: snapshot.num_rows])
    parts = [segment.dense for segment in snapshot.segments if segment.dense is not None]
    dense = checked_dense("queries", queries, "float32")
    return best_dense(parts, dense, snapshot.settings["similarity"], rows, limit)


def fused_rankings(plan: SearchPlan, sides: Mapping[Side, Iterable[Ranking]]) -> Iterator[list[FusedHit[int]]]:
    """The rows of the sides' rankings in one ranking, for each query; see :meth:`SearchPlan.fused`."""
    for rankings in zip(*sides.values(), strict=True):
        pairs = [list(zip(rows.tolist(), found.tolist(), strict=True)) for rows, found in rankings]
        yield plan.fused(dict(zip(sides, pairs, strict=True)))


def matched_terms(
    postings: Postings, row: int, query: SparseEmbeddings, strings: TermStrings | None
) -> list[MatchedTerm]:
    """The terms that the first query shares with a row, by falling contribution, ties by term id."""
    matched = []
    for term, weight in zip(*query.row(0), strict=True):
        held = postings.weight(term, row)
        if held:
            token = None if strings is None else strings[term]
            matched.append(MatchedTerm(int(term), token, float(weight), held, float(weight * np.float32(held))))
    return sorted(matched, key=lambda match: (-match.contribution, match.term_id))
