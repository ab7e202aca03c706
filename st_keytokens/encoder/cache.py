"""A bounded, locked cache of embeddings, so that dense and sparse adapters of one encoder share a forward pass."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

Row = tuple[np.ndarray, np.ndarray, np.ndarray]  # dense (d,), term ids (k,), weights (k,)


class EmbeddingCache:
    """The most recently used rows, by key; the least recently used one goes first.

    Args:
        size: Rows kept at most; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"cache_size must not be negative, got {size}. Use 0 for no cache.")
        self.size = size
        self._rows: OrderedDict[Hashable, Row] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys: Iterable[Hashable]) -> dict[Hashable, Row]:
        """The rows that are there, by key."""
        with self._lock:
            found = {key: self._rows[key] for key in keys if key in self._rows}
            for key in found:
                self._rows.move_to_end(key)
        return found

    def put(self, rows: dict[Hashable, Row]) -> None:
        """Adds rows, and drops the oldest ones above ``size``."""
        with self._lock:
            for key, row in rows.items():
                self._rows[key] = row
                self._rows.move_to_end(key)
            while len(self._rows) > self.size:
                self._rows.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._rows.clear()

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size}  # rows are cheap to make again, and a lock cannot travel

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["size"])  # type: ignore[misc]


def split_rows(embeddings: HybridEmbeddings) -> list[Row]:
    """Copies of the rows, each of which can be kept alone; ``embeddings`` have dense vectors."""
    dense: Iterable[np.ndarray] = () if embeddings.dense is None else embeddings.dense
    rows = zip(dense, embeddings.sparse, strict=True)
    return [(vector.copy(), ids.copy(), weights.copy()) for vector, (ids, weights) in rows]


def join_rows(rows: Sequence[Row], embedding_dimension: int, vocab_size: int) -> HybridEmbeddings:
    """The inverse of :func:`split_rows`, for any number of rows."""
    vectors, ids, weights = zip(*rows, strict=True) if rows else ((), (), ())
    sparse = SparseEmbeddings.trusted(
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
        np.concatenate([np.zeros(0, np.int32), *ids]),
        np.concatenate([np.zeros(0, np.float32), *weights]),
        vocab_size,
    )
    dense = np.stack(vectors) if vectors else np.zeros((0, embedding_dimension), np.float32)
    return HybridEmbeddings(dense=dense, sparse=sparse)
