"""Rows of PostgreSQL in text, as COPY takes them, and vectors in pgvector's notation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from st_keytokens.engines.fused_search import Side
from st_keytokens.engines.records import Records
from st_keytokens.index.documents import Hit
from st_keytokens.sparse_embeddings import HybridEmbeddings

__all__ = ["copied_rows", "fused_hit", "vector_texts"]


def copied_rows(records: Records) -> Iterator[tuple[str | None, ...]]:
    """Rows for COPY, in text: id, sparse, dense, text, metadata.

    Raises:
        ValueError: If a text has a NUL, which PostgreSQL cannot keep.
    """
    hybrid = records.hybrid
    sparse = vector_texts(hybrid, "sparse")
    dense = [None] * len(records) if hybrid.dense is None else vector_texts(hybrid, "dense")
    for row, id in enumerate(records.ids):
        text = records.text(row)
        if text is not None and "\0" in text:
            raise ValueError(f"texts must not contain NUL, which PostgreSQL cannot keep, got one in {id!r:.60}.")
        yield id, sparse[row], dense[row], text, json.dumps(records.metadata_of(row), ensure_ascii=False)


def vector_texts(embeddings: HybridEmbeddings, side: Side) -> list[str]:
    """Vectors in pgvector's notation, in which the indices of a sparsevec count from 1.

    >>> from st_keytokens.sparse_embeddings import SparseEmbeddings
    >>> sparse = SparseEmbeddings.from_dicts([{0: 0.5, 8: 2.0}, {}], vocab_size=9)
    >>> vector_texts(HybridEmbeddings(None, sparse), "sparse")
    ['{1:0.5,9:2.0}/9', '{}/9']
    """
    if side == "sparse":
        vocab_size = embeddings.sparse.vocab_size
        rows = (zip((indices + 1).tolist(), values.tolist(), strict=True) for indices, values in embeddings.sparse)
        return [f"{{{','.join(f'{index}:{value!r}' for index, value in row)}}}/{vocab_size}" for row in rows]
    return [json.dumps(row) for row in np.asarray(embeddings.dense, np.float32).tolist()]


def fused_hit(
    rank: int,
    id: str,
    text: str | None,
    metadata: dict[str, Any],
    fused: float,
    dense: float | None,
    sparse: float | None,
) -> Hit:
    """A hit; its score of a side is None where that side did not find it."""
    scores = {"dense": dense, "sparse": sparse}
    return Hit(id, fused, rank, text, metadata, {side: score for side, score in scores.items() if score is not None})
