"""The rows that the last filters let through: looking for them reads the metadata of every document."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from st_keytokens.index.filters import Filter, filter_sql, filtered_keys, keys_where

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.index.snapshot import Snapshot
    from st_keytokens.index.store import Store

__all__ = ["FilterMasks"]


class FilterMasks:
    """Masks of dictionary filters, a byte for each row, kept until the index changes.

    Threads need no lock: what is lost between two of them is looked for again. Functions are called each time, as they
    may depend on anything.

    Args:
        store: The database of the filtered documents.
        most_bytes: How much is kept; a mask that does not fit takes the place of all others.
    """

    def __init__(self, store: Store, *, most_bytes: int = 1 << 26) -> None:
        self._store, self._most_bytes = store, most_bytes
        self._held: tuple[int, dict[tuple[str, ...], NDArray[np.bool_]]] = 0, {}

    def mask(self, connection: sqlite3.Connection, snapshot: Snapshot, filter: Filter) -> NDArray[np.bool_]:
        """Mask of the rows that a filter lets through, padded, not to be written to.

        Args:
            connection: A connection in a transaction.
            snapshot: The snapshot of that transaction.
            filter: See :func:`st_keytokens.index.filters.filtered_keys`, also for the errors.
        """
        if not isinstance(filter, Mapping):
            return snapshot.mask(filtered_keys(self._store, connection, filter))
        condition, parameters = filter_sql(filter)
        key = condition, *parameters
        generation, masks = self._held
        if generation != snapshot.generation:
            masks = {}
            self._held = snapshot.generation, masks
        mask = masks.get(key)
        if mask is None:
            mask = snapshot.mask(keys_where(connection, condition, parameters))
            mask.setflags(write=False)
            if (len(masks) + 1) * len(mask) > self._most_bytes:
                masks.clear()
            masks[key] = mask
        return mask
