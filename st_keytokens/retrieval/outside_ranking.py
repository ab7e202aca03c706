"""A dense ranking that comes from somewhere else, such as a vector store, beside the sparse one of our index."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from st_keytokens.index.documents import Document, packed_metadata
from st_keytokens.index.filters import Filter, filter_sql
from st_keytokens.retrieval.metadata import as_json, restored

__all__ = ["JoinedHit", "Key", "OutsideHit", "is_passing", "joined"]

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
