"""KeyTokensHybridRetriever: dense and sparse retrieval from one forward pass, fused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from pydantic import Field, model_validator
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import Fusion, OnConflict, OutsideHit, Retriever, SearchSettings
from typing_extensions import Self, Unpack

from langchain_keytokens.embeddings import KeyTokensEmbeddings
from langchain_keytokens.retrievers import KeyTokensRetriever, QueryArguments, checked_query

__all__ = ["KeyTokensHybridRetriever"]

Ranked = Sequence[tuple[Document, float | None]]


class KeyTokensHybridRetriever(KeyTokensRetriever):
    """Finds documents by dense and by sparse vectors, and fuses both rankings.

    The dense side is the retriever's own index or any LangChain vector store; with ``KeyTokensEmbeddings`` of the same
    encoder in the store, every text and every query still takes one forward pass. Both rankings are joined by
    ``Document.id``; by text where the store gives no id. A store that fails, fails the search, and so does one that is
    empty beside an index that is not, or the other way round: there is no fall-back to one side.

    Setup:
        .. code-block:: bash

            pip install langchain-keytokens

    Key init args:
        retriever: st_keytokens.retrieval.Retriever
            Encoder and index, see ``KeyTokensRetriever``, which also has ``k``, ``filter``, ``score_key`` and
            ``matches_key``.
        vectorstore: VectorStore | None
            Where the dense ranking comes from; None for the retriever's own index. It must rank by dense vectors
            alone.
        fusion: Literal["adaptive", "score", "rrf"]
            Min-max normalised scores, of which ``"adaptive"``, the default, weighs the sparse ones by how clearly the
            query's terms single out documents; or reciprocal ranks, which need no scores and rank worse where one side
            is much weaker. Scores that rise along a store's ranking are taken for distances, and turned round.
        weights: dict[str, float] | None
            Factors of ``"dense"`` and ``"sparse"`` in the fusion, 1 where not named. None: the encoder's
            ``fusion_weights``, or 1 each beside a store with other embeddings than ``KeyTokensEmbeddings`` of it.
        depth: int | None
            How many documents of each side are fused, by default ``max(100, 10 * k)``.
        scores_key: str | None
            Key of the metadata that the scores of both sides go to.
        id_key: str | None
            Key of the store's metadata that holds the id, for stores that do not set ``Document.id``: ``"_id"`` for
            langchain-qdrant, ``"pk"`` for langchain-milvus.
        search_kwargs: dict
            What the store's ``similarity_search_with_score`` is called with besides query and k, such as its own
            ``filter``.

    Instantiate:
        .. code-block:: python

            from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever
            from st_keytokens import KeyTokenEncoder

            encoder = KeyTokenEncoder("examples/tiny-embedder/embedder")
            encoder.calibrate(texts)
            retriever = KeyTokensHybridRetriever.from_texts(texts, encoder, k=5)

            store = InMemoryVectorStore(KeyTokensEmbeddings(encoder))  # or the one that you have
            retriever = KeyTokensHybridRetriever.from_texts(texts, encoder, vectorstore=store, k=5)

    Usage:
        .. code-block:: python

            for document in retriever.invoke("planets around other stars", filter={"year": {"$gte": 2020}}):
                print(document.metadata["score"], document.metadata["scores"])
            await retriever.ainvoke("planets around other stars", search_kwargs={"filter": store_filter})

    Raises:
        ValueError: If there is neither a vector store nor an index with dense vectors, or a setting is out of its
            range; at a search, if the encoder was changed after the index was made, or the store is empty and the
            index is not, or the other way round.
    """

    vectorstore: VectorStore | None = Field(default=None, exclude=True, repr=False)
    fusion: Fusion = "adaptive"
    weights: dict[str, float] | None = None
    depth: int | None = Field(default=None, ge=1)
    scores_key: str | None = "scores"
    id_key: str | None = None
    search_kwargs: dict[str, Any] = Field(default_factory=dict, exclude=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._search_settings()
        if self.vectorstore is None and not self.retriever.has_dense:
            raise ValueError(
                "vectorstore must be given for an index without dense vectors, got None. "
                "Pass the vector store that it was made with."
            )
        return self

    @classmethod
    def _new_retriever(
        cls, encoder: KeyTokenEncoder, path: str | PathLike[str] | None, settings: Mapping[str, Any]
    ) -> Retriever:
        return Retriever(encoder, path, has_dense=settings.get("vectorstore") is None)

    def add_documents(
        self,
        documents: Sequence[Document],
        *,
        on_conflict: OnConflict = "replace",
        is_in_vectorstore: bool = False,
    ) -> list[str]:
        """Adds documents to the index and to the vector store, if there is one. They are not changed.

        What the index would refuse is refused before the store is asked. If the store fails, the index is as before;
        the store may have kept some of them by then, and adding again mends a store that replaces by id.

        Args:
            documents: The documents; one without an id gets a new UUID.
            on_conflict: What to do about an id that is there already: ``"replace"`` the document, or ``"error"``.
            is_in_vectorstore: Whether the store holds them already, under these ids.

        Returns:
            Their ids; those that the store gave where it does not take ids.

        Raises:
            TypeError: If metadata hold what cannot be kept; the error names the key.
            ValueError: If an id is given twice, or is there and not to be replaced.
            Exception: What the vector store raises.
        """
        if self.vectorstore is None or is_in_vectorstore:
            return super().add_documents(documents, on_conflict=on_conflict)
        named, replaced = self._prepared(documents, on_conflict)
        if replaced:
            self.vectorstore.delete(ids=replaced)
        given = self.vectorstore.add_documents(named, ids=[document.id for document in named])
        try:
            return self._indexed(named, given, replaced)
        except BaseException:
            self.vectorstore.delete(ids=given)
            raise

    async def aadd_documents(
        self,
        documents: Sequence[Document],
        *,
        on_conflict: OnConflict = "replace",
        is_in_vectorstore: bool = False,
    ) -> list[str]:
        """:meth:`add_documents` by the store's asynchronous methods, and in a thread."""
        if self.vectorstore is None or is_in_vectorstore:
            return await super().aadd_documents(documents, on_conflict=on_conflict)
        named, replaced = await asyncio.to_thread(self._prepared, documents, on_conflict)
        if replaced:
            await self.vectorstore.adelete(ids=replaced)
        given = await self.vectorstore.aadd_documents(named, ids=[document.id for document in named])
        try:
            return await asyncio.to_thread(self._indexed, named, given, replaced)
        except BaseException:
            await self.vectorstore.adelete(ids=given)
            raise

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes documents from the vector store, if there is one, and from the index.

        Args:
            ids: Their ids; those that are not there are passed over.

        Returns:
            How many were in the index.

        Raises:
            RuntimeError: If the store says that it did not delete them; nothing is deleted from the index.
            Exception: What the vector store raises; nothing is deleted from the index.
        """
        if self.vectorstore is not None:
            _check_deleted(self.vectorstore.delete(ids=list(ids)))
        return super().delete(ids)

    async def adelete(self, ids: Sequence[str]) -> int:
        """:meth:`delete` by the store's asynchronous method, and in a thread."""
        if self.vectorstore is not None:
            _check_deleted(await self.vectorstore.adelete(ids=list(ids)))
        return await asyncio.to_thread(self.retriever.delete, ids)

    def _prepared(self, documents: Sequence[Document], on_conflict: OnConflict) -> tuple[list[Document], list[str]]:
        """Documents with ids that the index will take, and the ids of those that they replace."""
        ids = self.retriever.check_addable(
            [document.page_content for document in documents],
            ids=[document.id for document in documents],
            metadata=[document.metadata for document in documents],
            on_conflict=on_conflict,
        )
        named = [
            Document(id=id, page_content=document.page_content, metadata=dict(document.metadata))
            for id, document in zip(ids, documents, strict=True)
        ]
        return named, self.retriever.known_ids(ids)

    def _indexed(self, documents: Sequence[Document], given: Sequence[Any], replaced: Sequence[str]) -> list[str]:
        """Adds documents to the index under the ids that the store gave."""
        ids = self.retriever.add(
            [document.page_content for document in documents],
            ids=[str(id) for id in given],
            metadata=[document.metadata for document in documents],
            on_conflict="replace" if replaced else "error",
        )
        self.retriever.delete(set(replaced) - set(ids))
        return ids

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        search_kwargs: Mapping[str, Any] | None = None,
        **own: Unpack[QueryArguments],
    ) -> list[Document]:
        query, settings = checked_query(query), self._search_settings(**own)
        outside = None
        if (ranking := self._ranking(search_kwargs)) is not None:
            outside = ranking.search(query, settings)
        return self._documents(self.retriever.search(query, settings, outside=outside), self.scores_key)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        search_kwargs: Mapping[str, Any] | None = None,
        **own: Unpack[QueryArguments],
    ) -> list[Document]:
        query, settings = checked_query(query), self._search_settings(**own)
        outside = None
        if (ranking := self._ranking(search_kwargs)) is not None:
            outside = await ranking.asearch(query, settings)
        found = await self.retriever.asearch(query, settings, outside=outside)
        return self._documents(found, self.scores_key)

    def _ranking(self, search_kwargs: Mapping[str, Any] | None) -> VectorStoreRanking | None:
        if self.vectorstore is None:
            if search_kwargs:
                raise ValueError(f"search_kwargs must be for a vector store, got {search_kwargs} without one.")
            return None
        arguments = self.search_kwargs if search_kwargs is None else search_kwargs
        return VectorStoreRanking(self.vectorstore, self.id_key, self.retriever, arguments)

    def _search_settings(self, **own: Unpack[QueryArguments]) -> SearchSettings:
        return replace(
            super()._search_settings(**own),
            mode="hybrid",
            fusion=self.fusion,
            weights={} if self.weights is None and self._has_other_embeddings else self.weights,
            depth=self.depth,
        )

    @property
    def _has_other_embeddings(self) -> bool:
        if self.vectorstore is None:
            return False
        embeddings = self.vectorstore.embeddings
        return not (isinstance(embeddings, KeyTokensEmbeddings) and embeddings.encoder is self.retriever.encoder)


@dataclass(frozen=True)
class VectorStoreRanking:
    """Asks a vector store for twice as many until enough pass a filter of ours, as stores share no filter language."""

    store: VectorStore
    id_key: str | None
    retriever: Retriever
    arguments: Mapping[str, Any]

    def search(self, query: str, settings: SearchSettings) -> list[OutsideHit]:
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


def _check_deleted(answer: bool | None) -> None:
    if answer is False:
        raise RuntimeError("the vector store must delete what it is asked to, got False from it. Look into its log.")
