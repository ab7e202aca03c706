"""KeyTokensRetriever: sparse retrieval over key tokens in an index of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import MetadataFilters
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import RetrievedHit, SearchSettings

from llama_index.retrievers.keytokens.filters import index_filter, joined_filters
from llama_index.retrievers.keytokens.hits import KeyTokensNodeWithScore, KeyTokensQueryBundle
from llama_index.retrievers.keytokens.node_index import NodeIndex
from llama_index.retrievers.keytokens.nodes import restored_node, source_nodes

if TYPE_CHECKING:
    from llama_index.core.indices.vector_store.base import VectorStoreIndex
    from llama_index.core.storage.docstore.types import BaseDocumentStore
    from typing_extensions import Self

__all__ = ["KeyTokensRetriever"]


class KeyTokensRetriever(NodeIndex):
    """Retrieves nodes by the key tokens and words that they share with a query.

    Takes the place of ``BM25Retriever``: nodes are added and deleted at any time, filters hold for each query and what
    they stop never comes back, a reload brings every setting, scores are returned, Chinese works as English does, and
    the async methods do not block the event loop. Safe for any number of threads and tasks.

    Install it with ``pip install llama-index-retrievers-keytokens``.

    Args:
        encoder: Makes the vectors; calibrate it on your texts first.
        nodes: Nodes to begin with.
        path: Directory of the index; what is added is there after a crash. None: a temporary one, to be kept with
            :meth:`persist`.
        similarity_top_k: At most so many hits.
        filters: What nodes must be like to be found.
        explain: Whether hits say which tokens they matched.
        callback_manager: Gets the events of each retrieval.
        objects: Index nodes whose objects stand in for them when they are found. Those of added nodes are known.
        object_map: The same by ``index_id``.
        verbose: Whether retrieving from objects is printed.

    Attributes:
        encoder: As given.
        similarity_top_k: As given; may be changed.
        filters: As given; may be changed.
        explain: As given; may be changed.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a value is out of its range, or the index was made by another encoder.

    Example:
        .. code-block:: python

            from llama_index.retrievers.keytokens import KeyTokensRetriever
            from st_keytokens import KeyTokenEncoder

            encoder = KeyTokenEncoder("examples/tiny-embedder/embedder")
            retriever = KeyTokensRetriever.from_defaults(nodes=nodes, encoder=encoder, similarity_top_k=5)
            for hit in retriever.retrieve("planets around other stars"):
                print(hit.score, hit.node.get_content())
    """

    _has_dense = False

    def __init__(
        self,
        encoder: KeyTokenEncoder,
        nodes: Sequence[BaseNode] = (),
        *,
        path: str | PathLike[str] | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: MetadataFilters | None = None,
        explain: bool = False,
        callback_manager: CallbackManager | None = None,
        objects: list[IndexNode] | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            encoder,
            path=path,
            has_dense=self._has_dense,
            similarity_top_k=similarity_top_k,
            filters=filters,
            explain=explain,
            callback_manager=callback_manager,
            objects=objects,
            object_map=object_map,
            verbose=verbose,
        )
        self._settings(None)
        if nodes:
            NodeIndex.add_nodes(self, nodes)  # a vector store beside it holds them already

    @classmethod
    def from_defaults(
        cls,
        index: VectorStoreIndex | None = None,
        nodes: Sequence[BaseNode] | None = None,
        docstore: BaseDocumentStore | None = None,
        *,
        encoder: KeyTokenEncoder,
        path: str | PathLike[str] | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: MetadataFilters | None = None,
        explain: bool = False,
        callback_manager: CallbackManager | None = None,
        objects: list[IndexNode] | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
    ) -> Self:
        """Makes a retriever of the nodes of an index or a docstore, or of a list of nodes, which may be empty.

        Exactly one of ``index``, whose docstore holds its nodes, ``nodes`` and ``docstore`` is given. The other
        arguments are those of the class.

        Raises:
            ValueError: If not exactly one is given, or the docstore of an index is empty as its vector store keeps the
                text.
        """
        return cls(
            encoder,
            source_nodes(index, nodes, docstore),
            path=path,
            similarity_top_k=similarity_top_k,
            filters=filters,
            explain=explain,
            callback_manager=callback_manager,
            objects=objects,
            object_map=object_map,
            verbose=verbose,
        )

    @classmethod
    def from_persist_dir(
        cls,
        path: str | PathLike[str],
        encoder: KeyTokenEncoder,
        *,
        callback_manager: CallbackManager | None = None,
        objects: list[IndexNode] | None = None,
        object_map: dict[str, Any] | None = None,
    ) -> Self:
        """Opens what :meth:`persist` kept, with all its settings; further changes go into that directory.

        Args:
            path: The directory.
            encoder: The encoder that made the index.
            callback_manager: Gets the events.
            objects: Index nodes whose objects were retrievers or query engines, which no file holds.
            object_map: The same by ``index_id``.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was made by another encoder or class, or is damaged.
        """
        settings = cls._saved_settings(path)
        return cls(
            encoder,
            path=path,
            similarity_top_k=settings["similarity_top_k"],
            filters=settings["filters"],
            explain=settings["explain"],
            verbose=settings["verbose"],
            callback_manager=callback_manager,
            objects=objects,
            object_map=object_map,
        )

    def retrieve(
        self,
        str_or_query_bundle: QueryType,
        *,
        filters: MetadataFilters | None = None,
        similarity_top_k: int | None = None,
    ) -> list[NodeWithScore]:
        """Retrieves nodes for one query.

        Args:
            str_or_query_bundle: The query. In a :class:`KeyTokensQueryBundle` it carries the next two arguments.
            filters: Filters that hold for this call beside the retriever's.
            similarity_top_k: Hits of this call; None for the retriever's.

        Returns:
            Nodes, best first, as :class:`KeyTokensNodeWithScore`; for an index node with an object what that gives.
            Only nodes that share a term with the query, and none from an empty retriever.
        """
        return super().retrieve(_query(str_or_query_bundle, filters, similarity_top_k))

    async def aretrieve(
        self,
        str_or_query_bundle: QueryType,
        *,
        filters: MetadataFilters | None = None,
        similarity_top_k: int | None = None,
    ) -> list[NodeWithScore]:
        """:meth:`retrieve` without blocking the event loop."""
        return await super().aretrieve(_query(str_or_query_bundle, filters, similarity_top_k))

    def retrieve_batch(
        self,
        queries: Sequence[str],
        *,
        filters: MetadataFilters | None = None,
        similarity_top_k: int | None = None,
    ) -> list[list[NodeWithScore]]:
        """Retrieves nodes for several queries, which are embedded together.

        Args:
            queries: The queries.
            filters: Filters that hold for this call beside the retriever's.
            similarity_top_k: Hits of each; None for the retriever's.

        Returns:
            For each query what :meth:`retrieve` gives.
        """
        found = self._retrieve_batch(list(queries), filters, similarity_top_k)
        with self.callback_manager.as_trace("query"):
            return [self._finished(query, nodes) for query, nodes in zip(queries, found, strict=True)]

    async def aretrieve_batch(
        self,
        queries: Sequence[str],
        *,
        filters: MetadataFilters | None = None,
        similarity_top_k: int | None = None,
    ) -> list[list[NodeWithScore]]:
        """:meth:`retrieve_batch` in a thread."""
        return await asyncio.to_thread(
            self.retrieve_batch, queries, filters=filters, similarity_top_k=similarity_top_k
        )

    # -- inside ----------------------------------------------------------------------------------------------------

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes(self._retriever.search(query_bundle.query_str, self._settings(query_bundle)))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _retrieve_batch(
        self, queries: list[str], filters: MetadataFilters | None, similarity_top_k: int | None
    ) -> list[list[NodeWithScore]]:
        settings = self._settings(KeyTokensQueryBundle("", filters=filters, similarity_top_k=similarity_top_k))
        return [self._nodes(hits) for hits in self._retriever.search(queries, settings)]

    def _finished(self, query: str, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        """What :meth:`retrieve` does around ``_retrieve``, for one query of several."""
        with self.callback_manager.event(CBEventType.RETRIEVE, payload={EventPayload.QUERY_STR: query}) as event:
            nodes = self._handle_recursive_retrieval(QueryBundle(query), nodes)
            event.on_end(payload={EventPayload.NODES: nodes})
        return nodes

    def _settings(self, query_bundle: QueryBundle | None) -> SearchSettings:
        """How to search for a query; None for one without settings of its own."""
        own = query_bundle if isinstance(query_bundle, KeyTokensQueryBundle) else KeyTokensQueryBundle("")
        return SearchSettings(
            mode="sparse",
            top_k=self.similarity_top_k if own.similarity_top_k is None else own.similarity_top_k,
            filter=index_filter(self._filters(own)),
            has_matches=self.explain,
        )

    def _filters(self, query_bundle: QueryBundle) -> MetadataFilters | None:
        """All filters that hold for a query."""
        own = query_bundle.filters if isinstance(query_bundle, KeyTokensQueryBundle) else None
        return joined_filters(self.filters, own)

    def _nodes(self, hits: Sequence[RetrievedHit]) -> list[NodeWithScore]:
        return [scored_node(restored_node(hit.text, hit.metadata), hit) for hit in hits]


def scored_node(node: BaseNode, hit: RetrievedHit) -> KeyTokensNodeWithScore:
    """A node with the scores of a hit."""
    matches = None if hit.matches is None else [(match.token or "", match.contribution) for match in hit.matches]
    return KeyTokensNodeWithScore(node=node, score=hit.score, scores=hit.scores, matches=matches)


def _query(
    query: QueryType, filters: MetadataFilters | None, similarity_top_k: int | None
) -> QueryBundle | KeyTokensQueryBundle:
    """A query with settings of its own, those of the call first."""
    if filters is None and similarity_top_k is None:
        return QueryBundle(query) if isinstance(query, str) else query
    bundle = QueryBundle(query) if isinstance(query, str) else query
    own = bundle if isinstance(bundle, KeyTokensQueryBundle) else KeyTokensQueryBundle(**vars(bundle))
    return replace(
        own,
        filters=joined_filters(own.filters, filters),
        similarity_top_k=own.similarity_top_k if similarity_top_k is None else similarity_top_k,
    )
