"""Columns of metadata that no segment keeps, such as those of keys within dictionaries: made once, in memory."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from st_keytokens.index.columns import Column, Typed, joined_columns, value_bytes

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from st_keytokens.index.snapshot import Snapshot

__all__ = ["MetadataColumns"]

_READ = 1 << 14  # rows at once
_ROW_BYTES = 12  # of a column for each row: a code, and the document's key

# A generation, the key of each of its rows, a column, and its bytes.
Held: TypeAlias = "tuple[int, NDArray[np.int64], Column, int]"


class MetadataColumns:
    """Columns of an index by the path of their place, brought up to date when asked for after a change.

    A key is never given to another document and metadata never change, so after a change only the new documents are
    read. Threads need no lock: what one of two has found is found again by the other.

    Args:
        most_bytes: How much is kept. A place whose column does not fit has none.
    """

    def __init__(self, *, most_bytes: int = 1 << 28) -> None:
        self._most_bytes = most_bytes
        self._keys: tuple[int, NDArray[np.int64]] = -1, np.empty(0, np.int64)
        self._held: dict[str, Held] = {}
        self._too_large: set[str] = set()

    def column(self, connection: sqlite3.Connection, snapshot: Snapshot, path: str) -> Column | None:
        """The column of a place, with a row for each of a snapshot; what deleted ones have there is not said.

        Args:
            connection: A connection in the snapshot's transaction.
            snapshot: The snapshot.
            path: The place, as SQLite writes it.

        Returns:
            The column, or None where it is too large, or a newer one is there for other threads.
        """
        held = self._held.get(path)
        if path in self._too_large or (held is not None and held[0] > snapshot.generation):
            return None
        if held is not None and held[0] == snapshot.generation:
            return held[2]
        keys = self._keys_of(snapshot)
        entry = None if held is None else self._renewed(connection, keys, path, held)
        if entry is None:  # also where it is too large by values that no document has any more
            entry = self._renewed(connection, keys, path, (0, keys[:0], Column.empty(), 0))
        if entry is None:
            self._held = {name: its for name, its in list(self._held.items()) if name != path}
            self._too_large.add(path)
            return None
        self._keep(path, (snapshot.generation, keys, *entry))
        return entry[0]

    def _renewed(
        self, connection: sqlite3.Connection, keys: NDArray[np.int64], path: str, held: Held
    ) -> tuple[Column, int] | None:
        """A held column for the rows of these keys, and its bytes; None where it is too large or of other rows."""
        _, old, column, _ = held
        kept = _kept(old, keys)
        if kept is None:
            return None
        if kept is not old:
            column = column.taken(kept)
        if len(fresh := keys[len(kept) :]):
            added = self._read(connection, fresh, path, self._most_bytes - _ROW_BYTES * len(keys))
            if added is None:
                return None
            column = joined_columns([column, Column.of(connection, *added)])
        num_bytes = column.num_bytes + (_ROW_BYTES - column.codes.itemsize) * len(keys)
        return None if num_bytes > self._most_bytes else (column, num_bytes)

    def _keep(self, path: str, entry: Held) -> None:
        """Keep a column, and let those go that were made longest ago where there is no room."""
        held = {name: its for name, its in list(self._held.items()) if name != path}
        while held and sum(its[3] for its in held.values()) + entry[3] > self._most_bytes:
            del held[next(iter(held))]
        self._held = {**held, path: entry}

    def _keys_of(self, snapshot: Snapshot) -> NDArray[np.int64]:
        generation, keys = self._keys
        if generation != snapshot.generation:
            keys = np.concatenate([np.empty(0, np.int64), *(segment.keys for segment in snapshot.segments)])
            self._keys = snapshot.generation, keys
        return keys

    def _read(
        self, connection: sqlite3.Connection, keys: NDArray[np.int64], path: str, most_bytes: int
    ) -> tuple[NDArray[np.int32], list[Typed]] | None:
        """Of each document its place among the distinct types and values, and these; None if they are too many."""
        places: defaultdict[Typed, int] = defaultdict()
        places.default_factory = places.__len__
        codes = np.full(len(keys), places[None, None], np.int32)
        left = most_bytes
        for chunk in _chunks(connection, path, int(keys[0])):
            found, types, values = zip(*chunk, strict=True)
            before = len(places)
            numbers = np.fromiter(map(places.__getitem__, zip(types, values, strict=True)), np.int32, len(chunk))
            rows = np.searchsorted(keys, np.array(found, np.int64))
            rows[rows == len(keys)] = 0
            is_here = keys[rows] == found
            codes[rows[is_here]] = numbers[is_here]
            left -= sum(value_bytes(value) for _, value in islice(reversed(places), len(places) - before))
            if left < 0:
                return None
        return codes, list(places)


def _chunks(connection: sqlite3.Connection, path: str, first: int) -> Iterator[list[Any]]:
    """Key, type and value of the documents from a key on, a dictionary without its content."""
    sql = (
        "SELECT key, json_type(metadata, ?1), "
        "CASE json_type(metadata, ?1) WHEN 'object' THEN NULL ELSE json_extract(metadata, ?1) END "
        "FROM documents WHERE key >= ?2 ORDER BY key"
    )
    cursor = connection.execute(sql, (path, first))
    while chunk := cursor.fetchmany(_READ):
        yield chunk


def _kept(old: NDArray[np.int64], new: NDArray[np.int64]) -> Any:
    """Old rows that go on, in their order: all as ``old`` itself, or places in it; None where some are unknown."""
    if not len(old):
        return old
    known = new[: int(np.searchsorted(new, old[-1], side="right"))]
    if len(known) == len(old) and np.array_equal(known, old):
        return old
    places = np.searchsorted(old, known)
    return places if np.array_equal(old[places], known) else None
