"""The documents of an index in SQLite: id, text and metadata by key. Everything works inside a transaction."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from st_keytokens.index.known_documents import KnownDocuments, PackedFields

__all__ = ["Document", "DocumentTable", "Hit", "MatchedTerm", "checked_strings", "packed_metadata"]


_MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document.

    Attributes:
        id: Its id.
        text: Its text, or None where none was given.
        metadata: Its metadata, empty where none was given.
    """

    id: str
    text: str | None
    metadata: dict[str, Any]


@dataclass(slots=True)  # freezing would triple the time that it takes to make one
class Hit:
    """A found document.

    Attributes:
        id: Its id.
        score: What the ranking is by: the sparse or dense score, or the fused one.
        rank: Its rank, from 1.
        text: Its text, or None where none was given.
        metadata: Its metadata, empty where none was given.
        scores: The scores behind it: ``"sparse"``, ``"dense"`` or, in a hybrid search, of the sides that found it.
        is_hybrid: Whether both sides were searched.
    """

    id: str
    score: float
    rank: int
    text: str | None
    metadata: dict[str, Any]
    scores: dict[str, float]
    is_hybrid: bool = False


@dataclass(frozen=True, slots=True)
class MatchedTerm:
    """A term that a query and a document share.

    Attributes:
        term_id: Its token id.
        token: The token, readable, or None where the index has no encoder.
        query_weight: Its weight in the query.
        document_weight: Its weight in the document.
        contribution: Their product. The contributions sum to the sparse score.
    """

    term_id: int
    token: str | None
    query_weight: float
    document_weight: float
    contribution: float


def checked_strings(name: str, values: Collection[str], length: int | None = None) -> list[str]:
    """A list of strings; where a length is given, an ordered one of that length.

    Raises:
        TypeError: If it is a single string, no collection, or holds something else.
        ValueError: If the length differs.
    """
    is_unordered = isinstance(values, (Set, Mapping)) and length is not None
    if isinstance(values, (str, bytes)) or not isinstance(values, Collection) or is_unordered:
        raise TypeError(f"{name} must be a list of strings, got {type(values).__name__} {values!r:.60}.")
    strings = list(values)
    for value in strings:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be strings, got {type(value).__name__} {value!r:.60}.")
    if length is not None and len(strings) != length:
        raise ValueError(f"{name} must be as many as there are documents, {length}, got {len(strings)}.")
    return strings


def packed_metadata(metadata: Sequence[Mapping[str, Any] | None], length: int) -> list[str | None]:
    """Metadata as JSON texts, None for none, all checked.

    Raises:
        TypeError: If one is no mapping, or holds what JSON does not.
        ValueError: If the length differs, a number is not finite, a string is no valid Unicode or holds NUL, or one is
            nested more than 100 deep.
    """
    if isinstance(metadata, (str, bytes, Mapping)) or not isinstance(metadata, Sequence):
        raise TypeError(f"metadata must be a list with one dictionary per document, got {type(metadata).__name__}.")
    if len(metadata) != length:
        raise ValueError(f"metadata must be as many as there are documents, {length}, got {len(metadata)}.")
    packed: list[str | None] = []
    for position, entry in enumerate(metadata):
        if entry is not None and not isinstance(entry, Mapping):
            raise TypeError(f"metadata must be dictionaries, got {type(entry).__name__} at position {position}.")
        packed.append(_json(dict(entry), position) if entry else None)
    return packed


def _json(entry: dict[str, Any], position: int) -> str:
    """JSON that reads back as it was written, and that SQLite reads alike."""
    where = f"(position {position})"
    _check_json(entry, 0, where)
    try:
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError as err:
        raise ValueError(f"metadata must be valid Unicode, got {err.object[err.start]!r} {where}.") from err
    except TypeError as err:
        raise TypeError(f"metadata must be a JSON object: {err} {where}.") from err
    except ValueError as err:
        raise ValueError(f"metadata must be a JSON object: {err} {where}.") from err
    if json.loads(text) != entry:
        raise TypeError(
            f"metadata must be a JSON object that reads back unchanged, got {entry!r:.80} {where}. "
            "Use strings as keys, and lists instead of tuples."
        )
    return text


def _check_json(value: Any, depth: int, where: str) -> None:
    """Refuse what SQLite does not read: NUL, and deep nesting."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"metadata must be nested at most {_MAX_DEPTH} deep {where}.")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"metadata must not contain NUL characters {where}.")
    if isinstance(value, (Mapping, list, tuple)):
        for part in value:
            _check_json(part, depth + 1, where)
        for part in value.values() if isinstance(value, Mapping) else ():
            _check_json(part, depth + 1, where)


Fields = tuple[str, str | None, dict[str, Any]]

_SELECT = "SELECT d.key, id, text, metadata FROM documents d LEFT JOIN texts t ON t.key = d.key"
_CHUNK = 500  # parameters of one statement


class DocumentTable:
    """The tables of documents, and what was read of them."""

    SCHEMA = (
        "CREATE TABLE documents (key INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, metadata TEXT)",
        "CREATE TABLE texts (key INTEGER PRIMARY KEY, text BLOB NOT NULL)",  # apart: a filter need not read them
    )
    CHECKSUMS = "CREATE TABLE checksums (key INTEGER PRIMARY KEY, checksum BLOB NOT NULL)"

    def __init__(self) -> None:
        self._known = KnownDocuments()

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

    def ids(self, connection: sqlite3.Connection) -> list[str]:
        """All ids, in order of insertion."""
        return [_unpacked(name) for (name,) in connection.execute("SELECT id FROM documents ORDER BY key")]

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
        return [
            (name, text, {} if metadata is None else json.loads(metadata))
            for name, text, metadata in self._packed(connection, keys)
        ]

    def hits(self, connection: sqlite3.Connection, keys: Sequence[int], scores: Sequence[float], by: str) -> list[Hit]:
        """Found documents by key, best first, with their scores and what these are by.

        Raises:
            ValueError: If one is not there.
        """
        known: Any = self._known.fields
        try:  # one document after the other, each from end to end
            return _hits(map(known.__getitem__, keys), scores, by)
        except (LookupError, TypeError):  # the latter of None, which is no document
            return _hits(self._packed(connection, keys), scores, by)

    def _packed(self, connection: sqlite3.Connection, keys: Sequence[int]) -> list[PackedFields]:
        """What is kept of documents, in the order of their keys; those that are not known are read."""
        found = self._known.among(keys)
        if len(found) < len(keys):
            unknown = [key for key in keys if key not in found]
            if self._known.is_due(len(unknown)) and self._fits(connection):
                self._known.begin(is_whole=True)
                found = self._rows(connection, _SELECT)
            else:
                for start in range(0, len(unknown), _CHUNK):
                    chunk = unknown[start : start + _CHUNK]
                    found |= self._rows(connection, f"{_SELECT} WHERE d.key IN ({','.join('?' * len(chunk))})", chunk)
        try:
            return [found[key] for key in keys]
        except KeyError as err:
            raise ValueError(f"the index is damaged: its document {err} is missing. Restore it from a copy.") from err

    def _fits(self, connection: sqlite3.Connection) -> bool:
        """Whether all documents may be known."""
        ((next_key,),) = connection.execute("SELECT next_key FROM state")
        ((num_pages,),), ((size,),) = connection.execute("PRAGMA page_count"), connection.execute("PRAGMA page_size")
        return self._known.fits(next_key, num_pages * size)

    def _rows(
        self, connection: sqlite3.Connection, statement: str, keys: Sequence[int] = ()
    ) -> dict[int, PackedFields]:
        """The rows of a statement by key, which are known from then on."""
        read: dict[int, PackedFields] = {}
        for key, packed_name, packed_text, metadata in connection.execute(statement, keys):
            try:
                name = packed_name.decode("utf-8", "surrogatepass")
                text = None if packed_text is None else packed_text.decode("utf-8", "surrogatepass")
            except (AttributeError, UnicodeDecodeError) as err:
                raise ValueError(f"the index is damaged: its document {key} cannot be read.") from err
            read[key] = name, text, metadata
        self._known.add(read)
        return read

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
        """Insert documents under consecutive keys, and their checksums."""
        rows = [(first_key + i, _packed(name), metadata[i]) for i, name in enumerate(ids)]
        connection.executemany("INSERT INTO documents VALUES (?, ?, ?)", rows)
        pairs = [] if texts is None else [(first_key + i, _packed(text)) for i, text in enumerate(texts)]
        connection.executemany("INSERT INTO texts VALUES (?, ?)", pairs)
        packed = [None] * len(rows) if texts is None else [text for _, text in pairs]
        sums = ((row[0], _checksum(*row, text)) for row, text in zip(rows, packed, strict=True))
        connection.executemany("INSERT INTO checksums VALUES (?, ?)", sums)
        connection.execute("UPDATE state SET next_key = ?", (first_key + len(ids),))

    def delete(self, connection: sqlite3.Connection, keys: Iterable[int]) -> None:
        """Delete documents; keys that are not there are passed over."""
        singles = [(key,) for key in keys]
        connection.executemany("DELETE FROM documents WHERE key = ?", singles)
        connection.executemany("DELETE FROM texts WHERE key = ?", singles)
        connection.executemany("DELETE FROM checksums WHERE key = ?", singles)

    def altered(self, connection: sqlite3.Connection, first_key: int) -> int | None:
        """The first key from some on whose document does not have its checksum; None where there is none."""
        statement = (
            "SELECT d.key, id, metadata, text, checksum FROM documents d LEFT JOIN texts t ON t.key = d.key "
            "LEFT JOIN checksums c ON c.key = d.key WHERE d.key >= ? ORDER BY d.key"
        )
        for key, name, metadata, text, checksum in connection.execute(statement, (first_key,)):
            if _checksum(key, name, metadata, text) != checksum:
                return int(key)
        return None


def _hits(packed: Iterable[PackedFields], scores: Sequence[float], by: str) -> list[Hit]:
    return [
        # metadata anew, as the caller may alter them
        Hit(name, score, rank, text, {} if metadata is None else json.loads(metadata), {by: score})
        for rank, ((name, text, metadata), score) in enumerate(zip(packed, scores, strict=True), 1)
    ]


def _checksum(key: int, name: object, metadata: object, text: object) -> bytes:
    """A checksum of a document as SQLite gives it: types and values."""
    digest = hashlib.blake2b(repr((key, name, metadata)).encode("utf-8", "surrogatepass"), digest_size=16)
    digest.update(text if isinstance(text, bytes) else repr(text).encode("utf-8", "surrogatepass"))
    return digest.digest()


def _packed(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unpacked(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
