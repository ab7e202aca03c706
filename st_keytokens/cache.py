"""A bounded, locked cache of embeddings, so that dense and sparse adapters of one encoder share a forward pass."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

Row = tuple["np.ndarray | None", np.ndarray, np.ndarray]  # dense (d,) or None, term ids (k,), weights (k,)


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
