"""The dense side of a hybrid retriever where a vector store holds it."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.indices.vector_store import VectorIndexRetriever, VectorStoreIndex
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore, MetadataFilters
from st_keytokens import KeyTokenEncoder

from llama_index.retrievers.keytokens.embeddings import KeyTokensEmbedding
from llama_index.retrievers.keytokens.filters import metadata_test

__all__ = ["VectorStoreSide"]


class VectorStoreSide:
    """A vector store, asked for a dense ranking and kept in step with our index.

    Args:
        dense: An index with its own embedding model, or a vector store, which is asked with the encoder's vectors.
        encoder: The encoder.

    Attributes:
        index: The index.

    Raises:
        TypeError: If ``dense`` is neither.
        ValueError: If it is a vector store that does not keep the text.
    """

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
        return type(self.index.vector_store).aquery is not BasePydanticVectorStore.aquery

    @property
    def shares_encoder(self) -> bool:
        """Whether queries are embedded by our encoder."""
        model = self.index._embed_model
        return isinstance(model, KeyTokensEmbedding) and model.encoder is self._encoder

    def retrieve(self, query: QueryBundle, top_k: int, filters: MetadataFilters | None) -> list[NodeWithScore]:
        """The store's ranking of a query."""
        return self._retriever(top_k, filters)._retrieve(_plain(query))

    async def aretrieve(self, query: QueryBundle, top_k: int, filters: MetadataFilters | None) -> list[NodeWithScore]:
        """:meth:`retrieve` of a store that is asynchronous."""
        return await self._retriever(top_k, filters)._aretrieve(_plain(query))

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
            holds = metadata_test(filters)
            node_ids = [node_id for node_id, metadata in store.data.metadata_dict.items() if holds(metadata)]
            filters = None
        return VectorIndexRetriever(self.index, similarity_top_k=top_k, filters=filters, node_ids=node_ids)


def _plain(query: QueryBundle) -> QueryBundle:
    """The query for a vector store's retriever, which writes into it."""
    return QueryBundle(query.query_str, custom_embedding_strs=query.custom_embedding_strs, embedding=query.embedding)
