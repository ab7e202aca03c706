"""KeyTokensVectorStore and KeyTokensDocumentIndex: a retriever as what LangChain keeps documents in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import DeleteResponse, UpsertResponse
from langchain_core.indexing.base import DocumentIndex
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import ConfigDict, Field
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import as_encoder, checked_int
from typing_extensions import Self

from langchain_keytokens.embeddings import KeyTokensEmbeddings
from langchain_keytokens.filters import DocumentFilter
from langchain_keytokens.hybrid_retrievers import KeyTokensHybridRetriever
from langchain_keytokens.retrievers import KeyTokensRetriever

__all__ = ["KeyTokensDocumentIndex", "KeyTokensVectorStore"]


class KeyTokensVectorStore(VectorStore):
    """A vector store with dense and sparse vectors of one forward pass, searched by both.

    It is a retriever, sparse or hybrid, under the interface of a store: for ``index()`` with a record manager, and for
    parent-document, multi-vector and self-query retrievers. Over a hybrid retriever that has a vector store of its
    own, what is added and deleted is added and deleted there too.

    Setup:
        .. code-block:: bash

            pip install langchain-keytokens

    Key init args:
        retriever: KeyTokensRetriever
            What it keeps documents in, and searches by. ``from_texts`` and ``from_documents`` make one.

    Instantiate:
        .. code-block:: python

            from langchain_keytokens import KeyTokensEmbeddings, KeyTokensVectorStore
            from st_keytokens import KeyTokenEncoder

            encoder = KeyTokenEncoder("examples/tiny-embedder/embedder")
            store = KeyTokensVectorStore.from_documents(documents, KeyTokensEmbeddings(encoder), path="index")
            store = KeyTokensVectorStore(KeyTokensHybridRetriever.load_local("index", encoder))  # the next day

    Usage:
        .. code-block:: python

            store.similarity_search("planets around other stars", k=2, filter={"year": {"$gte": 2020}})
            store.as_retriever(search_kwargs={"k": 2})
            index(documents, record_manager, store, cleanup="full", source_id_key="source")

    Raises:
        TypeError: If ``retriever`` is none.
    """

    def __init__(self, retriever: KeyTokensRetriever) -> None:
        if not isinstance(retriever, KeyTokensRetriever):
            raise TypeError(
                f"retriever must be a KeyTokensRetriever or KeyTokensHybridRetriever, got {type(retriever).__name__}. "
                "KeyTokensVectorStore.from_documents(documents, embedding) makes one."
            )
        self.retriever = retriever

    @property
    def embeddings(self) -> KeyTokensEmbeddings:
        """Those of the retriever's encoder."""
        return KeyTokensEmbeddings(self.retriever.retriever.encoder)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | KeyTokenEncoder,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """A store of texts, with an index of its own.

        Args:
            texts: The texts.
            embedding: ``KeyTokensEmbeddings``, or the encoder itself, or any ``Embeddings``, see
                ``KeyTokensRetriever.from_texts``.
            metadatas: A dictionary for each.
            ids: An id for each.
            path: Directory of the index; None for a temporary one.
            **settings: Fields of ``KeyTokensHybridRetriever``.

        Raises:
            TypeError: If ``embedding`` is none of these.
        """
        encoder = as_encoder(embedding, path, name="embedding")
        made = KeyTokensHybridRetriever.from_texts(texts, encoder, metadatas, ids=ids, path=path, **settings)
        return cls(made)

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | KeyTokenEncoder,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """:meth:`from_texts`, asynchronously."""
        encoder = await asyncio.to_thread(as_encoder, embedding, path, name="embedding")
        made = await KeyTokensHybridRetriever.afrom_texts(texts, encoder, metadatas, ids=ids, path=path, **settings)
        return cls(made)

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Adds documents, which replace those with their ids.

        Args:
            documents: The documents.
            **kwargs: ``ids``, in place of those of the documents; ``batch_size``, as LangChain gives it, says nothing
                here.

        Raises:
            TypeError: If there is another argument.
            ValueError: See ``KeyTokensRetriever.add_documents``.
        """
        return self.retriever.add_documents(_named(documents, **kwargs))

    async def aadd_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """:meth:`add_documents`, asynchronously."""
        return await self.retriever.aadd_documents(_named(documents, **kwargs))

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Deletes documents by id, all of them for None; ids that are not there are passed over."""
        self.retriever.delete(self.retriever.retriever.ids() if ids is None else ids)
        return True

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """:meth:`delete`, asynchronously."""
        await self.retriever.adelete(self.retriever.retriever.ids() if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Documents by id; those that are not there are left out."""
        return self.retriever.get_by_ids(ids)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """:meth:`get_by_ids`, in a thread."""
        return await asyncio.to_thread(self.get_by_ids, ids)

    def similarity_search(
        self, query: str, k: int = 4, filter: DocumentFilter | None = None, **kwargs: Any
    ) -> list[Document]:
        """The best documents; what else is given goes to the retriever, such as ``search_kwargs``."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: DocumentFilter | None = None, **kwargs: Any
    ) -> list[Document]:
        """:meth:`similarity_search`, asynchronously."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: DocumentFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The best documents with the retriever's score, larger ones better."""
        return self.retriever.search_with_scores(query, k=k, filter=filter, **kwargs)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: DocumentFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """:meth:`similarity_search_with_score`, asynchronously."""
        return await self.retriever.asearch_with_scores(query, k=k, filter=filter, **kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: DocumentFilter | None = None, **kwargs: Any
    ) -> list[Document]:
        """The documents nearest to a dense vector.

        Raises:
            ValueError: If the index has no dense vectors, as that of a sparse retriever or beside another store.
        """
        return self.retriever.search_by_vector(embedding, k=k, filter=filter)

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: DocumentFilter | None = None, **kwargs: Any
    ) -> list[Document]:
        """:meth:`similarity_search_by_vector`, in a thread."""
        return await asyncio.to_thread(self.similarity_search_by_vector, embedding, k, filter)

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: DocumentFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that are like the query and unlike each other, by their dense vectors.

        Args:
            query: The query.
            k: How many.
            fetch_k: Of how many of the best, by both sides.
            lambda_mult: 1 for the nearest ones, 0 for the most different ones.
            filter: As for :meth:`similarity_search`.
            **kwargs: Go to the retriever.

        Raises:
            ValueError: If the index has no dense vectors, or a number is out of its range.
        """
        self._check_diversity(fetch_k, lambda_mult)
        vector = self.embeddings.embed_query(query)
        found = self.similarity_search(query, fetch_k, filter, **kwargs)
        return self._diverse(found, vector, k, lambda_mult)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: DocumentFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """:meth:`max_marginal_relevance_search`, in a thread."""
        return await asyncio.to_thread(
            self.max_marginal_relevance_search, query, k, fetch_k, lambda_mult, filter, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: DocumentFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """:meth:`max_marginal_relevance_search` among the documents nearest to a dense vector."""
        self._check_diversity(fetch_k, lambda_mult)
        found = self.similarity_search_by_vector(embedding, fetch_k, filter)
        return self._diverse(found, embedding, k, lambda_mult)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: DocumentFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """:meth:`max_marginal_relevance_search_by_vector`, in a thread."""
        return await asyncio.to_thread(
            self.max_marginal_relevance_search_by_vector, embedding, k, fetch_k, lambda_mult, filter
        )

    def _check_diversity(self, fetch_k: int, lambda_mult: float) -> None:
        checked_int("fetch_k", fetch_k, minimum=1)
        if not isinstance(lambda_mult, (int, float)) or not 0 <= lambda_mult <= 1:
            raise ValueError(f"lambda_mult must be from 0 to 1, got {lambda_mult!r:.60}.")
        if not self.retriever.retriever.has_dense:
            raise ValueError(
                "maximal marginal relevance must have dense vectors in the index, got a retriever without them. "
                "Use a KeyTokensHybridRetriever with an index of its own, or the search of its vector store."
            )

    def _diverse(self, found: list[Document], vector: Sequence[float], k: int, lambda_mult: float) -> list[Document]:
        index = self.retriever.retriever.index
        known = [document for document in found if document.id is not None and document.id in index]
        rows = index.dense_embeddings([str(document.id) for document in known]).tolist() if known else []
        chosen = maximal_marginal_relevance(np.asarray(vector, np.float32), rows, lambda_mult, k)
        return [known[number] for number in chosen]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Cosines of the dense side, not below 0, which is also that of a document which only the sparse one found."""
        return self.retriever.search_with_cosines(query, k=k, **kwargs)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return await asyncio.to_thread(self._similarity_search_with_relevance_scores, query, k, **kwargs)


class KeyTokensDocumentIndex(DocumentIndex):
    """A retriever under LangChain's interface of a document index, which ``index()`` keeps in step.

    Key init args:
        retriever: KeyTokensRetriever
            What it keeps documents in, and searches by.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    retriever: KeyTokensRetriever = Field(exclude=True, repr=False)

    def upsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Adds documents, which replace those with their ids; all or none."""
        return UpsertResponse(succeeded=self.retriever.add_documents(items), failed=[])

    async def aupsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """:meth:`upsert`, asynchronously."""
        return UpsertResponse(succeeded=await self.retriever.aadd_documents(items), failed=[])

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Deletes documents by id.

        Raises:
            ValueError: If there are no ids.
        """
        known = self.retriever.retriever.known_ids(_given_ids(ids))
        self.retriever.delete(_given_ids(ids))
        return DeleteResponse(num_deleted=len(known), succeeded=known, failed=[], num_failed=0)

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """:meth:`delete`, asynchronously."""
        known = await asyncio.to_thread(self.retriever.retriever.known_ids, _given_ids(ids))
        await self.retriever.adelete(_given_ids(ids))
        return DeleteResponse(num_deleted=len(known), succeeded=known, failed=[], num_failed=0)

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """Documents by id; those that are not there are left out."""
        return self.retriever.get_by_ids(ids)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **own: Any
    ) -> list[Document]:
        return [document for document, _ in self.retriever.search_with_scores(query, **own)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **own: Any
    ) -> list[Document]:
        return [document for document, _ in await self.retriever.asearch_with_scores(query, **own)]


def _given_ids(ids: list[str] | None) -> list[str]:
    if ids is None:
        raise ValueError("ids must be given, got None. Name the documents to delete.")
    return ids


def _named(
    documents: Iterable[Document], *, ids: Sequence[str | None] | None = None, batch_size: int | None = None
) -> list[Document]:
    """Documents under other ids, where some are given."""
    found = list(documents)
    if ids is None:
        return found
    if len(ids) != len(found):
        raise ValueError(f"ids must be as many as documents, {len(found)}, got {len(ids)}.")
    return [document.model_copy(update={"id": id}) for document, id in zip(found, ids, strict=True)]
