"""Columns of metadata: what a filter compares.

SQLite reads the JSON of every document for every filter, a quarter of a second for a million. A column holds a number
for each row instead: the rank of its value among the distinct ones, by type. So a comparison is two binary searches
among the distinct values and one pass over the numbers. Values are those that SQLite reads, and those of a filter are
read by it too, so that both are rounded alike.

Segments keep those of the keys at the top level, see ``segment_columns``. Those of keys within dictionaries are made
in memory, once for each place in the metadata.
"""

from __future__ import annotations

import json
import re
import sys
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import sqlite3

    from numpy.typing import NDArray

    from st_keytokens.index.snapshot import Snapshot

__all__ = ["Column", "MetadataColumns", "Strings", "joined_columns", "read_numbers"]

Typed = tuple[str | None, Any]  # a type as SQLite calls it, None for what is missing, and a value

_MISSING, _NULL, _FALSE, _TRUE, _DICTIONARY, _FIRST = range(6)
_SINGLE = {None: _MISSING, "null": _NULL, "false": _FALSE, "true": _TRUE, "object": _DICTIONARY}
_NUMBERS, _STRINGS, _LISTS = range(3)
_KINDS_IN_ORDER = range(3)
_KINDS = {"integer": _NUMBERS, "real": _NUMBERS, "text": _STRINGS, "array": _LISTS}
_READ, _LISTS_READ = 1 << 14, 1 << 10  # rows and lists that are read at once
_ROW_BYTES = 12  # of a column for each row: a code, and the document's key


class Strings(Sequence[str]):
    """Strings one after the other in UTF-8, in which they ascend as their code points do, with NUL behind each.

    Args:
        ends: Where each ends, int64.
        text: The bytes.

    Raises:
        ValueError: If they do not end one after the other.
    """

    def __init__(self, ends: NDArray[np.int64], text: NDArray[np.uint8]) -> None:
        if len(ends) and (ends[0] < 0 or (ends[1:] <= ends[:-1]).any() or ends[-1] > len(text)):
            raise ValueError("strings must end one after the other")
        self.ends, self.text = ends, text

    @classmethod
    def of(cls, strings: Sequence[str]) -> Strings:
        """Those of a list."""
        if isinstance(strings, cls):
            return strings
        encoded = [string.encode() + b"\0" for string in strings]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded))) - 1
        return cls(ends, np.frombuffer(b"".join(encoded), np.uint8))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: Any) -> Any:
        if place >= len(self.ends):
            raise IndexError(place)
        start = self.ends[place - 1] + 1 if place else 0
        return self.text[start : self.ends[place]].tobytes().decode(errors="replace")

    def __iter__(self) -> Iterator[str]:
        text = self.text.tobytes()
        return (text[start + 1 : end].decode(errors="replace") for start, end in pairwise([-1, *self.ends.tolist()]))

    def with_part(self, parts: Sequence[str]) -> NDArray[np.int64]:
        """The places of those in which one of some strings stands; a place may be there more than once."""
        if "" in parts:
            return np.arange(len(self))
        wanted = b"|".join(re.escape(part.encode()) for part in parts if "\0" not in part)
        hits = (hit.start() for hit in re.finditer(wanted, self.text.data)) if wanted else ()
        places = np.searchsorted(self.ends, np.fromiter(hits, np.int64))
        return places[places < len(self)]  # else the file was altered


@dataclass(frozen=True, eq=False)
class Column:
    """The values of some rows at one place in the metadata. Never altered, so threads may share it.

    Attributes:
        codes: A number for each row, of any integer type: what is missing, null, false, true, a dictionary, and then
            each distinct number, string and list, ascending.
        values: The distinct numbers, strings (by code point) and lists (as JSON), each ascending; numbers may be an
            array, and the others :class:`Strings`.
        owners: For each element of the distinct lists, the list's place among these, int32.
        elements: The values of these elements; None where there are no lists.
    """

    codes: NDArray[np.int32]
    values: tuple[list[Any], list[Any], list[Any]]
    owners: NDArray[np.int32]
    elements: Column | None

    @classmethod
    def empty(cls) -> Column:
        """A column of no rows."""
        return cls(np.empty(0, np.int32), ([], [], []), np.empty(0, np.int32), None)

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes, without the keys of its rows."""
        held = sum(_size(value) for values in self.values for value in values)
        held += sum(map(len, self.values[_STRINGS]))  # once more where parts of them are looked for
        inner = 0 if self.elements is None else self.elements.num_bytes
        return held + self.codes.nbytes + self.owners.nbytes + inner

    def _starts(self) -> list[int]:
        """The code of the first number, of the first string and of the first list, and the one after the last."""
        return np.cumsum([_FIRST, *map(len, self.values)]).tolist()  # type: ignore[no-any-return]

    @classmethod
    def of(cls, connection: sqlite3.Connection, places: NDArray[np.int32], found: Sequence[Typed]) -> Column:
        """A column of rows that are given as places among some distinct types and values.

        Args:
            connection: Reads lists.
            places: A place in ``found`` for each row.
            found: Types and values.
        """
        typed = [(_KINDS.get(name or ""), value) for name, value in found]
        numbers, strings, lists = (sorted({value for kind, value in typed if kind == its}) for its in _KINDS_IN_ORDER)
        column = cls(np.empty(0, np.int32), (numbers, strings, lists), np.empty(0, np.int32), None)
        ranks = column._ranks()
        codes = [_SINGLE[name] if name in _SINGLE else ranks[_KINDS[str(name)]][value] for name, value in found]
        column = replace(column, codes=np.array(codes, np.int32)[places])
        if not lists:
            return column
        owners, element_codes, found_elements = _elements(connection, lists)
        return replace(column, owners=owners, elements=cls.of(connection, element_codes, found_elements))

    def _ranks(self) -> list[dict[Any, int]]:
        """The code of each value, by kind."""
        starts = self._starts()
        return [
            dict(zip(values, range(starts[kind], starts[kind + 1]), strict=True))
            for kind, values in enumerate(self.values)
        ]

    @property
    def num_codes(self) -> int:
        """One more than the largest code that there may be."""
        return self._starts()[-1]

    def taken(self, rows: NDArray[np.int64]) -> Column:
        """Some of the rows, in their order."""
        return Column(self.codes[rows], self.values, self.owners, self.elements)

    # What follows gives masks of rows.

    def exists(self) -> NDArray[np.bool_]:
        """Where there is a value."""
        found: NDArray[np.bool_] = self.codes != _MISSING
        return found

    def is_dictionary(self) -> NDArray[np.bool_]:
        """Where there is a dictionary."""
        found: NDArray[np.bool_] = self.codes == _DICTIONARY
        return found

    def is_among(self, plain: Iterable[bool | None], numbers: Iterable[Any], strings: Iterable[str]) -> Any:
        """Where a value is one of some: null, false and true, numbers, or strings."""
        starts = self._starts()
        codes = [{None: _NULL, False: _FALSE, True: _TRUE}[value] for value in plain]
        for kind, wanted in ((_NUMBERS, numbers), (_STRINGS, strings)):
            held = self.values[kind]
            codes += [starts[kind] + bisect_left(held, value, key=_plain) for value in wanted if _has(held, value)]
        if len(codes) < 2:
            return self.codes == codes[0] if codes else np.zeros(len(self.codes), np.bool_)
        return self._of_codes(codes)

    def compares(self, operator: str, bound: Any) -> NDArray[np.bool_]:
        """Where a number, or a string if the bound is one, is ``$gt``, ``$gte``, ``$lt`` or ``$lte`` a bound."""
        kind = _STRINGS if isinstance(bound, str) else _NUMBERS
        held, starts = self.values[kind], self._starts()
        edge = (bisect_right if operator in ("$gt", "$lte") else bisect_left)(held, bound, key=_plain)
        first, stop = (edge, len(held)) if operator in ("$gt", "$gte") else (0, edge)
        found: NDArray[np.bool_] = (self.codes >= starts[kind] + first) & (self.codes < starts[kind] + stop)
        return found

    def has_part(self, parts: Sequence[str]) -> Any:
        """Where one of some strings stands in a string."""
        return self._of_codes(self._starts()[_STRINGS] + self._strings.with_part(parts))

    @cached_property
    def _strings(self) -> Strings:
        return Strings.of(self.values[_STRINGS])

    def has_element(self, plain: Iterable[bool | None], numbers: Iterable[Any], strings: Iterable[str]) -> Any:
        """Where a list has an element that :meth:`is_among` some values."""
        if self.elements is None:
            return np.zeros(len(self.codes), np.bool_)
        found = np.unique(self.owners[self.elements.is_among(plain, numbers, strings)])
        return self._of_codes(self._starts()[_LISTS] + found)

    def _of_codes(self, codes: Any) -> Any:
        is_wanted = np.zeros(self.num_codes, np.bool_)
        is_wanted[np.asarray(codes, np.int64)] = True
        return is_wanted[self.codes]


def joined_columns(columns: Sequence[Column]) -> Column:
    """The rows of columns under one another, with the values that they have."""
    used = [[_used(column, kind) for kind in _KINDS_IN_ORDER] for column in columns]
    numbers, strings, lists = (sorted({value for its in used for value in its[kind]}) for kind in _KINDS_IN_ORDER)
    joined = Column(np.empty(0, np.int32), (numbers, strings, lists), np.empty(0, np.int32), None)
    ranks, codes = joined._ranks(), [joined.codes]
    for column, its in zip(columns, used, strict=True):
        starts = column._starts()
        moved = np.arange(starts[-1], dtype=np.int32)
        for kind, places in enumerate(its):
            new = [ranks[kind][value] for value in places]
            moved[np.fromiter(places.values(), np.int64, len(places)) + starts[kind]] = new
        codes.append(moved[column.codes])
    joined = replace(joined, codes=np.concatenate(codes))
    return _with_elements(joined, columns, [its[_LISTS] for its in used]) if lists else joined


def _with_elements(joined: Column, columns: Sequence[Column], used: Sequence[dict[str, int]]) -> Column:
    """With the elements of its lists, each list's from the first column that has it."""
    left = {text: rank for rank, text in enumerate(joined.values[_LISTS])}
    owners, elements = [joined.owners], []
    for column, its in zip(columns, used, strict=True):
        ranks = np.full(len(column.values[_LISTS]), -1, np.int32)
        for text in its.keys() & left.keys():
            ranks[its[text]] = left.pop(text)
        rows = np.flatnonzero(ranks[column.owners] >= 0)
        if column.elements is not None and len(rows):
            owners.append(ranks[column.owners[rows]])
            elements.append(column.elements.taken(rows))
    return replace(joined, owners=np.concatenate(owners), elements=joined_columns(elements))


def _used(column: Column, kind: int) -> dict[Any, int]:
    """The places of the values of a kind that some row has."""
    start, stop = column._starts()[kind : kind + 2]
    counts = np.bincount(column.codes, minlength=stop)[start:stop]
    values: Any = column.values[kind]
    values = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return {values[place]: place for place in np.flatnonzero(counts).tolist()}


def _size(value: object) -> int:
    return sys.getsizeof(value) + 8  # and a place in a list


def _plain(value: Any) -> Any:
    """Of numpy's numbers Python's, which compare with others exactly."""
    return value.item() if isinstance(value, np.generic) else value


def _has(values: Sequence[Any], value: Any) -> bool:
    place = bisect_left(values, value, key=_plain)
    return place < len(values) and bool(_plain(values[place]) == value)


def _elements(
    connection: sqlite3.Connection, lists: Sequence[str]
) -> tuple[NDArray[np.int32], NDArray[np.int32], list[Typed]]:
    """The elements of lists: whose each is, its place among the distinct types and values, and these."""
    places: defaultdict[Typed, int] = defaultdict()
    places.default_factory = places.__len__
    owners, codes = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    sql = (
        "SELECT list.key, CASE element.type WHEN 'array' THEN 'object' ELSE element.type END, element.atom "
        "FROM json_each(?) list, json_each(list.value) element"
    )
    for start in range(0, len(lists), _LISTS_READ):
        rows = connection.execute(sql, [f"[{','.join(lists[start : start + _LISTS_READ])}]"]).fetchall()
        owners.append(start + np.array([row[0] for row in rows], np.int32))
        codes.append(np.array([places[row[1:]] for row in rows], np.int32))
    return np.concatenate(owners), np.concatenate(codes), list(places)


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
            left -= sum(_size(value) for _, value in islice(reversed(places), len(places) - before))
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


def read_numbers(connection: sqlite3.Connection, numbers: Sequence[int | float]) -> list[Any]:
    """Numbers as SQLite reads them from JSON."""
    rows = connection.execute("SELECT value FROM json_each(?)", [json.dumps(list(numbers))])
    return [value for (value,) in rows]
