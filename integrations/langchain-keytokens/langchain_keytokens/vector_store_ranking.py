"""The dense side of a hybrid search that comes from a LangChain vector store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from st_keytokens.retrieval import OutsideHit, Retriever, SearchSettings

__all__ = ["VectorStoreRanking"]

Ranked = Sequence[tuple[Document, float | None]]


@dataclass(frozen=True)
class VectorStoreRanking:
    """Asks a vector store for a ranking, as deep as a filter of ours makes it necessary.

    Vector stores have no filter language in common, so a filter is applied to what the store returns, and the store
    is asked for twice as many until enough pass or it has no more.

    Args:
        store: The vector store.
        id_key: Key of its documents' metadata that holds the id, where it does not set ``Document.id``.
        retriever: What knows the documents that a filter is about.
        arguments: What the store's search is called with besides query and number.
    """

    store: VectorStore
    id_key: str | None
    retriever: Retriever
    arguments: Mapping[str, Any]

    def search(self, query: str, settings: SearchSettings) -> list[OutsideHit]:
        """Hits of the store, best first; its errors are the caller's.

        Raises:
            ValueError: If store or index is empty beside the other, see :meth:`Retriever.check_outside`.
        """
        if not query.strip():
            return []  # as in our index: nothing is like nothing
        depth = settings.fused_depth
        while True:
            ranked: Ranked
            if self._has_scores:
                ranked = self.store.similarity_search_with_score(query, k=depth, **self.arguments)
            else:
                documents = self.store.similarity_search(query, k=depth, **self.arguments)
                ranked = [(found, None) for found in documents]
            hits = self._hits(ranked)
            if self._is_enough(hits, depth, settings):
                return self._checked(hits, settings)
            depth *= 2

    async def asearch(self, query: str, settings: SearchSettings) -> list[OutsideHit]:
        """:meth:`search` by the store's asynchronous methods."""
        if not query.strip():
            return []  # as in our index: nothing is like nothing
        depth = settings.fused_depth
        while True:
            ranked: Ranked
            if self._has_scores:
                ranked = await self.store.asimilarity_search_with_score(query, k=depth, **self.arguments)
            else:
                ranked = [
                    (found, None) for found in await self.store.asimilarity_search(query, k=depth, **self.arguments)
                ]
            hits = self._hits(ranked)
            if self._is_enough(hits, depth, settings):
                return self._checked(hits, settings)
            depth *= 2

    @property
    def _has_scores(self) -> bool:
        own = type(self.store).similarity_search_with_score
        return own is not VectorStore.similarity_search_with_score

    def _hits(self, ranked: Ranked) -> list[OutsideHit]:
        return [
            OutsideHit(self._id(found), found.page_content, None if score is None else float(score), found.metadata)
            for found, score in ranked
        ]

    def _id(self, found: Document) -> str | None:
        if found.id is not None or self.id_key is None:
            return found.id
        id = found.metadata.get(self.id_key)
        return None if id is None else str(id)

    def _checked(self, hits: list[OutsideHit], settings: SearchSettings) -> list[OutsideHit]:
        is_filtered = settings.filter is not None or bool(self.arguments)  # the store's own filter may be among these
        self.retriever.check_outside(hits, is_filtered=is_filtered)
        return hits

    def _is_enough(self, hits: Sequence[OutsideHit], depth: int, settings: SearchSettings) -> bool:
        if settings.filter is None or len(hits) < depth:
            return True
        return len(self.retriever.passing(hits, settings.filter)) >= settings.fused_depth
