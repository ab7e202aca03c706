"""What comes back: nodes with all their scores, and queries with settings of their own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index_instrumentation import root_dispatcher
from llama_index_instrumentation.span import BaseSpan, active_span_id
from llama_index_instrumentation.span_handlers import BaseSpanHandler

from llama_index.retrievers.keytokens.filters import joined_filters

__all__ = ["KeyTokensNodeWithScore", "KeyTokensQueryBundle", "filters_in_force", "top_k_in_force"]


class KeyTokensNodeWithScore(NodeWithScore):
    """A hit with the scores behind its score. Nothing is written into the node, so its hash stays as it is.

    Retrievers make them. Install it with ``pip install llama-index-retrievers-keytokens``.

    Attributes:
        scores: The scores of the sides that found it, ``"dense"`` and ``"sparse"``.
        matches: With ``explain=True`` the tokens that query and node share, each with its part of the sparse score,
            largest first.

    Raises:
        ValidationError: If a score is no number.

    Example:
        .. code-block:: python

            for hit in retriever.retrieve("planets around other stars"):
                print(hit.score, hit.scores, hit.matches)

    >>> from llama_index.core.schema import TextNode
    >>> node = TextNode(text="Stars shine.")
    >>> KeyTokensNodeWithScore(node=node, score=1.5, scores={"dense": 0.4, "sparse": 7.2}).scores["sparse"]
    7.2
    """

    scores: dict[str, float] = Field(default_factory=dict)
    matches: list[tuple[str, float]] | None = None

    @classmethod
    def class_name(cls) -> str:
        """Name of the class."""
        return "KeyTokensNodeWithScore"


@dataclass
class KeyTokensQueryBundle(QueryBundle):
    """A query with its own filters and number of hits, for a retriever inside a query engine.

    Install it with ``pip install llama-index-retrievers-keytokens``. Values are checked when the query is asked. They
    hold until it is answered, also where something between makes other queries of it, as HyDE, a query transform or
    ``QueryFusionRetriever`` do: LlamaIndex's instrumentation tells which call a retrieval belongs to.

    Attributes:
        filters: Filters that hold for this query beside the retriever's.
        similarity_top_k: Hits of this query; None for the retriever's.

    Example:
        .. code-block:: python

            engine.query(KeyTokensQueryBundle("planets around other stars", filters=filters))

    >>> KeyTokensQueryBundle("planets around other stars", similarity_top_k=3).similarity_top_k
    3
    """

    filters: MetadataFilters | None = None
    similarity_top_k: int | None = None

    def __post_init__(self) -> None:
        watch_spans()


class _BundleSpans(BaseSpanHandler[BaseSpan]):
    """Keeps, for each open span, the bundles among the arguments of the calls that it is in."""

    in_force: dict[str, tuple[KeyTokensQueryBundle, ...]] = Field(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return "KeyTokensBundleSpans"

    def span_enter(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        own = [given for given in (*bound_args.args, *bound_args.kwargs.values())]
        outer = self.in_force.get(parent_id or "", ())
        bundles = [given for given in own if isinstance(given, KeyTokensQueryBundle) and given not in outer]
        if outer or bundles:
            self.in_force[id_] = (*outer, *bundles)

    def span_exit(self, id_: str, *arguments: Any, **kwargs: Any) -> None:
        self.in_force.pop(id_, None)

    def span_drop(self, id_: str, *arguments: Any, **kwargs: Any) -> None:
        self.in_force.pop(id_, None)

    def new_span(self, *arguments: Any, **kwargs: Any) -> None:
        return None

    def prepare_to_exit_span(self, *arguments: Any, **kwargs: Any) -> None:
        return None

    def prepare_to_drop_span(self, *arguments: Any, **kwargs: Any) -> None:
        return None


_SPANS = _BundleSpans()


def watch_spans() -> None:
    """Has LlamaIndex's instrumentation tell of the calls that carry a bundle; once is enough."""
    if not any(handler is _SPANS for handler in root_dispatcher.span_handlers):
        root_dispatcher.add_span_handler(_SPANS)


def _bundles_in_force(query: QueryBundle | None) -> list[KeyTokensQueryBundle]:
    """The bundles of all calls that are going on around this one, the outermost first, and a query if it is one."""
    outer = _SPANS.in_force.get(active_span_id.get() or "", ())
    own = [query] if isinstance(query, KeyTokensQueryBundle) and not any(query is one for one in outer) else []
    return [*outer, *own]


def filters_in_force(query: QueryBundle | None) -> MetadataFilters | None:
    """The filters that hold for a query: its own, and those of the queries that it was made of."""
    parts: list[MetadataFilters | None] = []
    for bundle in _bundles_in_force(query):
        if bundle.filters not in parts:
            parts.append(bundle.filters)
    return joined_filters(*parts)


def top_k_in_force(query: QueryBundle | None) -> int | None:
    """The number of hits that a query, or the innermost of those that it was made of, asks for."""
    asked = [bundle.similarity_top_k for bundle in _bundles_in_force(query) if bundle.similarity_top_k is not None]
    return asked[-1] if asked else None
