"""KeyTokensHybridRetriever: dense and sparse retrieval from one forward pass, fused."""

from __future__ import annotations

import asyncio
import inspect
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun, Callbacks
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from pydantic import Field, field_validator, model_validator
from st_keytokens import KeyTokenEncoder
from st_keytokens.index import Document as IndexedDocument
from st_keytokens.retrieval import (
    Fusion,
    OnConflict,
    OutsideHit,
    RetrievedHit,
    Retriever,
    SearchSettings,
    calls_functions,
    checked_sides,
    is_embedder_of,
    json_value,
)
from typing_extensions import Self, Unpack

from langchain_keytokens.embeddings import KeyTokensEmbeddings
from langchain_keytokens.retrievers import (
    Batch,
    KeyTokensRetriever,
    QueryArguments,
    checked_documents,
    checked_query,
    with_ids,
)
from langchain_keytokens.stored_documents import StoredDocuments, id_key_of, present_ids

__all__ = ["KeyTokensHybridRetriever"]

Ranked = Sequence[tuple[Document, float | None]]

logger = logging.getLogger(__name__)

SCORE_KEY = "_keytokens_score"
MOST_FILTERED = 10_000  # what Pinecone and, nearly, Milvus give at most for one query
_VECTOR_METHODS = "similarity_search_with_score_by_vector", "similarity_search_by_vector_with_relevance_scores"
_FILTERS_NOTHING = frozenset(
    "fetch_k lambda_mult param params search_params timeout consistency hybrid_fusion ranker_type ranker_params ef "
    "efsearch ef_search".split()
)


class KeyTokensHybridRetriever(KeyTokensRetriever):
    """Finds documents by dense and by sparse vectors, and fuses both rankings.

    The dense side is the retriever's own index or any LangChain vector store; with ``KeyTokensEmbeddings`` of the same
    encoder in the store, every text and every query still takes one forward pass. Both rankings are joined by
    ``Document.id``; by text where the store gives no id. A store that fails, fails the search, and so does one that is
    empty beside an index that is not, or the other way round: there is no fall-back to one side. Where both differ in
    number, opening a retriever warns with both numbers, and ``update_from_vectorstore`` brings the index in step.

    A filter holds for both sides, however it is given: ``filter`` for what the store returns, and one of the store's
    own, among ``search_kwargs``, for what the index finds, of which only what the store lets through comes back.

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
        retrievers: dict[str, BaseRetriever]
            More sides by names of your choice, which ``weights`` and the scores know them by: any number of retrievers
            over the same documents, such as a ``BM25Retriever``. What each returns is joined, filtered and fused with
            the other sides; one without scores counts by its ranks. Every one of them has to answer.
        fusion: Literal["adaptive", "score", "rrf"]
            Min-max normalised scores, of which ``"adaptive"``, the default, weighs each side by how clearly it singles
            out documents for the query; or reciprocal ranks, which need no scores and rank worse where one side
            is much weaker. Scores that rise along a store's ranking are taken for distances, and turned round.
        weights: dict[str, float] | None
            Factors of ``"dense"``, ``"sparse"`` and the ``retrievers``, 1 where not named. None: the encoder's
            ``fusion_weights``, or 1 each beside a store with other embeddings than ``KeyTokensEmbeddings`` of it.
        depth: int | None
            How many documents of each side are fused, by default ``max(100, 10 * k)``.
        scores_key: str | None
            Key of the metadata that the scores of both sides go to; None, the default, leaves them out.
        id_key: str | None
            Key of the store's metadata that holds the id, for stores that do not set ``Document.id``. None: that of
            langchain-qdrant (``"_id"``) and of langchain-milvus (``"pk"``), and no key for other stores.
        search_kwargs: dict
            What the store's ``similarity_search_with_score`` is called with besides query and k, such as its own
            ``filter``; what a call gives is joined with it key by key. The store is then asked for as many documents
            as the index holds, at most 10,000, to learn which it lets through.

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
                print(document.id, document.page_content)
            await retriever.ainvoke("planets around other stars", search_kwargs={"filter": store_filter})

    Raises:
        ValueError: If there is neither a vector store nor an index with dense vectors, or a setting is out of its
            range; at a search, if the encoder was changed after the index was made, or the store is empty and the
            index is not, or the other way round.
    """

    vectorstore: VectorStore | None = Field(default=None, exclude=True, repr=False)
    retrievers: dict[str, BaseRetriever] = Field(default_factory=dict, exclude=True, repr=False)
    fusion: Fusion = "adaptive"
    weights: dict[str, float] | None = None
    depth: int | None = Field(default=None, ge=1)
    scores_key: str | None = None
    id_key: str | None = None
    search_kwargs: dict[str, Any] = Field(default_factory=dict, exclude=True)

    @field_validator("weights", mode="before")
    @classmethod
    def _check_weights(cls, weights: object) -> object:
        if weights is not None and not isinstance(weights, Mapping):
            raise ValueError(
                f"weights must be a dictionary of 'dense' and 'sparse', got {weights!r:.60}. "
                "For example {'dense': 0.5, 'sparse': 0.5}."
            )
        return weights

    @field_validator("retrievers", mode="before")
    @classmethod
    def _check_retrievers(cls, retrievers: object) -> object:
        try:
            return checked_sides(retrievers, BaseRetriever, "Of a vector store, pass store.as_retriever().")
        except TypeError as err:
            raise ValueError(str(err)) from err  # which pydantic gathers

    @field_validator("vectorstore", mode="before")
    @classmethod
    def _check_vectorstore(cls, store: object) -> object:
        if store is not None and not isinstance(store, VectorStore):
            raise ValueError(
                f"vectorstore must be a VectorStore, got {type(store).__name__}. "
                "Of a retriever, pass its vectorstore, and its search_kwargs as search_kwargs."
            )
        mode = getattr(getattr(store, "retrieval_mode", None), "value", None)
        if mode in ("hybrid", "sparse"):
            raise ValueError(
                f"vectorstore must rank by dense vectors alone, got retrieval_mode {mode!r}. "
                "Open it with RetrievalMode.DENSE."
            )
        return store

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._search_settings()
        if self.vectorstore is None and not self.retriever.has_dense:
            raise ValueError(
                "vectorstore must be given for an index without dense vectors, got None. "
                "Pass the vector store that it was made with."
            )
        if len(self.retriever):
            self._warn_of_drift(self.counts())
        return self

    @property
    def _parts(self) -> tuple[str, ...]:
        return ("retriever", "vectorstore")

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        encoder: KeyTokenEncoder | Embeddings | Any,
        *,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """Indexes documents, and adds them to ``vectorstore=``, if there is one. They are not changed.

        Of a store that is filled already, pass no documents, and call :meth:`update_from_vectorstore`; or
        :meth:`add_documents` with ``is_in_vectorstore=True``. Arguments and errors are those of :meth:`from_texts`.
        """
        made = super().from_documents(documents, encoder, path=path, **settings)
        made._warn_of_drift(made.counts())
        return made

    @classmethod
    async def afrom_documents(
        cls,
        documents: Iterable[Document],
        encoder: KeyTokenEncoder | Embeddings | Any,
        *,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """:meth:`from_documents`, by the store's asynchronous methods."""
        made = await super().afrom_documents(documents, encoder, path=path, **settings)
        made._warn_of_drift(await made.acounts())
        return made

    @classmethod
    def from_vectorstore(
        cls, vectorstore: VectorStore, encoder: KeyTokenEncoder | Embeddings | Any = None, **settings: Any
    ) -> Self:
        """Indexes all that a store holds, see :meth:`update_from_vectorstore`.

        Args:
            vectorstore: The store.
            encoder: As for :meth:`from_texts`. None: the store's own ``Embeddings``.
            **settings: Fields of the class, and ``path``.

        Raises:
            TypeError: If the store is of a kind that cannot be listed.
            ValueError: If there is neither an encoder nor ``Embeddings`` in the store.
        """
        encoder = _given_or_own(encoder, vectorstore)
        made = cls._new(encoder, settings.pop("path", None), {"vectorstore": vectorstore, **settings})
        made.update_from_vectorstore()
        return made

    @classmethod
    async def afrom_vectorstore(
        cls, vectorstore: VectorStore, encoder: KeyTokenEncoder | Embeddings | Any = None, **settings: Any
    ) -> Self:
        """:meth:`from_vectorstore`, by the store's asynchronous methods."""
        encoder = _given_or_own(encoder, vectorstore)
        path = settings.pop("path", None)
        made = await asyncio.to_thread(cls._new, encoder, path, {"vectorstore": vectorstore, **settings})
        await made.aupdate_from_vectorstore()
        return made

    def counts(self) -> dict[str, int | None]:
        """How many documents ``"vectorstore"`` and ``"index"`` hold; None for a store that cannot be asked."""
        stored = None if self.vectorstore is None else StoredDocuments.count(self.vectorstore)
        return {"vectorstore": stored, "index": len(self.retriever)}

    async def acounts(self) -> dict[str, int | None]:
        """:meth:`counts`, by the store's asynchronous methods."""
        stored = None if self.vectorstore is None else await StoredDocuments.acount(self.vectorstore)
        return {"vectorstore": stored, "index": len(self.retriever)}

    def _warn_of_drift(self, counts: Mapping[str, int | None]) -> None:
        stored, indexed = counts["vectorstore"], counts["index"]
        if stored is not None and stored != indexed:
            warnings.warn(
                f"the vector store holds {stored} documents and the index {indexed}: what one of them lacks is ranked "
                "by the other alone. Call update_from_vectorstore() to bring the index in step with the store.",
                stacklevel=4,
            )

    def update_from_vectorstore(self) -> dict[str, int]:
        """Brings the index in step with the vector store: what the store holds is in it, and nothing else.

        Where the store's embeddings are those that the encoder was made of, or ``KeyTokensEmbeddings`` of it, the
        sparse vectors are made of the dense ones that the store holds, and nothing is embedded; but of
        ``KeyTokensEmbeddings`` one document, to see that they are the encoder's.

        Returns:
            How many documents were ``"added"``, ``"replaced"``, as they had changed, and ``"deleted"``.

        Raises:
            TypeError: If there is no vector store, or one of a kind that cannot be listed.
        """
        held = None if self.vectorstore is None else StoredDocuments.read(self.vectorstore)
        return self._updated(self._listed(held))

    async def aupdate_from_vectorstore(self) -> dict[str, int]:
        """:meth:`update_from_vectorstore`, by the store's asynchronous methods."""
        held = None if self.vectorstore is None else await StoredDocuments.aread(self.vectorstore)
        return await asyncio.to_thread(self._updated, self._listed(held))

    def _listed(self, held: StoredDocuments | None) -> StoredDocuments:
        if held is None:
            raise TypeError(
                f"vectorstore must be a store whose documents can be listed, got {type(self.vectorstore).__name__}. "
                "Of an asynchronous store, await aupdate_from_vectorstore(); else give its documents, with their ids, "
                "to add_documents(documents, is_in_vectorstore=True)."
            )
        return held

    def _updated(self, held: StoredDocuments) -> dict[str, int]:
        known = set(self.retriever.ids())
        rows = [i for i, document in enumerate(held.documents) if not self._is_indexed(document)]
        documents = [held.documents[row] for row in rows]
        self._index_stored(documents, [held.vectors[row] for row in rows])
        replaced = sum(document.id in known for document in documents)
        deleted = self.retriever.delete(known - {str(document.id) for document in held.documents})
        return {"added": len(documents) - replaced, "replaced": replaced, "deleted": deleted}

    def _index_stored(self, documents: Sequence[Document], vectors: Sequence[Sequence[float] | None]) -> None:
        """Adds documents of the store to the index, by the vectors that the store holds where these are ours."""
        dense = None
        encoder = self.retriever.encoder
        if documents and not self._has_other_embeddings and all(vector is not None for vector in vectors):
            dense = np.asarray(vectors, np.float32)
        if dense is not None and not (calls_functions(encoder) or encoder.needs_calibration):
            text, pair = documents[0].page_content, self.retriever.pair
            made, expected = pair.encoder.sparsify(dense[:1], [text]), pair.sparse([text], "document")
            (ids, weights), (expected_ids, expected_weights) = made.row(0), expected.row(0)
            if not (np.array_equal(ids, expected_ids) and np.allclose(weights, expected_weights, rtol=1e-2)):
                logger.warning("the store's vectors are not those of the encoder as it is: all texts are embedded.")
                dense = None
        if documents:
            self._index(documents, dense)

    @classmethod
    def _new_retriever(cls, encoder: Any, path: str | PathLike[str] | None, settings: Mapping[str, Any]) -> Retriever:
        return Retriever(encoder, path, has_dense=settings.get("vectorstore") is None)

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        on_conflict: OnConflict = "replace",
        is_in_vectorstore: bool = False,
    ) -> list[str]:
        """Adds documents to the index and to the vector store, if there is one. They are not changed.

        What the index would refuse is refused before the store is asked. If the store fails, the index is as before;
        the store may have kept some of them by then, and adding again mends a store that replaces by id.

        Args:
            documents: The documents; see ``KeyTokensRetriever`` for one without an id.
            on_conflict: What to do about an id that is there already: ``"replace"`` the document, or ``"error"``.
            is_in_vectorstore: Whether the store holds them already. Their ids are then the store's: one without an id
                is found in the store by its text and metadata.

        Returns:
            Their ids; those that the store gave where it does not take ids.

        Raises:
            TypeError: If metadata hold what cannot be kept; the error names the key.
            ValueError: If an id is given twice, or is there and not to be replaced, or the store does not hold a
                document that it is said to hold, or cannot be asked for its id.
            Exception: What the vector store raises.
        """
        given = checked_documents(documents)
        if self.vectorstore is None:
            return super().add_documents(given, on_conflict=on_conflict)
        if is_in_vectorstore:
            return self._add_stored(given, StoredDocuments.read(self.vectorstore), on_conflict)
        named, replaced = self._prepared(given, on_conflict)
        if not named:
            return []
        if going := present_ids(self.vectorstore, replaced):
            self.vectorstore.delete(ids=going)
        stored = self.vectorstore.add_documents(named, ids=[document.id for document in named])
        try:
            held = StoredDocuments.read(self.vectorstore, stored) if self._has_embedder_of_store else None
            return self._indexed(named, stored, replaced, held)
        except BaseException:
            self.vectorstore.delete(ids=stored)
            raise

    async def aadd_documents(
        self,
        documents: Iterable[Document],
        *,
        on_conflict: OnConflict = "replace",
        is_in_vectorstore: bool = False,
    ) -> list[str]:
        """:meth:`add_documents` by the store's asynchronous methods, and in a thread."""
        given = checked_documents(documents)
        if self.vectorstore is None:
            return await super().aadd_documents(given, on_conflict=on_conflict)
        if is_in_vectorstore:
            held = await StoredDocuments.aread(self.vectorstore)
            return await asyncio.to_thread(self._add_stored, given, held, on_conflict)
        named, replaced = await asyncio.to_thread(self._prepared, given, on_conflict)
        if not named:
            return []
        if going := present_ids(self.vectorstore, replaced):
            await self.vectorstore.adelete(ids=going)
        stored = await self.vectorstore.aadd_documents(named, ids=[document.id for document in named])
        try:
            held = await StoredDocuments.aread(self.vectorstore, stored) if self._has_embedder_of_store else None
            return await asyncio.to_thread(self._indexed, named, stored, replaced, held)
        except BaseException:
            await self.vectorstore.adelete(ids=stored)
            raise

    def _add_stored(
        self, documents: Sequence[Document], held: StoredDocuments | None, on_conflict: OnConflict
    ) -> list[str]:
        """Adds documents that the store holds to the index, under the ids that the store has for them."""
        found, vectors = _in_store(documents, held)
        ids = self._check_addable(found, on_conflict)
        rows = [i for i, document in enumerate(found) if not self._is_indexed(document)]
        self._index_stored([found[row] for row in rows], [vectors[row] for row in rows])
        return ids

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
            if going := present_ids(self.vectorstore, ids):
                _check_deleted(self.vectorstore.delete(ids=going))
        return super().delete(ids)

    async def adelete(self, ids: Sequence[str]) -> int:
        """:meth:`delete` by the store's asynchronous method, and in a thread."""
        if self.vectorstore is not None:
            if going := present_ids(self.vectorstore, ids):
                _check_deleted(await self.vectorstore.adelete(ids=going))
        return await asyncio.to_thread(self.retriever.delete, ids)

    def _prepared(self, documents: Sequence[Document], on_conflict: OnConflict) -> tuple[list[Document], list[str]]:
        """Documents with ids that the index will take, and the ids of those that they replace."""
        named = with_ids(documents)
        ids = self._check_addable(named, on_conflict)
        return named, self.retriever.known_ids(ids)

    def _indexed(
        self,
        documents: Sequence[Document],
        given: Sequence[Any],
        replaced: Sequence[str],
        held: StoredDocuments | None,
    ) -> list[str]:
        """Adds documents to the index under the ids that the store gave, by the vectors that it has made of them."""
        vectors: Any = None
        if held is not None:
            of_ids = {str(found.id): vector for found, vector in zip(held.documents, held.vectors, strict=True)}
            rows = [of_ids.get(str(id)) for id in given]
            vectors = None if any(row is None for row in rows) else np.asarray(rows, np.float32)
        ids = self.retriever.add(
            [document.page_content for document in documents],
            ids=[str(id) for id in given],
            metadata=[document.metadata for document in documents],
            embeddings=vectors,
            on_conflict="replace" if replaced else "error",
        )
        self.retriever.delete(set(replaced) - set(ids))
        return ids

    @property
    def _scores_key(self) -> str | None:
        return self.scores_key

    @property
    def _has_outside(self) -> bool:
        return self.vectorstore is not None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **own: Any
    ) -> list[Document]:
        return self._documents(self._hits(query, callbacks=run_manager.get_child(), **own))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **own: Any
    ) -> list[Document]:
        return self._documents(await self._ahits(query, callbacks=run_manager.get_child(), **own))

    def _hits(
        self,
        query: object,
        *,
        search_kwargs: Mapping[str, Any] | None = None,
        callbacks: Callbacks = None,
        **own: Unpack[QueryArguments],
    ) -> list[RetrievedHit]:
        text, settings = checked_query(query), self._search_settings(**own)
        self._say_unknown_keys(**own)
        others = self._others(text, callbacks)
        if (ranking := self._ranking(search_kwargs)) is None:
            return self.retriever.search(text, settings, others=others, vectors=self._batched(text))
        vector = self._query_vector(text)
        outside, settings = ranking.search(text, settings, vector)
        return self.retriever.search(
            text, settings, outside=outside, others=others, shares_encoder=self._shares_queries
        )

    async def _ahits(
        self,
        query: object,
        *,
        search_kwargs: Mapping[str, Any] | None = None,
        callbacks: Callbacks = None,
        **own: Unpack[QueryArguments],
    ) -> list[RetrievedHit]:
        text, settings = checked_query(query), self._search_settings(**own)
        await asyncio.to_thread(self._say_unknown_keys, **own)
        others = await self._aothers(text, callbacks)
        if (ranking := self._ranking(search_kwargs)) is None:
            return await self.retriever.asearch(text, settings, others=others, vectors=self._batched(text))
        vector = await asyncio.to_thread(self._query_vector, text)
        outside, settings = await ranking.asearch(text, settings, vector)
        return await self.retriever.asearch(
            text, settings, outside=outside, others=others, shares_encoder=self._shares_queries
        )

    @property
    def _sides(self) -> dict[str, BaseRetriever]:
        """The other retrievers, ours with their scores in the metadata."""
        return {
            name: side.model_copy(update={"score_key": SCORE_KEY}) if isinstance(side, KeyTokensRetriever) else side
            for name, side in self.retrievers.items()
        }

    def _others(self, query: str, callbacks: Callbacks) -> dict[str, list[OutsideHit]]:
        """The rankings of the other retrievers."""
        if not query.strip():
            return {name: [] for name in self.retrievers}
        return {name: _side_hits(side.invoke(query, {"callbacks": callbacks})) for name, side in self._sides.items()}

    async def _aothers(self, query: str, callbacks: Callbacks) -> dict[str, list[OutsideHit]]:
        if not query.strip():
            return {name: [] for name in self.retrievers}
        found = await asyncio.gather(*(side.ainvoke(query, {"callbacks": callbacks}) for side in self._sides.values()))
        return dict(zip(self._sides, map(_side_hits, found), strict=True))

    def _ranking(self, search_kwargs: Mapping[str, Any] | None) -> VectorStoreRanking | None:
        if self.vectorstore is None:
            if given := {**self.search_kwargs, **(search_kwargs or {})}:
                raise ValueError(f"search_kwargs must be for a vector store, got {given} without one. Use filter=.")
            return None
        arguments = {**self.search_kwargs, **(search_kwargs or {})}
        id_key = id_key_of(self.vectorstore) if self.id_key is None else self.id_key
        return VectorStoreRanking(self.vectorstore, id_key, self.retriever, arguments)

    def _search_settings(self, **own: Unpack[QueryArguments]) -> SearchSettings:
        return replace(
            super()._search_settings(**own),
            mode="hybrid",
            fusion=self.fusion,
            weights={} if self.weights is None and self._has_other_embeddings else self.weights,
            others=tuple(self.retrievers),
            depth=self.depth,
        )

    @property
    def _has_other_embeddings(self) -> bool:
        return self.vectorstore is not None and not is_embedder_of(self.vectorstore.embeddings, self.retriever.encoder)

    @property
    def _has_embedder_of_store(self) -> bool:
        """Whether the encoder calls the store's own ``Embeddings``, so that a call of both would be one too many."""
        if self.vectorstore is None or isinstance(self.vectorstore.embeddings, KeyTokensEmbeddings):
            return False
        return not self._has_other_embeddings

    @property
    def _shares_queries(self) -> bool:
        """Whether a query is embedded once for both sides; without, the sparse side is that of its words alone."""
        if self._has_embedder_of_store:
            return self.vectorstore is not None and vector_method(self.vectorstore) is not None
        return not self._has_other_embeddings

    def _query_vector(self, query: str) -> list[float] | None:
        """The dense vector of a query, where the store is to be asked by it."""
        if not (self._has_embedder_of_store and self._shares_queries and query.strip()):
            return None
        return self.retriever.pair.dense_query(query)

    def _batch(self, inputs: Sequence[object], return_exceptions: bool, own: Mapping[str, Any]) -> Batch | None:
        if self._has_outside and not self._shares_queries:
            return None
        return super()._batch(inputs, return_exceptions, own)


@dataclass(frozen=True)
class VectorStoreRanking:
    """The dense ranking of a vector store, and what its own filter leaves to the sparse side.

    For a filter of ours the store is asked for twice as many until enough pass, as stores share no filter language.
    For one of its own it is asked once, for as many as our index holds: what it returns is what may be found.
    """

    store: VectorStore
    id_key: str | None
    retriever: Retriever
    arguments: Mapping[str, Any]

    def search(
        self, query: str, settings: SearchSettings, vector: list[float] | None = None
    ) -> tuple[list[OutsideHit], SearchSettings]:
        if not query.strip():
            return [], settings  # as in our index: nothing is like nothing
        depth = self._first_depth(settings)
        while True:
            ranked: Ranked
            arguments = self._arguments(depth)
            if vector is not None:
                ranked = self._by_vector(vector, depth, arguments)
            elif self._has_scores:
                ranked = self.store.similarity_search_with_score(query, k=depth, **arguments)
            else:
                documents = self.store.similarity_search(query, k=depth, **arguments)
                ranked = [(found, None) for found in documents]
            hits = self._hits(ranked)
            if self._is_enough(hits, depth, settings):
                return self._checked(hits, depth, settings)
            depth *= 2

    async def asearch(
        self, query: str, settings: SearchSettings, vector: list[float] | None = None
    ) -> tuple[list[OutsideHit], SearchSettings]:
        if not query.strip():
            return [], settings  # as in our index: nothing is like nothing
        depth = self._first_depth(settings)
        while True:
            ranked: Ranked
            arguments = self._arguments(depth)
            if vector is not None:
                ranked = await self._aby_vector(vector, depth, arguments)
            elif self._has_scores:
                ranked = await self.store.asimilarity_search_with_score(query, k=depth, **arguments)
            else:
                documents = await self.store.asimilarity_search(query, k=depth, **arguments)
                ranked = [(found, None) for found in documents]
            hits = self._hits(ranked)
            if self._is_enough(hits, depth, settings):
                return await asyncio.to_thread(self._checked, hits, depth, settings)
            depth *= 2

    def _by_vector(self, vector: list[float], depth: int, arguments: Mapping[str, Any]) -> Ranked:
        ranked: Ranked = getattr(self.store, str(vector_method(self.store)))(vector, k=depth, **arguments)
        return ranked

    async def _aby_vector(self, vector: list[float], depth: int, arguments: Mapping[str, Any]) -> Ranked:
        method = getattr(self.store, f"a{vector_method(self.store)}", None)
        if method is None:
            return await asyncio.to_thread(self._by_vector, vector, depth, arguments)
        ranked: Ranked = await method(vector, k=depth, **arguments)
        return ranked

    @property
    def _is_filtered(self) -> bool:
        """Whether the store may leave something out: by any argument that is not known to do no such thing."""
        return any(
            name not in _FILTERS_NOTHING and value is not None and not (isinstance(value, (dict, str)) and not value)
            for name, value in self.arguments.items()
        )

    def _first_depth(self, settings: SearchSettings) -> int:
        if not self._is_filtered:
            return settings.fused_depth
        return max(settings.fused_depth, min(len(self.retriever) + 1, MOST_FILTERED))

    def _arguments(self, depth: int) -> dict[str, Any]:
        """What the store is called with; one that filters what it fetched first fetches as much as it is asked for."""
        arguments = dict(self.arguments)
        method = self.store.similarity_search_with_score if self._has_scores else self.store.similarity_search
        if self._is_filtered and "fetch_k" in inspect.signature(method).parameters:
            arguments["fetch_k"] = max(depth, arguments.get("fetch_k") or 0)
        return arguments

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

    def _checked(
        self, hits: list[OutsideHit], depth: int, settings: SearchSettings
    ) -> tuple[list[OutsideHit], SearchSettings]:
        is_filtered = settings.filter is not None or self._is_filtered
        self.retriever.check_outside(hits, is_filtered=is_filtered)
        if not self._is_filtered:
            return hits, settings
        if len(hits) >= depth < len(self.retriever):
            logger.warning(
                "the store's own filter lets more than %d documents through: the sparse side is held to the nearest "
                "%d of an index of %d. Give filter= in place of it.",
                depth,
                depth,
                len(self.retriever),
            )
        passing = hits if settings.filter is None else self.retriever.passing(hits, settings.filter)
        return passing[: settings.fused_depth], replace(settings, filter=_only(passing))

    def _is_enough(self, hits: Sequence[OutsideHit], depth: int, settings: SearchSettings) -> bool:
        if self._is_filtered or settings.filter is None or len(hits) < depth:
            return True
        return len(self.retriever.passing(hits, settings.filter)) >= settings.fused_depth


def vector_method(store: VectorStore) -> str | None:
    """Name of a store's method that ranks by a vector and gives scores, which LangChain's interface has none of."""
    return next((name for name in _VECTOR_METHODS if callable(getattr(store, name, None))), None)


def _given_or_own(encoder: Any, store: VectorStore) -> Any:
    own = store.embeddings if encoder is None and isinstance(store, VectorStore) else encoder
    if own is None:
        raise ValueError(
            "encoder must be given for a vector store that has no Embeddings, got None. Pass those that its vectors "
            "were made with."
        )
    return own


def _side_hits(documents: Sequence[Document]) -> list[OutsideHit]:
    """What another retriever found."""
    return [
        OutsideHit(
            document.id,
            document.page_content,
            document.metadata.get(SCORE_KEY),
            {key: value for key, value in document.metadata.items() if key != SCORE_KEY},
        )
        for document in documents
    ]


def _only(hits: Sequence[OutsideHit]) -> Any:
    """A filter that lets through what a store returned: by id, or where it gives none by text and metadata."""
    ids = [hit.id for hit in hits if hit.id is not None]
    if len(ids) == len(hits):
        return ids
    known, by_text = set(ids), defaultdict[str | None, list[Mapping[str, Any]]](list)
    for hit in hits:
        if hit.id is None:
            by_text[hit.text].append(hit.metadata or {})

    def is_returned(document: IndexedDocument) -> bool:
        if document.id in known:
            return True
        said = json_value(document.metadata)
        return any(
            all(key in given and json_value(given[key]) == value for key, value in said.items())
            for given in by_text.get(document.text, ())
        )

    return is_returned


def _in_store(
    documents: Sequence[Document], held: StoredDocuments | None
) -> tuple[list[Document], list[Sequence[float] | None]]:
    """Documents under the ids that a store has for them, and the vectors that it holds."""
    nameless = sum(document.id is None for document in documents)
    if held is None:
        if nameless:
            raise ValueError(
                f"documents must have the ids that the vector store has for them, got {nameless} of {len(documents)} "
                "without one, and the store cannot be listed. Set Document.id."
            )
        return with_ids(documents), [None] * len(documents)
    rows = {str(document.id): row for row, document in enumerate(held.documents)}
    by_text = defaultdict[str, list[int]](list)
    for row, document in enumerate(held.documents):
        by_text[document.page_content].append(row)
    taken = {rows[document.id] for document in documents if document.id in rows}
    named: list[Document] = []
    vectors: list[Sequence[float] | None] = []
    missing = []
    for document in documents:
        if document.id is not None:
            places = [rows[document.id]] if document.id in rows else []
        else:
            free = [row for row in by_text[document.page_content] if row not in taken]
            places = [row for row in free if _says(held.documents[row]) == _says(document)] or free
        if not places:
            missing.append(document)
            continue
        taken.add(places[0])
        stored, vector = held.documents[places[0]], held.vectors[places[0]]
        is_same = stored.page_content == document.page_content
        named.append(document.model_copy(update={"id": stored.id}))
        vectors.append(vector if is_same else None)
    if missing:
        raise ValueError(
            f"documents must be in the vector store, got {len(missing)} of {len(documents)} that are not among its "
            f"{len(held.documents)}, the first with id {missing[0].id!r} and text {missing[0].page_content!r:.60}. "
            "Leave out is_in_vectorstore to add them there."
        )
    return named, vectors


def _says(document: Document) -> Any:
    return json_value(document.metadata)


def _check_deleted(answer: bool | None) -> None:
    if answer is False:
        raise RuntimeError("the vector store must delete what it is asked to, got False from it. Look into its log.")
