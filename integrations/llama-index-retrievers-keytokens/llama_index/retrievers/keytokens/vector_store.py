"""KeyTokensVectorStore: our index as a vector store of LlamaIndex, dense and sparse in one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from st_keytokens import HybridIndex, KeyTokenEncoder
from st_keytokens.index import Document
from st_keytokens.retrieval import Retriever, SearchSettings

from llama_index.retrievers.keytokens.filters import index_filter, joined_filters, metadata_test
from llama_index.retrievers.keytokens.hits import filters_in_force, watch_spans
from llama_index.retrievers.keytokens.nodes import checked_nodes, restored_node, source_filter, stored_node
from llama_index.retrievers.keytokens.pickling import index_files, reopened

__all__ = ["KeyTokensVectorStore"]

_MODES = {
    VectorStoreQueryMode.DEFAULT: "dense",
    VectorStoreQueryMode.SPARSE: "sparse",
    VectorStoreQueryMode.TEXT_SEARCH: "sparse",
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.SEMANTIC_HYBRID: "hybrid",
}


class KeyTokensVectorStore(BasePydanticVectorStore):
    """Our exact index as a vector store, for a ``VectorStoreIndex`` or an ``IngestionPipeline``.

    It keeps nodes with both vectors, so what the framework inserts, updates and deletes is in step on both sides. With
    :class:`KeyTokensEmbedding` of the same encoder a node takes one forward pass.

    A query's mode is ``"default"`` for the dense vectors, ``"sparse"`` or ``"text_search"``, or ``"hybrid"``, in which
    ``alpha`` is the part of the dense side, and without any the encoder's ``fusion_weights`` hold.

    Install it with ``pip install llama-index-retrievers-keytokens``.

    Args:
        encoder: Makes the sparse vectors; the index's embedding model makes the dense ones. It may be that model
            itself, as for :class:`KeyTokensRetriever`.
        path: Directory of the index; what is added is there after a crash, and the same path opens it again. None: a
            temporary one, which :meth:`persist` keeps.

    Raises:
        TypeError: If ``encoder`` is no ``KeyTokenEncoder``.
        ValueError: If the index was made by another encoder.

    Example:
        .. code-block:: python

            from llama_index.core import StorageContext, VectorStoreIndex
            from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensVectorStore

            context = StorageContext.from_defaults(vector_store=KeyTokensVectorStore(encoder, "nodes"))
            index = VectorStoreIndex(nodes, storage_context=context, embed_model=KeyTokensEmbedding(encoder))
            index.as_retriever(vector_store_query_mode="hybrid").retrieve("planets around other stars")
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    _retriever: Retriever = PrivateAttr()
    _is_temporary: bool = PrivateAttr()

    def __init__(
        self, encoder: KeyTokenEncoder | BaseEmbedding | Any, path: str | PathLike[str] | None = None
    ) -> None:
        retriever = Retriever(encoder, path, has_dense=True)
        super().__init__(stores_text=True)
        self._retriever = retriever
        self._is_temporary = path is None
        if path is not None:
            try:
                Retriever.read_settings(path)
            except FileNotFoundError:
                retriever.persist(path, {"class": type(self).__name__})
        watch_spans()

    @classmethod
    def from_persist_dir(
        cls, persist_dir: str | PathLike[str], encoder: KeyTokenEncoder | BaseEmbedding | Any = None
    ) -> KeyTokensVectorStore:
        """Opens what :meth:`persist` or ``path`` kept; further changes go into that directory.

        Args:
            persist_dir: The directory; also that of a ``KeyTokensHybridRetriever`` with an index of its own.
            encoder: The encoder that made it, or the ``BaseEmbedding`` that it was made with.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was made by another encoder, or has no dense vectors.
        """
        Retriever.read_settings(persist_dir)
        return cls(encoder, persist_dir)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class."""
        return "KeyTokensVectorStore"

    @property
    def client(self) -> HybridIndex:
        """The index."""
        return self._retriever.index

    @property
    def encoder(self) -> KeyTokenEncoder:
        """The encoder."""
        return self._retriever.encoder

    def __len__(self) -> int:
        return len(self._retriever)

    def __bool__(self) -> bool:
        return True  # an empty store is one as well

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Adds nodes, all or none; one whose id is there is replaced. Vectors that are this encoder's are used.

        Args:
            nodes: Nodes; not modified.
            **kwargs: Nothing that is looked at.

        Returns:
            The ids.

        Raises:
            TypeError: If one is no node, or metadata hold what cannot be kept; the error names the key.
            ValueError: If an id is twice among them, or vectors have another dimension than the encoder's.
        """
        stored = [stored_node(node) for node in checked_nodes(nodes)]
        dimension = self.encoder.get_embedding_dimension()
        for node in stored:
            if node.embedding is not None and len(node.embedding) != dimension:
                raise ValueError(
                    f"nodes must have vectors of the encoder's dimension {dimension}, got {len(node.embedding)}. "
                    "Give KeyTokensEmbedding of the same encoder to the index or pipeline."
                )
        return self._retriever.add(
            [node.text for node in stored],
            ids=[node.id for node in stored],
            metadata=[node.metadata for node in stored],
            embedded_texts=[node.embedded_text for node in stored],
            embeddings=[node.embedding for node in stored],
            on_conflict="replace",
        )

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """:meth:`add` in a thread."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Deletes the nodes of a source document, and a node of that id that is a document itself.

        Args:
            ref_doc_id: The document's id.
            **delete_kwargs: Nothing that is looked at.
        """
        self._retriever.delete([node.node_id for node in self._nodes_of(ref_doc_id)])

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """:meth:`delete` in a thread."""
        await asyncio.to_thread(self.delete, ref_doc_id)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Deletes nodes of some ids, or that filters let pass, or both.

        Args:
            node_ids: Their ids; unknown ones are passed over.
            filters: What they must be like.
            **delete_kwargs: Nothing that is looked at.

        Raises:
            ValueError: If neither is given; see :meth:`clear`.
        """
        if node_ids is None and filters is None:
            raise ValueError("node_ids or filters must be given, got neither. Use clear() to delete all.")
        self._retriever.delete([node.node_id for node in self.get_nodes(node_ids, filters)])

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """:meth:`delete_nodes` in a thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes of some ids, or that filters let pass, or both; all if neither is given.

        Args:
            node_ids: Their ids; unknown ones are passed over.
            filters: What they must be like.
        """
        wanted = index_filter(filters)
        if node_ids is None:
            documents = self._retriever.documents(wanted)
        else:
            documents = self._retriever.get(self._retriever.known_ids(node_ids))
            if wanted is not None:
                passing = {document.id for document in self._retriever.documents(wanted)}
                documents = [document for document in documents if document.id in passing]
        return [restored_node(document.text, document.metadata) for document in documents]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """:meth:`get_nodes` in a thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    def clear(self) -> None:
        """Deletes all nodes."""
        self._retriever.delete([document.id for document in self._retriever.documents()])

    async def aclear(self) -> None:
        """:meth:`clear` in a thread."""
        await asyncio.to_thread(self.clear)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Searches by the mode of a query.

        Args:
            query: The query. Its filters, ``node_ids`` and ``doc_ids`` hold for both sides.
            **kwargs: Nothing that is looked at.

        Returns:
            Nodes, best first, with their scores.

        Raises:
            ValueError: If the mode is another one, or what it needs is missing.
        """
        asked = VectorStoreQueryMode(query.mode)
        mode, name = _MODES.get(asked), str(asked.value)
        if mode is None:
            modes = ", ".join(repr(str(one.value)) for one in _MODES)
            raise ValueError(f"mode must be one of {modes}, got {name!r}.")
        if mode != "sparse" and query.query_embedding is None:
            raise ValueError(f"query_embedding must be given in mode {name!r}, got None.")
        if mode != "dense" and query.query_str is None:
            raise ValueError(f"query_str must be given in mode {name!r}, got None.")
        top_k = {
            "hybrid": query.hybrid_top_k or query.similarity_top_k,
            "sparse": query.sparse_top_k or query.similarity_top_k,
        }.get(mode, query.similarity_top_k)
        if not len(self) or top_k < 1:
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        alpha = query.alpha
        settings = SearchSettings(
            mode=mode,  # type: ignore[arg-type]  # of _MODES
            top_k=top_k,
            weights=None if alpha is None else {"dense": alpha, "sparse": 1 - alpha},
            filter=self._filter(query),
        )
        vectors = None
        if mode != "sparse":
            texts = [] if mode == "dense" else [query.query_str or ""]
            vectors = self._retriever.query_vectors(texts, dense=query.query_embedding, mode="hybrid")
        hits = self._retriever.search(query.query_str or "", settings, vectors=vectors)
        nodes = [restored_node(hit.text, hit.metadata) for hit in hits]
        return VectorStoreQueryResult(
            nodes=nodes, similarities=[hit.score for hit in hits], ids=[node.node_id for node in nodes]
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """:meth:`query` in a thread."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Keeps a temporary index in a directory, to be opened as ``path``; one that has a path is kept already.

        Args:
            persist_path: The directory.
            fs: Only None, the local file system.

        Raises:
            OSError: If it cannot be written.
            ValueError: If ``fs`` is given.
        """
        if fs is not None:
            raise ValueError(f"fs must be None, the local file system, got {type(fs).__name__}.")
        if self._is_temporary:
            Path(persist_path).parent.mkdir(parents=True, exist_ok=True)
            self._retriever.persist(persist_path, {"class": type(self).__name__})

    def _nodes_of(self, ref_doc_id: str) -> list[BaseNode]:
        """The nodes of a source document, and a node of that id that is a document itself."""
        known = self._retriever.known_ids([ref_doc_id])
        documents = [*self._retriever.documents(source_filter(ref_doc_id)), *self._retriever.get(known)]
        nodes = [restored_node(document.text, document.metadata) for document in documents]
        return [node for node in nodes if (node.ref_doc_id or node.node_id) == ref_doc_id]

    def _filter(self, query: VectorStoreQuery) -> Mapping[str, Any] | Callable[[Document], bool] | list[str] | None:
        """All that a query restricts nodes by."""
        filters = joined_filters(query.filters, filters_in_force(None))
        if not query.node_ids and not query.doc_ids:
            return index_filter(filters)
        ids = set(query.node_ids or [])
        if query.doc_ids:
            of_documents = {node.node_id for ref_doc_id in query.doc_ids for node in self._nodes_of(ref_doc_id)}
            ids = ids & of_documents if query.node_ids else of_documents
        if filters is None:
            return list(ids)
        holds = metadata_test(filters)
        return lambda document: document.id in ids and holds(document.metadata)

    def __getstate__(self) -> dict[str, Any]:
        files = index_files(self._retriever) if self._is_temporary else None
        return {"encoder": self.encoder, "path": str(self._retriever.index.path.absolute()), "files": files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        BasePydanticVectorStore.__init__(self, stores_text=True)
        self._is_temporary = state["files"] is not None
        self._retriever = reopened(state["encoder"], state["path"], state["files"], has_dense=True)
        watch_spans()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> KeyTokensVectorStore:
        other = type(self).__new__(type(self))
        other.__setstate__(self.__getstate__())
        return other

    def close(self) -> None:
        """Closes the index; a temporary one is removed."""
        self._retriever.close()
