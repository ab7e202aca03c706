"""KeyTokensRetriever: sparse retrieval over key tokens in an index of our own."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.indices.base import BaseIndex
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.schema import BaseNode, IndexNode, MetadataMode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index_instrumentation import get_dispatcher
from st_keytokens import HybridEmbeddings, KeyTokenEncoder
from st_keytokens.retrieval import (
    OnConflict,
    RetrievedHit,
    Retriever,
    SearchSettings,
    as_encoder,
    checked_int,
)
from typing_extensions import Self, Unpack

from llama_index.retrievers.keytokens.filters import filter_keys, index_filter, joined_filters
from llama_index.retrievers.keytokens.hits import (
    KeyTokensNodeWithScore,
    KeyTokensQueryBundle,
    filters_in_force,
    top_k_in_force,
    watch_spans,
)
from llama_index.retrievers.keytokens.nodes import (
    checked_nodes,
    index_objects,
    restored_node,
    source_nodes,
    stored_node,
    take_vectors,
)
from llama_index.retrievers.keytokens.pickling import index_files, reopened
from llama_index.retrievers.keytokens.sources import Drift, NodeSource

__all__ = ["KeyTokensRetriever", "LiveArguments", "QueryArguments", "RetrieverArguments"]

logger = logging.getLogger(__name__)
dispatcher = get_dispatcher(__name__)


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
    group_by: str | None
    needs_known_word: bool
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
        encoder: Makes the vectors: a ``KeyTokenEncoder``, best calibrated on your texts, any ``BaseEmbedding``, whose
            methods may be asynchronous alone, a SentenceTransformer, or a function from texts to vectors. One without
            an LM head, as every ``BaseEmbedding``, is calibrated on the first nodes that are added, with their
            vectors: each is embedded once, and up to 600 shorter texts beside them. Give most nodes at once. A call
            that fails, fails this one; what was embedded is remembered for as long as the ``BaseEmbedding`` is there,
            so that calling again goes on from there.
        nodes: Nodes to begin with. Vectors that they carry are used, if they are this encoder's. What the index holds
            as it is, is left alone: a node of the same id or, where the id is a random one as LlamaIndex gives it, of
            the same text and metadata.
        path: Directory of the index; what is added is there after a crash, and :meth:`from_persist_dir` opens it with
            these settings. None: a temporary one, to be kept with :meth:`persist`. Both keep the calibration too, and
            no ``BaseEmbedding``.
        similarity_top_k: At most so many hits.
        filters: What nodes must be like to be found.
        group_by: A key of the metadata of whose values each is found once, by its best node: ``"ref_doc_id"`` for one
            hit of each source document. Nodes without the key are found all. None: no groups.
        needs_known_word: Whether a sparse search finds nothing for a query none of whose own words a node has: what
            such a query decodes to is noise.
        explain: Whether hits say which tokens they matched.
        verbose: Whether retrieving from objects is printed.
        **live: ``callback_manager`` gets the events of each retrieval. ``objects`` are index nodes whose objects stand
            in for them when they are found, and ``object_map`` is the same by ``index_id``; those of added nodes are
            known.

    Attributes:
        encoder: As given, or made of it.
        similarity_top_k: As given; may be changed.
        filters: As given; may be changed.
        group_by: As given; may be changed.
        needs_known_word: As given; may be changed.
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
    _opens_stores = False

    def __init__(
        self,
        encoder: KeyTokenEncoder | BaseEmbedding | Any,
        nodes: Sequence[BaseNode] = (),
        *,
        path: str | PathLike[str] | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: MetadataFilters | None = None,
        group_by: str | None = None,
        needs_known_word: bool = True,
        explain: bool = False,
        verbose: bool = False,
        **live: Unpack[LiveArguments],
    ) -> None:
        _check_names(type(self).__name__, live)
        super().__init__(verbose=verbose, **live)
        checked_nodes(nodes)
        watch_spans()
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.group_by = group_by
        self.needs_known_word = needs_known_word
        self.explain = explain
        self._source: NodeSource | None = None
        self._path = None if path is None else str(Path(path).absolute())
        self._retriever = Retriever(encoder, path, has_dense=self._has_dense)
        self.encoder = self._retriever.encoder
        self._settings(None)
        if path is not None and self._settings_at(path) != {"class": type(self).__name__, **self._kept_settings()}:
            self.persist(path)
        new = self._not_held(nodes, tells_copies=True)
        if new:
            KeyTokensRetriever.add_nodes(self, new)  # a vector store beside it holds them already
        self.object_map.update(index_objects(nodes))

    @classmethod
    def from_defaults(
        cls,
        index: BaseIndex[Any] | None = None,
        nodes: Sequence[BaseNode] | None = None,
        docstore: BaseDocumentStore | None = None,
        *,
        encoder: KeyTokenEncoder | BaseEmbedding | Any,
        **settings: Unpack[RetrieverArguments],
    ) -> Self:
        """Makes a retriever of the nodes of an index or a docstore, or of a list of nodes, which may be empty.

        Args:
            index: An index whose docstore holds its nodes; what else is in the docstore is left out. What is inserted
                into it and deleted from it afterwards is found, and not found, from the next query on. Exactly one of
                this and the next two is given.
            nodes: The nodes themselves.
            docstore: What holds them; :meth:`sync` follows it.
            encoder: As for the class. Vectors of an index's own embedding model that LlamaIndex's own store keeps are
                used where it is that model, and nothing is embedded to compare them.
            **settings: As for the class.

        Raises:
            TypeError: If one is of the wrong type.
            ValueError: If not exactly one is given, or the docstore of an index is empty as its vector store keeps the
                text.
        """
        given, source = source_nodes(index, nodes, docstore, has_vectors=True)
        encoder = as_encoder(encoder, settings.get("path"))
        take_vectors(encoder, index, given)
        retriever = cls(encoder, given, **settings)
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
        **live: Unpack[LiveArguments],
    ) -> Self:
        """Opens what :meth:`persist` or ``path=`` kept, with all its settings; further changes go into that directory.

        Args:
            path: The directory.
            encoder: The encoder that made the index, or the ``BaseEmbedding`` that it was made with, which is in no
                directory: calibration and settings are those that were kept.
            index: Where the nodes came from: what has changed there meanwhile is counted, and said in a warning.
            docstore: The same of a docstore.
            **live: ``callback_manager``, ``objects`` and ``object_map`` as for the class. Index nodes whose objects
                were retrievers or query engines have to be given again.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was made by another encoder or class, or a ``BaseEmbedding`` of another name or
                dimension, the encoder is not given, or it is damaged.
        """
        retriever = cls(encoder, path=path, **cls._saved_settings(path), **live)
        if index is not None or docstore is not None:
            retriever._open(NodeSource(index, docstore))
        return retriever

    def with_filters(self, filters: MetadataFilters | None) -> Self:
        """A retriever over the same index whose filters hold beside this one's, for wrappers and query engines.

        Args:
            filters: The filters; None for none.

        Raises:
            TypeError: If they are no ``MetadataFilters``.
            ValueError: If an operator needs a list and has none, or the other way round.
        """
        other = copy.copy(self)
        other.filters = joined_filters(self.filters, filters)
        other._settings(None)
        return other

    def drift(self, *, nodes: Sequence[BaseNode] | None = None, docstore: BaseDocumentStore | None = None) -> Drift:
        """Counts what an application's nodes and the index do not have in common; nothing is changed.

        Args:
            nodes: All nodes of the application. With none of both, the index or docstore that the retriever was made
                of counts.
            docstore: What holds them.

        Returns:
            Both numbers, and the ids that only one side has, or that differ.

        Raises:
            ValueError: If there is nothing to compare with, as a vector store keeps the nodes.
        """
        return self._compared(nodes, docstore)[0]

    def sync(self, *, nodes: Sequence[BaseNode] | None = None, docstore: BaseDocumentStore | None = None) -> Drift:
        """Brings the index in step with an application's nodes: adds, replaces and deletes in the index alone.

        Args:
            nodes: As for :meth:`drift`.
            docstore: As for :meth:`drift`.

        Returns:
            What has been put right.
        """
        drift, found = self._compared(nodes, docstore)
        self._retriever.delete(drift.gone)
        if drift.missing or drift.changed:
            KeyTokensRetriever.add_nodes(self, [found[id] for id in (*drift.missing, *drift.changed)])
        return drift

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
            nodes: Nodes; not modified. Vectors that they carry are used, if they are this encoder's.
            on_conflict: ``"replace"`` nodes whose id is there, or ``"error"``.

        Returns:
            The ids.

        Raises:
            TypeError: If one is no node, or metadata hold what cannot be kept; the error names the key.
            ValueError: If an id is twice among them, or is there and not to be replaced. Nothing is added.
        """
        stored = [stored_node(node) for node in checked_nodes(nodes)]
        ids = self._retriever.add(
            [node.text for node in stored],
            ids=[node.id for node in stored],
            metadata=[node.metadata for node in stored],
            embedded_texts=[node.embedded_text for node in stored],
            embeddings=[node.embedding for node in stored],
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
        return super().retrieve(query_with(str_or_query_bundle, **own))

    async def aretrieve(self, str_or_query_bundle: QueryType, **own: Unpack[QueryArguments]) -> list[NodeWithScore]:
        """:meth:`retrieve` without blocking the event loop."""
        return await super().aretrieve(query_with(str_or_query_bundle, **own))

    @dispatcher.span
    def retrieve_batch(self, queries: Sequence[str], **own: Unpack[QueryArguments]) -> list[list[NodeWithScore]]:
        """Retrieves nodes for several queries, which are embedded together.

        Args:
            queries: The queries.
            **own: ``filters`` and ``similarity_top_k`` as for :meth:`retrieve`, for each of them.

        Returns:
            For each query what :meth:`retrieve` gives. Callbacks and events are those of as many retrievals.
        """
        texts = checked_queries(queries)
        for text in texts:
            dispatcher.event(RetrievalStartEvent(str_or_query_bundle=text))
        found = self._retrieve_batch(texts, query_with("", **own))
        with self.callback_manager.as_trace("query"):
            return [self._finished(query, nodes) for query, nodes in zip(texts, found, strict=True)]

    @dispatcher.span
    async def aretrieve_batch(
        self, queries: Sequence[str], **own: Unpack[QueryArguments]
    ) -> list[list[NodeWithScore]]:
        """:meth:`retrieve_batch` without blocking the event loop."""
        return await asyncio.to_thread(self.retrieve_batch, queries, **own)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._follow()
        settings = self._settings(query_bundle)
        vectors = self._vectors(query_bundle, settings)
        return self._nodes(self._retriever.search(query_bundle.query_str, settings, vectors=vectors), query_bundle)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _retrieve_batch(self, queries: list[str], own: QueryBundle) -> list[list[NodeWithScore]]:
        """Nodes of several queries with the settings of one."""
        self._follow()
        return [self._nodes(hits, own) for hits in self._retriever.search(queries, self._settings(own))]

    def _finished(self, query: str, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        """What :meth:`retrieve` does around ``_retrieve``, for one query of several."""
        with self.callback_manager.event(CBEventType.RETRIEVE, payload={EventPayload.QUERY_STR: query}) as event:
            nodes = self._handle_recursive_retrieval(QueryBundle(query), nodes)
            event.on_end(payload={EventPayload.NODES: nodes})
        dispatcher.event(RetrievalEndEvent(str_or_query_bundle=query, nodes=nodes))
        return nodes

    def _settings(self, query_bundle: QueryBundle | None) -> SearchSettings:
        top_k = top_k_in_force(query_bundle)
        return SearchSettings(
            mode="sparse",
            top_k=checked_int("similarity_top_k", self.similarity_top_k if top_k is None else top_k, minimum=1),
            filter=index_filter(self._filters(query_bundle)),
            has_matches=self.explain,
            group_by=self.group_by,
            needs_known_word=self.needs_known_word,
        )

    def _filters(self, query_bundle: QueryBundle | None) -> MetadataFilters | None:
        """All filters that hold for a query."""
        return joined_filters(self.filters, filters_in_force(query_bundle))

    def _vectors(
        self,
        query_bundle: QueryBundle,
        settings: SearchSettings,
        *,
        has_outside: bool = False,
        shares_encoder: bool = False,
    ) -> HybridEmbeddings | None:
        """Vectors of what a query is to be embedded as, where that is something else than its text."""
        mode = settings.mode or "sparse"
        dense = query_bundle.embedding if mode == "hybrid" and (shares_encoder or not has_outside) else None
        if dense is not None and len(dense) != self.encoder.get_embedding_dimension():
            dense = None  # another retriever of the same query has put it there
        texts = [text for text in query_bundle.embedding_strs if text.strip()]
        if dense is None and (texts == [query_bundle.query_str] or not (texts or query_bundle.embedding)):
            return None
        needs_known_word = settings.needs_known_word
        return self._retriever.query_vectors(
            texts,
            dense=dense,
            mode=mode,
            has_outside=has_outside,
            needs_known_word=needs_known_word,
            shares_encoder=shares_encoder,
        )

    def _nodes(self, hits: Sequence[RetrievedHit], query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._say_unknown_keys(query_bundle)
        return [scored_node(restored_node(hit.text, hit.metadata), hit) for hit in hits]

    def _say_unknown_keys(self, query_bundle: QueryBundle) -> None:
        """Says once of each key that filters ask for that no node has it."""
        for key in self._retriever.newly_missing(filter_keys(self._filters(query_bundle))):
            logger.warning("filters ask for the key %r, which none of %d nodes has.", key, len(self))

    def _follow(self) -> None:
        """Does what has been done to the index that the retriever was made of."""
        if self._source is None:
            return
        with self._source.changes() as (added, removed):
            if not added and not removed:
                return
            self._retriever.delete(removed)
            nodes = [node for node in self._source.nodes(added, has_vectors=True) if node is not None]
            take_vectors(self.encoder, self._source.index, nodes)
            new = self._not_held(nodes)
            if new:
                KeyTokensRetriever.add_nodes(self, new)

    def _open(self, source: NodeSource | None) -> None:
        """Follows a source from now on, and says what has changed there until now."""
        self._source = source
        ids = None if source is None else source.ids()
        if ids is None:
            return
        own = {document.id for document in self._retriever.documents()}
        gone, missing = len(own.difference(ids)), len(set(ids) - own)
        if gone or missing:
            logger.warning(
                "the retriever holds %d nodes and the application %d: %d are in the retriever alone, and %d in the "
                "application alone. sync() brings them in step.",
                len(own),
                len(ids),
                gone,
                missing,
            )

    def _compared(
        self, nodes: Sequence[BaseNode] | None, docstore: BaseDocumentStore | None
    ) -> tuple[Drift, dict[str, BaseNode]]:
        """The drift, and the application's nodes by id."""
        if nodes is None:
            source = self._source if docstore is None else NodeSource(docstore=docstore)
            ids = None if source is None else source.ids()
            if source is None or ids is None:
                raise ValueError(
                    "nodes or docstore must be given, got neither, and no index that lists its nodes is known."
                )
            nodes = source.nodes(ids, has_vectors=True)
        theirs = {node.node_id: node for node in checked_nodes(nodes) if node is not None}
        ours = self._identities()
        return Drift(
            source_count=len(theirs),
            count=len(ours),
            missing=[id for id in theirs if id not in ours],
            gone=[id for id in ours if id not in theirs],
            changed=[id for id, node in theirs.items() if id in ours and ours[id] != _identity(node)],
        ), theirs

    def _identities(self, ids: Collection[str] | None = None) -> dict[str, tuple[str, str]]:
        """What tells each node of the index from others, by id; of some ids, those that are there."""
        if ids is None:
            documents = self._retriever.documents()
        else:
            documents = self._retriever.get(self._retriever.known_ids(ids))
        return {document.id: _identity(restored_node(document.text, document.metadata)) for document in documents}

    def _not_held(self, nodes: Sequence[BaseNode], *, tells_copies: bool = False) -> list[BaseNode]:
        """Nodes that the index does not hold as they are, of the same id or, of a random one, of the same content."""
        if not nodes or not len(self):
            return list(nodes)
        held = self._identities([stored_node(node).id for node in nodes])
        new = [node for node in nodes if held.get(node.node_id) != _identity(node)]
        if tells_copies and any(_is_random(node.node_id) for node in new):
            contents = set(self._identities().values())
            new = [
                node
                for node in new
                if node.node_id in held or not _is_random(node.node_id) or _identity(node) not in contents
            ]
        return new

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_retriever"}
        return {**state, "_files": index_files(self._retriever) if self._path is None else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        files = self.__dict__.pop("_files")
        self._retriever = reopened(self.encoder, self._path, files, has_dense=self._has_dense)
        watch_spans()

    def __copy__(self) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)  # the index is shared
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        state = self.__getstate__()
        shared = {"encoder", "callback_manager", "_source", "_side", "retrievers", "_files", "object_map"}
        copied = {key: value if key in shared else copy.deepcopy(value, memo) for key, value in state.items()}
        other = type(self).__new__(type(self))
        other.__setstate__({**copied, "object_map": dict(self.object_map)})
        return other

    def _kept_settings(self) -> dict[str, Any]:
        """The arguments that :meth:`persist` writes, as JSON."""
        return {
            "similarity_top_k": self.similarity_top_k,
            "filters": None if self.filters is None else self.filters.model_dump(mode="json"),
            "group_by": self.group_by,
            "needs_known_word": self.needs_known_word,
            "explain": self.explain,
            "verbose": self._verbose,
        }

    @staticmethod
    def _settings_at(path: str | PathLike[str]) -> dict[str, Any] | None:
        """The settings that a directory holds; None where it holds none that can be read."""
        try:
            return Retriever.read_settings(path)
        except (FileNotFoundError, ValueError):
            return None

    @classmethod
    def _saved_settings(cls, path: str | PathLike[str]) -> dict[str, Any]:
        """What :meth:`_kept_settings` gave, with the filters themselves."""
        settings = Retriever.read_settings(path)
        kind = settings.pop("class", None)
        if kind == "KeyTokensVectorStore" and cls._opens_stores:
            return {"has_dense": True}
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


def query_with(
    query: QueryType, *, filters: MetadataFilters | None = None, similarity_top_k: int | None = None, **other: Any
) -> QueryBundle:
    """A query with settings of its own, those of the call first."""
    _check_names("retrieve", other, known=())
    if not isinstance(query, (str, QueryBundle)):
        raise TypeError(
            f"query must be a string or a QueryBundle, got {type(query).__name__} {query!r:.60}. "
            "Several queries go into retrieve_batch."
        )
    bundle = QueryBundle(query) if isinstance(query, str) else query
    if filters is None and similarity_top_k is None:
        return bundle
    own = bundle if isinstance(bundle, KeyTokensQueryBundle) else KeyTokensQueryBundle(**vars(bundle))
    return replace(
        own,
        filters=joined_filters(own.filters, filters),
        similarity_top_k=own.similarity_top_k if similarity_top_k is None else similarity_top_k,
    )


def _check_names(
    function: str, given: Collection[str], known: Collection[str] = frozenset(LiveArguments.__annotations__)
) -> None:
    """Refuses an argument that nobody knows, and says what was meant where that is plain."""
    for name in given:
        if name not in known:
            meant = " The number of hits is similarity_top_k." if name in ("k", "top_k") else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}.{meant}")


def checked_queries(queries: Sequence[str]) -> list[str]:
    """Queries that are several strings; TypeError where they are one, or none."""
    if isinstance(queries, str) or not isinstance(queries, Sequence):
        raise TypeError(f"queries must be a list of strings, got {type(queries).__name__}.")
    return list(queries)


def _identity(node: BaseNode) -> tuple[str, str]:
    """What a node must have the same for another to be its copy: text, metadata, and what of them is embedded."""
    return node.hash, node.get_content(metadata_mode=MetadataMode.EMBED)


def _is_random(id: str) -> bool:
    """Whether an id is a random UUID."""
    try:
        return UUID(id).version == 4
    except ValueError:
        return False
