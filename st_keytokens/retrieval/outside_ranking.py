"""Rankings that come from somewhere else, such as a vector store, beside the sparse one of our index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from st_keytokens.index.documents import Document, Hit
from st_keytokens.index.filters import ParsedFilter, is_passing
from st_keytokens.index.search import SearchPlan
from st_keytokens.retrieval.metadata import as_json, restored
from st_keytokens.retrieval.searching import RetrievedHit, retrieved

__all__ = ["OutsideHit", "fuse_outside", "joined", "similarities"]

Key = tuple[str, str | None]


@dataclass(frozen=True)
class OutsideHit:
    """A hit of another store.

    Attributes:
        id: Its id there, or None where the store gives none.
        text: Its text.
        score: Its score there, or None where the store gives none.
        metadata: Its metadata, which a filter looks at if our index does not know the document. None: unknown, so
            that no filter lets it through.
    """

    id: str | None
    text: str | None = None
    score: float | None = None
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)


def fuse_outside(
    outside: Sequence[OutsideHit] | None,
    found: Sequence[Hit],
    look_up: Callable[[str], Document | None],
    plan: SearchPlan,
    *,
    dense: Sequence[Hit] = (),
    others: Mapping[str, Sequence[OutsideHit]] | None = None,
) -> list[RetrievedHit]:
    """Fuse rankings from outside with those of our index.

    Args:
        outside: A vector store's dense ranking, best first; None for ours.
        found: Our sparse ranking, filtered.
        look_up: A document of our index by id.
        plan: How to fuse, and what filter holds.
        dense: Our dense ranking, filtered, where none is from outside.
        others: More rankings, by names of their own; one that gives no scores counts by its ranks.

    Returns:
        At most ``top_k`` hits, without matches.

    Raises:
        ValueError: If a score of a vector store is missing and the fusion is not ``"rrf"``, or is not finite.
    """
    given: dict[str, Sequence[OutsideHit]] = {**({} if outside is None else {"dense": outside}), **(others or {})}
    theirs = {side: joined(hits, [*found, *dense], look_up, plan.filter, side=side) for side, hits in given.items()}
    ours = {
        side: {("id", hit.id): hit for hit in retrieved(hits)} for side, hits in (("dense", dense), ("sparse", found))
    }
    by_text = {hit.text: key for hits in reversed(theirs.values()) for key, hit in hits.items() if key[0] == "id"}
    sides: dict[str, dict[Key, RetrievedHit]] = {}
    for side in dict.fromkeys((*ours, *given)):
        ranked: dict[Key, RetrievedHit] = {}
        for key, hit in (theirs[side] if side in given else ours[side]).items():
            ranked.setdefault(by_text.get(hit.text, key) if key[0] == "text" else key, hit)
        sides[side] = ranked
    rankings = {}
    for side, ranked in sides.items():
        scores = [hit.score for hit in ranked.values()]
        if side in given:
            hits_there = [given[side][hit.outside] for hit in ranked.values() if hit.outside is not None]
            scores = similarities(hits_there, fusion=plan.fusion if side == "dense" else "rrf")
        rankings[side] = list(zip(ranked, scores, strict=True))
    hits = []
    for rank, fused in enumerate(plan.fused(rankings), start=1):
        of_sides = [ranked[fused.id] for ranked in sides.values() if fused.id in ranked]
        merged = {side: score for hit in of_sides for side, score in hit.scores.items()}
        shown = next((hit for hit in of_sides if hit.outside is None), of_sides[0])
        place = next((hit for hit in of_sides if hit.outside is not None), shown)
        hits.append(
            replace(shown, score=fused.score, rank=rank, scores=merged, outside=place.outside, side=place.side)
        )
    return hits


def similarities(hits: Sequence[OutsideHit], *, fusion: object) -> list[float]:
    """Scores of a ranking, larger ones better.

    Scores that rise along the ranking are distances, and are negated. Where one is missing, those of the ranks stand
    in.

    Args:
        hits: The ranking, best first.
        fusion: What they are for; ``"rrf"`` does not look at them.

    Raises:
        ValueError: If they are needed, and one is missing.

    >>> similarities([OutsideHit("a", score=0.1), OutsideHit("b", score=0.4)], fusion="score")
    [-0.1, -0.4]
    """
    scores = [hit.score for hit in hits if hit.score is not None]
    if len(scores) < len(hits):
        if fusion != "rrf":
            raise ValueError(f"outside hits must have scores for fusion={fusion!r}, got None. Use fusion='rrf'.")
        return [-float(rank) for rank in range(len(hits))]
    is_rising = scores == sorted(scores) and scores[:1] != scores[-1:]
    return [-score for score in scores] if is_rising else scores


def joined(
    outside: Sequence[OutsideHit],
    found: Sequence[Document | Hit],
    look_up: Callable[[str], Document | None],
    filter: ParsedFilter | None,
    *,
    side: str = "dense",
) -> dict[Key, RetrievedHit]:
    """Outside hits by what they are joined with ours on, those that a filter stops left out.

    Args:
        outside: The ranking, best first. Of several hits of one document the first counts.
        found: The documents of our ranking.
        look_up: A document of our index by id.
        filter: A parsed one, over metadata as our index keeps them; of what nothing is known, none lets anything pass.
        side: The name of the ranking.

    Returns:
        The hits in order, their id, text and metadata ours where our index knows the document. The key of one that is
        a document of ours is ``("id", id)``.
    """
    by_id = {document.id: document for document in found}
    by_text = {document.text: document for document in reversed(found)}
    hits: dict[Key, RetrievedHit] = {}
    passing: dict[Key, bool] = {}
    for position, given in enumerate(outside):
        known = None if given.id is None else by_id.get(given.id) or look_up(given.id)
        if known is None and given.text is not None:
            known = by_text.get(given.text)
        id, text = (given.id, given.text) if known is None else (known.id, known.text)
        key: Key = ("text", text) if id is None else ("id", id)
        if key in hits:
            continue
        metadata = dict(given.metadata or {}) if known is None else restored(known.metadata)
        score, scores = (0.0, {}) if given.score is None else (given.score, {side: given.score})
        hits[key] = RetrievedHit(id, score, position + 1, text, metadata, scores, outside=position, side=side)
        if filter is not None:
            stored = None if known is None else known.metadata
            if stored is None and given.metadata is not None:
                stored = as_json(given.metadata)
            passing[key] = stored is not None and is_passing(filter, Document(id or "", text, stored))
    return {key: hit for key, hit in hits.items() if passing.get(key, True)}
