"""Fusing our sparse ranking with a dense one from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from st_keytokens.index.documents import Document, Hit
from st_keytokens.retrieval.metadata import restored
from st_keytokens.retrieval.outside_ranking import Key, OutsideHit, joined
from st_keytokens.retrieval.searching import Fusion, RetrievedHit, SearchSettings

__all__ = ["fuse_outside", "similarities"]


def fuse_outside(
    outside: Sequence[OutsideHit],
    found: Sequence[Hit],
    look_up: Callable[[str], Document | None],
    settings: SearchSettings,
) -> list[RetrievedHit]:
    """Fuses a dense ranking from outside with our sparse one.

    Args:
        outside: The dense ranking, best first.
        found: Our sparse ranking, filtered.
        look_up: A document of our index by id.
        settings: How to fuse, and what filter holds.

    Returns:
        At most ``top_k`` hits, without matches.

    Raises:
        ValueError: If a score is missing and the fusion is not ``"rrf"``, or is not finite.
    """
    theirs = joined(outside, [Document(hit.id, hit.text, hit.metadata) for hit in found], look_up, settings.filter)
    values = similarities([hit.given for hit in theirs.values()], fusion=settings.fusion)
    ours: dict[Key, Hit] = {("id", hit.id): hit for hit in found}
    rankings = {
        "dense": list(zip(theirs, values, strict=True)),
        "sparse": [(key, hit.score) for key, hit in ours.items()],
    }
    documents = {key: (hit.id, hit.text, hit.metadata) for key, hit in theirs.items()}
    documents |= {key: (hit.id, hit.text, restored(hit.metadata)) for key, hit in ours.items()}
    hits = []
    for rank, fused in enumerate(settings.fuse(rankings, weights=settings.weights)[: settings.top_k], start=1):
        own, other = ours.get(fused.id), theirs.get(fused.id)
        scores = {"dense": None if other is None else other.given.score, "sparse": None if own is None else own.score}
        known = {side: score for side, score in scores.items() if score is not None}
        id, text, metadata = documents[fused.id]
        position = None if other is None else other.position
        hits.append(RetrievedHit(id, fused.score, rank, text, metadata, known, outside=position))
    return hits


def similarities(hits: Sequence[OutsideHit], *, fusion: Fusion) -> list[float]:
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
