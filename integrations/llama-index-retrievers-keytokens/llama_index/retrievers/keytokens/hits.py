"""What comes back: nodes with all their scores, and queries with settings of their own."""

from __future__ import annotations

from dataclasses import dataclass

from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

__all__ = ["KeyTokensNodeWithScore", "KeyTokensQueryBundle"]


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

    Install it with ``pip install llama-index-retrievers-keytokens``. Values are checked when the query is asked.

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
