"""KeyTokensHybridRetriever: dense and sparse retrieval fused, without an LLM."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.vector_store import VectorIndexRetriever, VectorStoreIndex
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore, MetadataFilters
from llama_index_instrumentation import get_dispatcher
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import (
    Fusion,
    OnConflict,
    OutsideHit,
    SearchSettings,
    as_encoder,
    checked_sides,
    is_embedder_of,
)
from typing_extensions import Self, Unpack

from llama_index.retrievers.keytokens.embeddings import KeyTokensEmbedding
from llama_index.retrievers.keytokens.filters import metadata_test
from llama_index.retrievers.keytokens.nodes import (
    NODE_KEY,
    checked_nodes,
    filterable_metadata,
    restored_node,
    source_nodes,
    stored_node,
    take_vectors,
)
from llama_index.retrievers.keytokens.retriever import (
    KeyTokensRetriever,
    LiveArguments,
    QueryArguments,
    RetrieverArguments,
    checked_queries,
    query_with,
    scored_node,
)
from llama_index.retrievers.keytokens.sources import NodeSource

if TYPE_CHECKING:
    from llama_index.core.storage.docstore.types import BaseDocumentStore
    from st_keytokens.retrieval import PairedEmbeddings

__all__ = ["HybridArguments", "KeyTokensHybridRetriever"]

logger = logging.getLogger(__name__)
dispatcher = get_dispatcher(__name__)


class HybridArguments(RetrieverArguments, total=False):
    """Keyword arguments of :class:`KeyTokensHybridRetriever`; see there."""

    dense: VectorStoreIndex | BasePydanticVectorStore | None
    retrievers: Mapping[str, BaseRetriever] | None
    fusion: Fusion
    weights: Mapping[str, float] | None
    depth: int | None


class KeyTokensHybridRetriever(KeyTokensRetriever):
    """Retrieves nodes by a dense and a sparse ranking, fused by weighted scores or reciprocal ranks, without an LLM.

    The dense ranking comes from this retriever's own exact index or from any vector store that you have, whatever its
    embedding model. Where that is :class:`KeyTokensEmbedding` of the same encoder, a query takes one forward pass, and
    so does a node. Each hit carries the scores of both sides in ``scores``.

    Install it with ``pip install llama-index-retrievers-keytokens``.

    Args:
        encoder: Makes the vectors, as for :class:`KeyTokensRetriever`. Where it is the embedding model of ``dense``,
            a query is embedded once for both sides.
        nodes: Nodes to begin with. Beside a vector store: those that it holds.
        dense: Where the dense ranking comes from: a ``VectorStoreIndex`` with its own embedding model, or a vector
            store, which is then asked with this encoder's vectors. It takes part in :meth:`add_nodes` and
            :meth:`delete_nodes`. None: this retriever's own index.
        retrievers: More sides by names of your choice, which ``weights`` and ``scores`` know them by: any number of
            retrievers over the same nodes, such as a ``BM25Retriever``. What each returns is joined, filtered and
            fused with the other sides; one without scores counts by its ranks. Every one of them has to answer.
        fusion: ``"adaptive"`` for min-max normalised scores, each side weighed by how clearly it singles out
            documents for the query; ``"score"`` for the same without that; ``"rrf"`` for reciprocal ranks, which rank
            worse where one side is much weaker. Scores that rise along a store's ranking are distances, turned round.
        weights: Factors of ``"dense"``, ``"sparse"`` and the ``retrievers``, 1 where not named. None: the encoder's
            ``fusion_weights``, or 1 each beside vectors of another embedding model.
        depth: Hits of each side that are fused; None for ``max(100, 10 * similarity_top_k)``.
        **settings: Those of :class:`KeyTokensRetriever`: ``path``, ``similarity_top_k``, ``filters``, which hold on
            all sides, ``group_by``, ``explain``, ``verbose``, ``callback_manager``, ``objects`` and ``object_map``.

    Attributes:
        fusion: As given; may be changed, as the next two.
        weights: As given.
        depth: As given.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a value is out of its range, or the index was made by another encoder; when retrieving, if the
            vector store is empty and the index is not, or the other way round: there is no fall-back to one side.

    Example:
        .. code-block:: python

            from llama_index.core import VectorStoreIndex
            from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensHybridRetriever

            index = VectorStoreIndex(nodes, embed_model=KeyTokensEmbedding(encoder))
            retriever = KeyTokensHybridRetriever.from_defaults(index=index, encoder=encoder, weights={"sparse": 2.0})
            for hit in retriever.retrieve("planets around other stars"):
                print(hit.score, hit.scores, hit.node.get_content())
    """

    _opens_stores = True

    def __init__(
        self,
        encoder: KeyTokenEncoder | BaseEmbedding | Any,
        nodes: Sequence[BaseNode] = (),
        *,
        dense: VectorStoreIndex | BasePydanticVectorStore | None = None,
        retrievers: Mapping[str, BaseRetriever] | None = None,
        fusion: Fusion = "adaptive",
        weights: Mapping[str, float] | None = None,
        depth: int | None = None,
        **settings: Unpack[RetrieverArguments],
    ) -> None:
        encoder = as_encoder(encoder, settings.get("path"))
        self._side = None if dense is None else VectorStoreSide(dense, encoder)
        self._has_dense = dense is None
        self.retrievers = _checked_retrievers(retrievers)
        self.fusion: Fusion = fusion
        self.weights = weights
        self.depth = depth
        super().__init__(encoder, nodes, **settings)
        if isinstance(dense, VectorStoreIndex):
            self._open(NodeSource(dense))
        self._say_other_count()

    @classmethod
    def from_defaults(
        cls,
        index: BaseIndex[Any] | None = None,
        nodes: Sequence[BaseNode] | None = None,
        docstore: BaseDocumentStore | None = None,
        *,
        encoder: KeyTokenEncoder | BaseEmbedding | Any,
        **settings: Unpack[HybridArguments],
    ) -> Self:
        """Makes a retriever of the nodes of an index or a docstore, or of a list of nodes, which may be empty.

        Args:
            index: An index whose docstore holds its nodes, and which is followed, as for
                :meth:`KeyTokensRetriever.from_defaults`. It gives the dense ranking too, unless ``dense`` does.
                Exactly one of this and the next two is given.
            nodes: The nodes themselves.
            docstore: What holds them.
            encoder: As for the class.
            **settings: As for the class.

        Raises:
            ValueError: If not exactly one is given, or the docstore of an index is empty as its vector store keeps the
                text; give ``nodes`` and ``dense`` then.
        """
        given, source = source_nodes(index, nodes, docstore, has_vectors=True)
        encoder = as_encoder(encoder, settings.get("path"))
        take_vectors(encoder, index, given)
        if settings.get("dense") is None and isinstance(index, VectorStoreIndex):
            settings["dense"] = index
        retriever = cls(encoder, given, **settings)
        if source is not None:
            retriever._open(source)
        return retriever

    @classmethod
    def from_persist_dir(
        cls,
        path: str | PathLike[str],
        encoder: KeyTokenEncoder | BaseEmbedding | Any = None,
        *,
        index: BaseIndex[Any] | None = None,
        docstore: BaseDocumentStore | None = None,
        dense: VectorStoreIndex | BasePydanticVectorStore | None = None,
        retrievers: Mapping[str, BaseRetriever] | None = None,
        **live: Unpack[LiveArguments],
    ) -> Self:
        """Opens what :meth:`persist` kept, with all its settings; further changes go into that directory.

        Args:
            path: The directory; that of a ``KeyTokensVectorStore`` is opened with the default settings.
            encoder: As for :meth:`KeyTokensRetriever.from_persist_dir`.
            index: As for :meth:`KeyTokensRetriever.from_persist_dir`; ``dense`` is one already.
            docstore: Likewise.
            dense: The vector store, which is kept by itself; given if and only if there was one.
            retrievers: The other sides, likewise, by the names that they had.
            **live: As for :meth:`KeyTokensRetriever.from_persist_dir`.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was made by another encoder or class or is damaged, or ``dense`` or one of ``retrievers``
                is missing or too much.
        """
        settings = cls._saved_settings(path)
        has_dense, names = settings.pop("has_dense"), settings.pop("retrievers", [])
        if sorted(_checked_retrievers(retrievers)) != names:
            raise ValueError(
                f"retrievers must be given again for {path} under the names {names}, got {sorted(retrievers or ())}."
            )
        if has_dense == (dense is not None):
            rule = "not be given, as the vectors are in" if has_dense else "be given again for"
            raise ValueError(f"dense must {rule} {path}, got {type(dense).__name__}.")
        retriever = cls(encoder, dense=dense, retrievers=retrievers, path=path, **settings, **live)
        if index is not None or docstore is not None:
            retriever._open(NodeSource(index, docstore))
        return retriever

    def _say_other_count(self) -> None:
        """Says where a store that cannot list its nodes holds another number of them."""
        count = None if self._side is None or not len(self) else self._side.count()
        if count is not None and count != len(self):
            logger.warning(
                "the retriever holds %d nodes and the vector store %d: what one of them lacks is ranked by the other "
                "alone. sync(nodes=...) brings the retriever in step with the application's nodes.",
                len(self),
                count,
            )

    @property
    def vector_index(self) -> VectorStoreIndex | None:
        """Where the dense ranking comes from; None for our own index."""
        return None if self._side is None else self._side.index

    def add_nodes(self, nodes: Sequence[BaseNode], *, on_conflict: OnConflict = "replace") -> list[str]:
        """Adds nodes to the vector store, if there is one, and to our index, which needs to embed nothing again.

        If the vector store fails, its error is raised and our index stays as it was. The store may have
        kept some of the nodes until then; adding them once more puts both right. All else is as in
        :meth:`KeyTokensRetriever.add_nodes`.
        """
        if self._side is not None and checked_nodes(nodes):
            replaced = self._check_addable(nodes, on_conflict)
            nodes = self._side.embedded(nodes, self._retriever.pair)
            self._side.add(nodes, replaced)
        return super().add_nodes(nodes, on_conflict=on_conflict)

    async def aadd_nodes(self, nodes: Sequence[BaseNode], *, on_conflict: OnConflict = "replace") -> list[str]:
        """:meth:`add_nodes` without blocking the event loop."""
        if self._side is None or not nodes or not self._side.is_asynchronous:
            return await super().aadd_nodes(nodes, on_conflict=on_conflict)
        replaced = await asyncio.to_thread(self._check_addable, nodes, on_conflict)
        nodes = await asyncio.to_thread(self._side.embedded, nodes, self._retriever.pair)
        await self._side.aadd(nodes, replaced)
        return await asyncio.to_thread(KeyTokensRetriever.add_nodes, self, nodes, on_conflict=on_conflict)

    def delete_nodes(self, node_ids: Collection[str]) -> int:
        """Deletes nodes by id, from the vector store too; ids that our index does not hold are passed over.

        Returns:
            How many were there.
        """
        if self._side is not None:
            self._side.delete(self._retriever.known_ids(node_ids))
        return super().delete_nodes(node_ids)

    async def adelete_nodes(self, node_ids: Collection[str]) -> int:
        """:meth:`delete_nodes` without blocking the event loop."""
        if self._side is None or not self._side.is_asynchronous:
            return await super().adelete_nodes(node_ids)
        await self._side.adelete(await asyncio.to_thread(self._retriever.known_ids, node_ids))
        return await asyncio.to_thread(KeyTokensRetriever.delete_nodes, self, node_ids)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self._side is None and not self.retrievers:
            return super()._retrieve(query_bundle)
        if _is_blank(query_bundle):
            return []
        self._follow()
        query_bundle = self._with_vector(query_bundle)
        settings, found = self._settings(query_bundle), None
        if self._side is not None:
            found = self._side.retrieve(query_bundle, settings.fused_depth, self._filters(query_bundle))
        others = {name: side.retrieve(_text_alone(query_bundle)) for name, side in self.retrievers.items()}
        return self._fused(query_bundle, settings, found, others)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        is_asynchronous = self._side is not None and self._side.is_asynchronous
        if not (is_asynchronous or self.retrievers) or _is_blank(query_bundle):
            return await super()._aretrieve(query_bundle)
        await asyncio.to_thread(self._follow)
        query_bundle = await asyncio.to_thread(self._with_vector, query_bundle)
        settings, found = self._settings(query_bundle), None
        if self._side is not None:
            depth, filters = settings.fused_depth, self._filters(query_bundle)
            if is_asynchronous:
                found = await self._side.aretrieve(query_bundle, depth, filters)
            else:
                found = await asyncio.to_thread(self._side.retrieve, query_bundle, depth, filters)
        asked = await asyncio.gather(*(side.aretrieve(_text_alone(query_bundle)) for side in self.retrievers.values()))
        others = dict(zip(self.retrievers, asked, strict=True))
        return await asyncio.to_thread(self._fused, query_bundle, settings, found, others)

    def _retrieve_batch(self, queries: list[str], own: QueryBundle) -> list[list[NodeWithScore]]:
        if self._side is None and not self.retrievers:
            return super()._retrieve_batch(queries, own)
        return [self._retrieve(bundle) for bundle in self._embedded_bundles(queries, own)]

    @dispatcher.span
    async def aretrieve_batch(
        self, queries: Sequence[str], **own: Unpack[QueryArguments]
    ) -> list[list[NodeWithScore]]:
        """:meth:`retrieve_batch` without blocking the event loop; an asynchronous store is asked for all at once."""
        if self._side is None or not self._side.is_asynchronous:
            return await super().aretrieve_batch(queries, **own)
        texts = checked_queries(queries)
        for text in texts:
            dispatcher.event(RetrievalStartEvent(str_or_query_bundle=text))
        bundles = await asyncio.to_thread(self._embedded_bundles, texts, query_with("", **own))
        found = await asyncio.gather(*map(self._aretrieve, bundles))
        with self.callback_manager.as_trace("query"):
            return [await self._afinished(text, nodes) for text, nodes in zip(texts, found, strict=True)]

    async def _afinished(self, query: str, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        with self.callback_manager.event(CBEventType.RETRIEVE, payload={EventPayload.QUERY_STR: query}) as event:
            nodes = await self._ahandle_recursive_retrieval(QueryBundle(query), nodes)
            event.on_end(payload={EventPayload.NODES: nodes})
        dispatcher.event(RetrievalEndEvent(str_or_query_bundle=query, nodes=nodes))
        return nodes

    def _with_vector(self, query_bundle: QueryBundle) -> QueryBundle:
        """A query with its dense vector, where the store's embedding model is what our encoder calls."""
        side = self._side
        if side is None or not side.is_called_by_encoder or query_bundle.embedding is not None:
            return query_bundle
        texts = [text for text in query_bundle.embedding_strs if text.strip()]
        return replace(query_bundle, embedding=self._retriever.pair.dense(texts, "query").mean(axis=0).tolist())

    def _embedded_bundles(self, queries: list[str], own: QueryBundle) -> list[QueryBundle]:
        """A bundle for each query, with its dense vector where our encoder makes it."""
        bundles = [replace(own, query_str=text) for text in queries]
        if self._side is None or self._side.shares_encoder:
            for bundle, vector in zip(bundles, self._retriever.pair.dense(queries, "query").tolist(), strict=True):
                bundle.embedding = vector if bundle.query_str.strip() else None  # their sparse halves wait
        return bundles

    def _fused(
        self,
        query_bundle: QueryBundle,
        settings: SearchSettings,
        found: Sequence[NodeWithScore] | None,
        others: Mapping[str, Sequence[NodeWithScore]],
    ) -> list[NodeWithScore]:
        outside = None if found is None else _outside_hits(found)
        if outside is not None:
            self._retriever.check_outside(outside, is_filtered=settings.filter is not None)
        shares_encoder = self._side is not None and self._side.shares_encoder
        vectors = self._vectors(query_bundle, settings, has_outside=outside is not None, shares_encoder=shares_encoder)
        hits = self._retriever.search(
            query_bundle.query_str,
            settings,
            outside=outside,
            others={name: _outside_hits(nodes) for name, nodes in others.items()},
            vectors=vectors,
            shares_encoder=shares_encoder,
        )
        given = {"dense": found or [], **others}
        self._say_unknown_keys(query_bundle)
        return [
            scored_node(
                restored_node(hit.text, hit.metadata)
                if hit.outside is None or NODE_KEY in hit.metadata
                else given[hit.side][hit.outside].node,
                hit,
            )
            for hit in hits
        ]

    def _settings(self, query_bundle: QueryBundle | None) -> SearchSettings:
        settings = super()._settings(query_bundle)
        is_other = self._side is not None and not self._side.shares_encoder
        weights = {} if self.weights is None and is_other else self.weights
        return replace(
            settings,
            mode="hybrid",
            fusion=self.fusion,
            weights=weights,
            depth=self.depth,
            others=tuple(self.retrievers),
        )

    def _check_addable(self, nodes: Sequence[BaseNode], on_conflict: OnConflict) -> list[str]:
        """Checks what :meth:`add_nodes` would refuse, and gives the ids that are there and are to be replaced."""
        stored = [stored_node(node) for node in checked_nodes(nodes)]
        ids = self._retriever.check_addable(
            [node.text for node in stored],
            ids=[node.id for node in stored],
            metadata=[node.metadata for node in stored],
            on_conflict=on_conflict,
        )
        return self._retriever.known_ids(ids)

    def _kept_settings(self) -> dict[str, Any]:
        return {
            **super()._kept_settings(),
            "has_dense": self._has_dense,
            "retrievers": sorted(self.retrievers),
            "fusion": self.fusion,
            "weights": None if self.weights is None else dict(self.weights),
            "depth": self.depth,
        }


class VectorStoreSide:
    """A vector store or an index over one, asked for a dense ranking and kept in step with our index."""

    def __init__(self, dense: VectorStoreIndex | BasePydanticVectorStore, encoder: KeyTokenEncoder) -> None:
        if isinstance(dense, BasePydanticVectorStore):
            if not dense.stores_text:
                name = type(dense).__name__
                raise ValueError(
                    f"dense must be a vector store that keeps the text, got {name}. Give a VectorStoreIndex."
                )
            dense = VectorStoreIndex.from_vector_store(dense, embed_model=KeyTokensEmbedding(encoder))
        if not isinstance(dense, VectorStoreIndex):
            raise TypeError(f"dense must be a VectorStoreIndex or a vector store, got {type(dense).__name__}.")
        self.index = dense
        self._encoder = encoder

    @property
    def is_asynchronous(self) -> bool:
        """Whether the store has asynchronous methods of its own; the base class's would block the event loop."""
        store = self.index.vector_store
        has_client = all(getattr(store, name, store) is not None for name in ("_aclient", "_async_milvusclient"))
        return has_client and type(store).aquery is not BasePydanticVectorStore.aquery

    @property
    def shares_encoder(self) -> bool:
        """Whether queries are embedded by our encoder."""
        return is_embedder_of(self.index._embed_model, self._encoder)

    @property
    def is_called_by_encoder(self) -> bool:
        """Whether that is as our encoder calls the index's embedding model, so that to call both is once too often."""
        return self.shares_encoder and not isinstance(self.index._embed_model, KeyTokensEmbedding)

    def count(self) -> int | None:
        """How many nodes a store of Qdrant, Milvus or Chroma holds; None for others, and where it does not answer."""
        store: Any = self.index.vector_store
        kind = store.class_name()
        try:
            if kind == "QdrantVectorStore":
                return int(store.client.count(store.collection_name, exact=True).count)
            if kind == "MilvusVectorStore":
                counted = ["count(*)"]
                (row,) = store.client.query(store.collection_name, filter="", output_fields=counted)
                return int(row["count(*)"])
            return int(store.client.count()) if kind == "ChromaVectorStore" else None
        except Exception as err:  # an asynchronous client alone, no collection yet, no server: a search will say
            logger.debug("%s does not say how many nodes it holds: %s", kind, err)
            return None

    def retrieve(self, query: QueryBundle, top_k: int, filters: MetadataFilters | None) -> list[NodeWithScore]:
        """The store's ranking of a query."""
        return self._retriever(top_k, filters)._retrieve(_plain(query))

    async def aretrieve(self, query: QueryBundle, top_k: int, filters: MetadataFilters | None) -> list[NodeWithScore]:
        """:meth:`retrieve` of a store that is asynchronous."""
        return await self._retriever(top_k, filters)._aretrieve(_plain(query))

    def embedded(self, nodes: Sequence[BaseNode], pair: PairedEmbeddings) -> Sequence[BaseNode]:
        """Nodes with our encoder's vectors, where it calls the index's embedding model, so that it is called once.

        The nodes are not modified.
        """
        bare = [number for number, node in enumerate(nodes) if node.embedding is None]
        if not bare or not self.is_called_by_encoder:
            return nodes
        made = list(nodes)
        vectors = pair.dense([nodes[i].get_content(metadata_mode=MetadataMode.EMBED) for i in bare], "document")
        for number, vector in zip(bare, vectors.tolist(), strict=True):
            made[number] = nodes[number].model_copy(update={"embedding": vector})
        return made

    def add(self, nodes: Sequence[BaseNode], replaced_ids: list[str]) -> None:
        """Adds nodes, after deleting those that they replace."""
        if replaced_ids:
            self.index.delete_nodes(replaced_ids)
        self.index.insert_nodes(nodes)

    async def aadd(self, nodes: Sequence[BaseNode], replaced_ids: list[str]) -> None:
        """:meth:`add` to a store that is asynchronous."""
        if replaced_ids:
            await self.index.adelete_nodes(replaced_ids)
        await self.index.ainsert_nodes(nodes)

    def delete(self, node_ids: list[str]) -> None:
        """Deletes nodes."""
        if node_ids:
            self.index.delete_nodes(node_ids, delete_from_docstore=True)

    async def adelete(self, node_ids: list[str]) -> None:
        """:meth:`delete` from a store that is asynchronous."""
        if node_ids:
            await self.index.adelete_nodes(node_ids, delete_from_docstore=True)

    def _retriever(self, top_k: int, filters: MetadataFilters | None) -> VectorIndexRetriever:
        store, node_ids = self.index.vector_store, None
        if filters is not None and isinstance(store, SimpleVectorStore):  # it knows no nested filters
            tests = metadata_test(filters), metadata_test(filters, reads_dates=True)  # its dates are strings
            node_ids = [
                node_id
                for node_id, metadata in store.data.metadata_dict.items()
                if any(holds(metadata) for holds in tests)
            ]
            filters = None
        return VectorIndexRetriever(self.index, similarity_top_k=top_k, filters=filters, node_ids=node_ids)


def _checked_retrievers(retrievers: object) -> dict[str, BaseRetriever]:
    return checked_sides(retrievers, BaseRetriever, "Of an index, give index.as_retriever().")


def _outside_hits(found: Sequence[NodeWithScore]) -> list[OutsideHit]:
    return [
        OutsideHit(hit.node.node_id, hit.node.get_content(), hit.score, filterable_metadata(hit.node)) for hit in found
    ]


def _text_alone(query: QueryBundle) -> QueryBundle:
    """The query without an embedding, which may be another model's."""
    return QueryBundle(query.query_str, custom_embedding_strs=query.custom_embedding_strs)


def _plain(query: QueryBundle) -> QueryBundle:
    """The query for a vector store's retriever, which writes into it."""
    return QueryBundle(query.query_str, custom_embedding_strs=query.custom_embedding_strs, embedding=query.embedding)


def _is_blank(query: QueryBundle) -> bool:
    return query.embedding is None and not any(text.strip() for text in (query.query_str, *query.embedding_strs))
