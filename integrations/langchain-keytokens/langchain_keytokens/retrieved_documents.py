"""Hits as LangChain documents."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from st_keytokens.index import Document as IndexedDocument
from st_keytokens.retrieval import RetrievedHit

__all__ = ["DocumentFilter", "as_documents", "as_index_filter"]

DocumentFilter = Mapping[str, Any] | Callable[[Document], bool] | Collection[str]


def as_documents(
    hits: Sequence[RetrievedHit],
    *,
    score_key: str | None,
    scores_key: str | None = None,
    matches_key: str | None = None,
) -> list[Document]:
    """New documents of hits, best first.

    Args:
        hits: What was found.
        score_key: Where in their metadata the score goes; None: nowhere. It takes the place of a key of that name.
        scores_key: The same for the dictionary of component scores.
        matches_key: The same for the list of matched tokens with their contributions to the sparse score.
    """
    documents = []
    for hit in hits:
        metadata = dict(hit.metadata)
        if score_key is not None:
            metadata[score_key] = hit.score
        if scores_key is not None:
            metadata[scores_key] = dict(hit.scores)
        if matches_key is not None:
            metadata[matches_key] = [
                {"token": match.token, "contribution": match.contribution} for match in hit.matches or ()
            ]
        documents.append(Document(id=hit.id, page_content=hit.text or "", metadata=metadata))
    return documents


def as_index_filter(
    filter: DocumentFilter | None,
) -> Mapping[str, Any] | Callable[[IndexedDocument], bool] | Collection[str] | None:
    """A filter over LangChain documents as one over those of the index."""
    if not callable(filter):
        return filter
    return lambda found: filter(Document(id=found.id, page_content=found.text or "", metadata=found.metadata))
