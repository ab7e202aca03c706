"""Documents as OpenSearch and Elasticsearch keep them, and hits as they give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from st_keytokens.engines.records import Records
from st_keytokens.engines.search_server_filters import filter_fields
from st_keytokens.index.dense import Similarity, checked_dense
from st_keytokens.index.documents import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["STORED_FIELDS", "as_hit", "dense_score", "dense_vectors", "document_source"]

STORED_FIELDS = ["id", "text", "metadata"]


def document_source(
    records: Records, row: int, weights: Mapping[str, float], dense: NDArray[np.float32] | None
) -> dict[str, Any]:
    """A document, without the fields that it has nothing for.

    Args:
        records: Where it is.
        row: Its row.
        weights: Its weights by term.
        dense: All dense vectors, in the form that :func:`dense_vectors` gives them.
    """
    metadata = records.metadata_of(row)
    source: dict[str, Any] = {"id": records.ids[row], "sparse": weights}
    if dense is not None:
        source["dense"] = dense[row].tolist()
    if (text := records.text(row)) is not None:
        source["text"] = text
    if metadata:
        source |= {"metadata": metadata, **filter_fields(metadata)}
    return source


def dense_vectors(dense: NDArray[Any], similarity: Similarity) -> NDArray[np.float32]:
    """Vectors whose inner product is the similarity: of unit length for cosine, zeros where there are only zeros.

    The servers' own cosine refuses zeros.
    """
    checked = checked_dense("embeddings", dense, "float32")
    rows = checked.rows / checked.norms[:, None] if similarity == "cosine" else checked.rows
    return np.asarray(rows, np.float32)


def dense_score(score: float) -> float:
    """An inner product from a server's score of it, which is ``p + 1`` where ``p >= 0`` and ``1 / (1 - p)`` below.

    >>> dense_score(1.5), dense_score(0.5)
    (0.5, -1.0)
    """
    return score - 1 if score >= 1 else 1 - 1 / score


def as_hit(found: Mapping[str, Any], rank: int, side: str, score: float) -> Hit:
    """A hit from one in a server's answer."""
    source = found["_source"]
    return Hit(source["id"], score, rank, source.get("text"), source.get("metadata") or {}, {side: score})
