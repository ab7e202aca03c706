"""KeyTokensRetriever: sparse retrieval over key tokens in an index of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypedDict

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import MetadataFilters
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import OnConflict, RetrievedHit, Retriever, SearchSettings
from typing_extensions import Self, Unpack

from llama_index.retrievers.keytokens.filters import index_filter, joined_filters
from llama_index.retrievers.keytokens.hits import KeyTokensNodeWithScore, KeyTokensQueryBundle
from llama_index.retrievers.keytokens.nodes import index_objects, restored_node, source_nodes, stored_node

if TYPE_CHECKING:
    from llama_index.core.indices.vector_store.base import VectorStoreIndex
    from llama_index.core.storage.docstore.types import BaseDocumentStore

__all__ = ["KeyTokensRetriever", "LiveArguments", "QueryArguments", "RetrieverArguments"]


class LiveArguments(TypedDict, total=False):
    """Keyword arguments of :class:`KeyTokensRetriever` that no file holds; see there."""

    callback_manager: CallbackManager | None
    objects: list[IndexNode] | None
    object_map: dict[str, Any] | None


class RetrieverArguments(LiveArguments, total=False):
    """Keyword arguments of :class:`KeyTokensRetriever`; see there."""

    path: str | PathLike[str] | None
    similarity_top_k: int
    filters: MetadataFilters | None
    explain: bool
    verbose: bool


class QueryArguments(TypedDict, total=False):
    """Keyword arguments of one call of :meth:`KeyTokensRetriever.retrieve`; see there."""

    filters: MetadataFilters | None
    similarity_top_k: int | None


class KeyTokensRetriever(BaseRetriever):
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
        verbose: Whether retrieving from objects is printed.
        **live: ``callback_manager`` gets the events of each retrieval. ``objects`` are index nodes whose objects stand
            in for them when they are found, and ``object_map`` is the same by ``index_id``; those of added nodes are
            known.

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
        verbose: bool = False,
        **live: Unpack[LiveArguments],
    ) -> None:
        super().__init__(verbose=verbose, **live)
        self.encoder = encoder
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.explain = explain
        self._retriever = Retriever(encoder, path, has_dense=self._has_dense)
        self._settings(None)
        if nodes:
            KeyTokensRetriever.add_nodes(self, nodes)  # a vector store beside it holds them already

    @classmethod
    def from_defaults(
        cls,
        index: VectorStoreIndex | None = None,
        nodes: Sequence[BaseNode] | None = None,
        docstore: BaseDocumentStore | None = None,
        *,
        encoder: KeyTokenEncoder,
        **settings: Unpack[RetrieverArguments],
    ) -> Self:
        """Makes a retriever of the nodes of an index or a docstore, or of a list of nodes, which may be empty.

        Args:
            index: An index whose docstore holds its nodes. Exactly one of this and the next two is given.
            nodes: The nodes themselves.
            docstore: What holds them.
            encoder: As for the class.
            **settings: As for the class.

        Raises:
            ValueError: If not exactly one is given, or the docstore of an index is empty as its vector store keeps the
                text.
        """
        return cls(encoder, source_nodes(index, nodes, docstore), **settings)

    @classmethod
    def from_persist_dir(
        cls, path: str | PathLike[str], encoder: KeyTokenEncoder, **live: Unpack[LiveArguments]
    ) -> Self:
        """Opens what :meth:`persist` kept, with all its settings; further changes go into that directory.

        Args:
            path: The directory.
            encoder: The encoder that made the index.
            **live: ``callback_manager``, ``objects`` and ``object_map`` as for the class. Index nodes whose objects
                were retrievers or query engines have to be given again.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was made by another encoder or class, or is damaged.
        """
        return cls(encoder, path=path, **cls._saved_settings(path), **live)

    def persist(self, path: str | PathLike[str]) -> None:
        """Keeps nodes, vectors and settings in a directory, without pickle; a retriever that is there is replaced.

        What is added afterwards is not in it, unless the retriever was opened there.

        Args:
            path: The directory, which holds nothing else.

        Raises:
            OSError: If it cannot be written; what was there is kept.
            ValueError: If the directory holds other files.
        """
        self._retriever.persist(path, {"class": type(self).__name__, **self._kept_settings()})

    def add_nodes(self, nodes: Sequence[BaseNode], *, on_conflict: OnConflict = "replace") -> list[str]:
        """Adds nodes, all or none. They are embedded with the metadata that ``MetadataMode.EMBED`` adds.

        Args:
            nodes: Nodes; not modified.
            on_conflict: ``"replace"`` nodes whose id is there, or ``"error"``.

        Returns:
            The ids.

        Raises:
            TypeError: If one is no node, or metadata hold what cannot be kept; the error names the key.
            ValueError: If an id is twice among them, or is there and not to be replaced. Nothing is added.
        """
        stored = [stored_node(node) for node in nodes]
        ids = self._retriever.add(
            [node.text for node in stored],
            ids=[node.id for node in stored],
            metadata=[node.metadata for node in stored],
            embedded_texts=[node.embedded_text for node in stored],
            on_conflict=on_conflict,
        )
        self.object_map.update(index_objects(nodes))
        return ids

    async def aadd_nodes(self, nodes: Sequence[BaseNode], *, on_conflict: OnConflict = "replace") -> list[str]:
        """:meth:`add_nodes` in a thread."""
        return await asyncio.to_thread(self.add_nodes, nodes, on_conflict=on_conflict)

    def delete_nodes(self, node_ids: Collection[str]) -> int:
        """Deletes nodes by id; ids that are not there are passed over.

        Returns:
            How many were there.
        """
        return self._retriever.delete(node_ids)

    async def adelete_nodes(self, node_ids: Collection[str]) -> int:
        """:meth:`delete_nodes` in a thread."""
        return await asyncio.to_thread(self.delete_nodes, node_ids)

    def __len__(self) -> int:
        return len(self._retriever)

    def __bool__(self) -> bool:
        return True  # an empty retriever is one as well

    def close(self) -> None:
        """Closes the index; a temporary one is removed."""
        self._retriever.close()

    def retrieve(self, str_or_query_bundle: QueryType, **own: Unpack[QueryArguments]) -> list[NodeWithScore]:
        """Retrieves nodes for one query.

        Args:
            str_or_query_bundle: The query. In a :class:`KeyTokensQueryBundle` it carries the other arguments.
            **own: ``filters`` hold for this call beside the retriever's, and ``similarity_top_k`` is the number of
                hits of this call; None for the retriever's.

        Returns:
            Nodes, best first, as :class:`KeyTokensNodeWithScore`; for an index node with an object what that gives.
            Only nodes that share a term with the query, and none from an empty retriever.
        """
        return super().retrieve(_query(str_or_query_bundle, **own))

    async def aretrieve(self, str_or_query_bundle: QueryType, **own: Unpack[QueryArguments]) -> list[NodeWithScore]:
        """:meth:`retrieve` without blocking the event loop."""
        return await super().aretrieve(_query(str_or_query_bundle, **own))

    def retrieve_batch(self, queries: Sequence[str], **own: Unpack[QueryArguments]) -> list[list[NodeWithScore]]:
        """Retrieves nodes for several queries, which are embedded together.

        Args:
            queries: The queries.
            **own: ``filters`` and ``similarity_top_k`` as for :meth:`retrieve`, for each of them.

        Returns:
            For each query what :meth:`retrieve` gives.
        """
        found = self._retrieve_batch(list(queries), _query("", **own))
        with self.callback_manager.as_trace("query"):
            return [self._finished(query, nodes) for query, nodes in zip(queries, found, strict=True)]

    async def aretrieve_batch(
        self, queries: Sequence[str], **own: Unpack[QueryArguments]
    ) -> list[list[NodeWithScore]]:
        """:meth:`retrieve_batch` in a thread."""
        return await asyncio.to_thread(self.retrieve_batch, queries, **own)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes(self._retriever.search(query_bundle.query_str, self._settings(query_bundle)))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _retrieve_batch(self, queries: list[str], own: QueryBundle) -> list[list[NodeWithScore]]:
        """Nodes of several queries with the settings of one."""
        return [self._nodes(hits) for hits in self._retriever.search(queries, self._settings(own))]

    def _finished(self, query: str, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        """What :meth:`retrieve` does around ``_retrieve``, for one query of several."""
        with self.callback_manager.event(CBEventType.RETRIEVE, payload={EventPayload.QUERY_STR: query}) as event:
            nodes = self._handle_recursive_retrieval(QueryBundle(query), nodes)
            event.on_end(payload={EventPayload.NODES: nodes})
        return nodes

    def _settings(self, query_bundle: QueryBundle | None) -> SearchSettings:
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

    def _kept_settings(self) -> dict[str, Any]:
        """The arguments that :meth:`persist` writes, as JSON."""
        return {
            "similarity_top_k": self.similarity_top_k,
            "filters": None if self.filters is None else self.filters.model_dump(mode="json"),
            "explain": self.explain,
            "verbose": self._verbose,
        }

    @classmethod
    def _saved_settings(cls, path: str | PathLike[str]) -> dict[str, Any]:
        """What :meth:`_kept_settings` gave, with the filters themselves."""
        settings = Retriever.read_settings(path)
        kind = settings.pop("class", None)
        if kind != cls.__name__:
            raise ValueError(
                f"path must hold what {cls.__name__}.persist kept, got {path} of {kind!r}. "
                "Open it with the class that kept it."
            )
        filters = settings["filters"]
        return {**settings, "filters": None if filters is None else MetadataFilters.model_validate(filters)}


def scored_node(node: BaseNode, hit: RetrievedHit) -> KeyTokensNodeWithScore:
    """A node with the scores of a hit."""
    matches = None if hit.matches is None else [(match.token or "", match.contribution) for match in hit.matches]
    return KeyTokensNodeWithScore(node=node, score=hit.score, scores=hit.scores, matches=matches)


def _query(
    query: QueryType, *, filters: MetadataFilters | None = None, similarity_top_k: int | None = None
) -> QueryBundle:
    """A query with settings of its own, those of the call first."""
    bundle = QueryBundle(query) if isinstance(query, str) else query
    if filters is None and similarity_top_k is None:
        return bundle
    own = bundle if isinstance(bundle, KeyTokensQueryBundle) else KeyTokensQueryBundle(**vars(bundle))
    return replace(
        own,
        filters=joined_filters(own.filters, filters),
        similarity_top_k=own.similarity_top_k if similarity_top_k is None else similarity_top_k,
    )
