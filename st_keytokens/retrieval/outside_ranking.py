"""A dense ranking that comes from somewhere else, such as a vector store, beside the sparse one of our index."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from st_keytokens.index.documents import Document, Hit, packed_metadata
from st_keytokens.index.filters import Filter, filter_sql
from st_keytokens.retrieval.metadata import as_json, restored
from st_keytokens.retrieval.searching import Fusion, RetrievedHit, SearchSettings

__all__ = ["JoinedHit", "Key", "OutsideHit", "fuse_outside", "is_passing", "joined", "similarities"]


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


@dataclass(frozen=True)
class JoinedHit:
    """A hit of an outside ranking, and what our index knows of it.

    Attributes:
        position: Its position there, from 0.
        given: The hit.
        document: The document of our index that it is; None where our index does not know it.
    """

    position: int
    given: OutsideHit
    document: Document | None

    @property
    def id(self) -> str | None:
        """The id, ours first."""
        return self.given.id if self.document is None else self.document.id

    @property
    def text(self) -> str | None:
        """The text, ours first."""
        return self.given.text if self.document is None else self.document.text

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata, ours first."""
        return dict(self.given.metadata or {}) if self.document is None else restored(self.document.metadata)

    def passes(self, filter: Filter) -> bool:
        """Whether a filter of a search of our index lets it through; not if nothing is known to filter by."""
        if self.document is not None:
            return is_passing(filter, self.document)
        if self.given.metadata is None:
            return False
        return is_passing(filter, Document(self.id or "", self.text, as_json(self.given.metadata)))


def joined(
    outside: Sequence[OutsideHit],
    found: Sequence[Document],
    look_up: Callable[[str], Document | None],
    filter: Filter | None,
) -> dict[Key, JoinedHit]:
    """Outside hits by what they are joined with ours on, those that a filter stops left out.

    Args:
        outside: The ranking, best first. Of several hits of one document the first counts.
        found: The documents of our ranking.
        look_up: A document of our index by id.
        filter: As in :meth:`HybridIndex.search`.

    Returns:
        The hits in order. The key of one that is a document of ours is ``("id", id)``.
    """
    by_id = {document.id: document for document in found}
    by_text = {document.text: document for document in reversed(found)}
    hits: dict[Key, JoinedHit] = {}
    for position, given in enumerate(outside):
        document = None if given.id is None else by_id.get(given.id) or look_up(given.id)
        if document is None and given.text is not None:
            document = by_text.get(given.text)
        hit = JoinedHit(position, given, document)
        hits.setdefault(("text", hit.text) if hit.id is None else ("id", hit.id), hit)
    return {key: hit for key, hit in hits.items() if filter is None or hit.passes(filter)}


def is_passing(filter: Filter, document: Document) -> bool:
    """Whether a search of our index with a filter may find a document, whose metadata are as in our index."""
    if isinstance(filter, Mapping):
        condition, parameters = filter_sql(filter)
        (metadata,) = packed_metadata([document.metadata], 1)
        with closing(sqlite3.connect(":memory:")) as connection:
            query = f"SELECT {condition} FROM (SELECT ? AS metadata)"
            (passes,) = connection.execute(query, [*parameters, metadata]).fetchone()
            return bool(passes)
    if isinstance(filter, Collection):
        return document.id in filter
    return bool(filter(document))
