"""The documents of an index in SQLite: id, text and metadata by key. Everything works inside a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

__all__ = ["DocumentTable"]

Fields = tuple[str, str | None, dict[str, Any]]
PackedFields = tuple[str, str | None, str | None]

_SELECT = "SELECT d.key, id, text, metadata FROM documents d LEFT JOIN texts t ON t.key = d.key"
_CHUNK = 500  # parameters of one statement
_MAX_KNOWN_CHARACTERS = 1 << 22
_FIELDS_OVERHEAD = 200  # of a known document, in characters


class DocumentTable:
    """The documents, and the last ones read: SQLite takes longer for ten than a search of some ten thousand rows.

    A key is never given to another document, so what was read stays true.
    """

    SCHEMA = (
        "CREATE TABLE documents (key INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, metadata TEXT)",
        "CREATE TABLE texts (key INTEGER PRIMARY KEY, text BLOB NOT NULL)",  # apart: a filter need not read them
    )

    def __init__(self) -> None:
        self._known: dict[int, PackedFields] = {}
        self._num_known_characters = 0

    def keys(self, connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, int]:
        """Keys of those ids that exist."""
        found = {}
        for start in range(0, len(ids), _CHUNK):
            packed = [_packed(name) for name in ids[start : start + _CHUNK]]
            marks = ",".join("?" * len(packed))
            rows = connection.execute(f"SELECT id, key FROM documents WHERE id IN ({marks})", packed)
            found.update({_unpacked(name): key for name, key in rows})
        return found

    def known_keys(self, connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, int]:
        """Keys of ids that all have to exist.

        Raises:
            KeyError: If one does not.
        """
        keys = self.keys(connection, ids)
        if unknown := [name for name in ids if name not in keys]:
            raise KeyError(f"ids must be in the index, got {unknown[0]!r}.")
        return keys

    def free_ids(self, connection: sqlite3.Connection, start: int, count: int) -> list[str]:
        """The next free numbers as ids."""
        found: list[str] = []
        while len(found) < count:
            names = [str(number) for number in range(start, start + count - len(found))]
            start += len(names)
            taken = self.keys(connection, names)
            found += [name for name in names if name not in taken]
        return found

    def get(self, connection: sqlite3.Connection, keys: Sequence[int]) -> list[Fields]:
        """Id, text and metadata of documents, in the order of their keys.

        Raises:
            ValueError: If one is not there.
        """
        known = self._known
        try:
            packed = [known[key] for key in keys]
        except KeyError:
            packed = self._read(connection, keys)
        return [
            (name, text, {} if metadata is None else json.loads(metadata))  # anew, as the caller may alter it
            for name, text, metadata in packed
        ]

    def _read(self, connection: sqlite3.Connection, keys: Sequence[int]) -> list[PackedFields]:
        known = self._known
        found = {key: known[key] for key in keys if key in known}
        unknown = [key for key in keys if key not in found]
        read: dict[int, PackedFields] = {}
        for start in range(0, len(unknown), _CHUNK):
            chunk = unknown[start : start + _CHUNK]
            statement = f"{_SELECT} WHERE d.key IN ({','.join('?' * len(chunk))})"
            for key, name, text, metadata in connection.execute(statement, chunk):
                read[key] = _unpacked(name), None if text is None else _unpacked(text), metadata
        self._remember(read)
        found |= read
        try:
            return [found[key] for key in keys]
        except KeyError as err:
            raise ValueError(f"the index is damaged: its document {err} is missing. Restore it from a copy.") from err

    def _remember(self, read: dict[int, PackedFields]) -> None:
        self._num_known_characters += sum(
            _FIELDS_OVERHEAD + len(name) + len(text or "") + len(metadata or "")
            for name, text, metadata in read.values()
        )
        if self._num_known_characters > _MAX_KNOWN_CHARACTERS:
            self._known, self._num_known_characters = {}, 0
        else:
            self._known.update(read)

    def all(self, connection: sqlite3.Connection) -> Iterator[tuple[int, Fields]]:
        """Key, and id, text and metadata, of every document in order of insertion."""
        for key, name, text, metadata in connection.execute(f"{_SELECT} ORDER BY d.key"):
            string = None if text is None else _unpacked(text)
            yield key, (_unpacked(name), string, {} if metadata is None else json.loads(metadata))

    def insert(
        self,
        connection: sqlite3.Connection,
        first_key: int,
        ids: Sequence[str],
        texts: Sequence[str] | None,
        metadata: Sequence[str | None],
    ) -> None:
        """Insert documents under consecutive keys."""
        rows = ((first_key + i, _packed(name), metadata[i]) for i, name in enumerate(ids))
        connection.executemany("INSERT INTO documents VALUES (?, ?, ?)", rows)
        if texts is not None:
            pairs = ((first_key + i, _packed(text)) for i, text in enumerate(texts))
            connection.executemany("INSERT INTO texts VALUES (?, ?)", pairs)
        connection.execute("UPDATE state SET next_key = ?", (first_key + len(ids),))

    def delete(self, connection: sqlite3.Connection, keys: Iterable[int]) -> None:
        """Delete documents; keys that are not there are passed over."""
        singles = [(key,) for key in keys]
        connection.executemany("DELETE FROM documents WHERE key = ?", singles)
        connection.executemany("DELETE FROM texts WHERE key = ?", singles)


def _packed(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unpacked(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
