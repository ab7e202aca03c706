"""Columns of metadata: what a filter compares.

SQLite reads the JSON of every document for every filter, a quarter of a second for a million. A column holds a number
for each row instead: the rank of its value among the distinct ones, by type. So a comparison is two binary searches
among the distinct values and one pass over the numbers. Values are those that SQLite reads, and those of a filter are
read by it too, so that both are rounded alike.

Segments keep those of the keys at the top level, see ``segment_columns``; the others are made in memory, see
``metadata_columns``.
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
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import sqlite3

    from numpy.typing import NDArray

__all__ = ["Column", "Strings", "Typed", "joined_columns", "read_numbers", "value_bytes"]

Typed = tuple[str | None, Any]  # a type as SQLite calls it, None for what is missing, and a value

_MISSING, _NULL, _FALSE, _TRUE, _DICTIONARY, _FIRST = range(6)
_SINGLE = {None: _MISSING, "null": _NULL, "false": _FALSE, "true": _TRUE, "object": _DICTIONARY}
_NUMBERS, _STRINGS, _LISTS = range(3)
_KINDS_IN_ORDER = range(3)
_KINDS = {"integer": _NUMBERS, "real": _NUMBERS, "text": _STRINGS, "array": _LISTS}
_LISTS_READ = 1 << 10  # at once


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
        held = sum(value_bytes(value) for values in self.values for value in values)
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


def value_bytes(value: object) -> int:
    """Memory of a value that a list holds."""
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


def read_numbers(connection: sqlite3.Connection, numbers: Sequence[int | float]) -> list[Any]:
    """Numbers as SQLite reads them from JSON."""
    rows = connection.execute("SELECT value FROM json_each(?)", [json.dumps(list(numbers))])
    return [value for (value,) in rows]
