"""Columns of metadata that a segment keeps on the disk, so that a filter reads no document, nor one that is new.

There is one for each key at the top level. The file is an array of bytes: the length of a table in 8 of them, the
table, JSON, and what it places: for each key its numbers, strings and lists, ascending, and a code for each row, see
:class:`Column`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from st_keytokens.index.columns import Column, Strings, joined_columns

if TYPE_CHECKING:
    import sqlite3

    from numpy.typing import NDArray

__all__ = ["SegmentColumns"]

_MOST_KEYS = 64  # that have a column
_MOST_CHARACTERS = 1 << 26  # of the different strings of a key
_READ = 1 << 14  # values that are read at once
_ALIGNMENT = 8


class SegmentColumns:
    """The columns of a segment's rows, or of rows that become one. Threads may share it.

    Args:
        num_rows: How many rows.
        columns: Columns by key; None for a key that has none, though some row has it.
        is_whole: Whether a key that is not among them is in no row.
    """

    def __init__(self, num_rows: int, columns: Mapping[str, Column | None], is_whole: bool) -> None:
        self.num_rows, self.is_whole = num_rows, is_whole
        self._columns = dict(columns)
        self._packed: tuple[NDArray[np.uint8], dict[str, Any]] | None = None

    @classmethod
    def read(cls, connection: sqlite3.Connection, keys: NDArray[np.int64]) -> SegmentColumns:
        """Those of documents.

        Args:
            connection: A connection in a transaction.
            keys: Their keys, ascending, with all that are between the first and the last; one that was deleted has
                no values.
        """
        sql = (
            "SELECT d.key, m.key, m.type, CASE m.type WHEN 'array' THEN m.value ELSE m.atom END "
            "FROM documents d, json_each(d.metadata) m WHERE d.key BETWEEN ? AND ? ORDER BY d.key"
        )
        cursor = connection.execute(sql, (int(keys[0]), int(keys[-1])))
        found: dict[str, tuple[list[int], list[int], dict[Any, int]]] = {}
        while chunk := cursor.fetchmany(_READ):
            for key, name, kind, value in chunk:
                entry = found.get(name)
                if entry is None:
                    entry = found[name] = [], [], {}
                entry[0].append(key)
                entry[1].append(entry[2].setdefault((kind, value), len(entry[2])))
        columns = {}
        commonest = sorted(found, key=lambda name: -len(found[name][0]))[:_MOST_KEYS]
        for name in commonest:
            owners, codes, values = found[name]
            of_rows = np.zeros(len(keys), np.int32)
            of_rows[np.searchsorted(keys, owners)] = np.array(codes) + 1
            columns[name] = _kept(Column.of(connection, of_rows, [(None, None), *values]))
        return cls(len(keys), columns, len(columns) == len(found))

    @classmethod
    def joined(cls, parts: Sequence[tuple[SegmentColumns, NDArray[np.bool_] | None]]) -> SegmentColumns:
        """Those of the rows of several under one another, each with a mask of the rows to keep, None for all."""
        if len(parts) == 1 and parts[0][1] is None:
            return parts[0][0]
        names = list(dict.fromkeys(name for part, _ in parts for name in part.keys))
        num_rows = sum(part.num_rows if mask is None else int(np.count_nonzero(mask)) for part, mask in parts)
        columns: dict[str, Column | None] = {}
        for name in names[:_MOST_KEYS]:
            own = [part.column(name) for part, _ in parts]
            kept = [
                column if mask is None else column.taken(np.flatnonzero(mask))
                for column, (_, mask) in zip(own, parts, strict=True)
                if column is not None
            ]
            columns[name] = _kept(joined_columns(kept)) if len(kept) == len(parts) else None
        is_whole = len(columns) == len(names) and all(part.is_whole for part, _ in parts)
        return cls(num_rows, columns, is_whole)

    @classmethod
    def unpacked(cls, data: NDArray[np.uint8], num_rows: int) -> SegmentColumns:
        """Those of a file's bytes, each read when it is asked for.

        Raises:
            ValueError: If the table cannot be read.
        """
        start = 8 + int(data[:8].view("<u8")[0]) if len(data) >= 8 else len(data) + 1
        if start > len(data):
            raise ValueError("it must begin with a table")
        try:
            table = json.loads(data[8:start].tobytes())
            found = cls(num_rows, {}, table["is_whole"] is True)
            found._packed = data[start:], dict(table["columns"])
        except (TypeError, KeyError, RecursionError) as err:
            raise ValueError(f"its table must have columns: {err}") from err
        return found

    @property
    def keys(self) -> list[str]:
        """The keys, also those without a column."""
        return list(self._columns if self._packed is None else self._packed[1])

    def column(self, name: str) -> Column | None:
        """The column of a key; None where there is none to be had.

        Raises:
            ValueError: If it cannot be read.
        """
        if name not in self._columns:
            entry = None if self._packed is None else self._packed[1].get(name, False)
            if entry is False or self._packed is None:
                nothing = Column.empty()
                missing = Column(np.zeros(self.num_rows, np.uint8), nothing.values, nothing.owners, None)
                return missing if self.is_whole else None
            self._columns[name] = None if entry is None else self._unpacked(self._packed[0], entry)
        return self._columns[name]

    def _unpacked(self, data: NDArray[np.uint8], entry: Any) -> Column:
        try:
            return _unpacked(data, entry, self.num_rows)
        except (TypeError, KeyError, ValueError, RecursionError) as err:
            raise ValueError(f"a column of its table cannot be read: {err}") from err

    def packed(self) -> NDArray[np.uint8]:
        """The bytes of the file."""
        content = bytearray()
        entries: dict[str, Any] = {}
        for name in self.keys:
            column = self.column(name)
            entries[name] = None if column is None else _packed(content, column)
        table = json.dumps({"is_whole": self.is_whole, "columns": entries}).encode()
        table += b" " * (-len(table) % _ALIGNMENT)
        return np.frombuffer(np.array([len(table)], "<u8").tobytes() + table + bytes(content), np.uint8)


def _kept(column: Column) -> Column | None:
    """The column; None where it is too large to be kept."""
    _, strings, lists = column.values
    return None if sum(map(len, strings)) + sum(map(len, lists)) > _MOST_CHARACTERS else column


def _packed(content: bytearray, column: Column) -> dict[str, Any]:
    """Appends a column; where its parts are."""
    numbers, *others = column.values
    strings, lists = map(Strings.of, others)
    parts = {
        "numbers": _packed_numbers(numbers),
        "ends": strings.ends,
        "text": strings.text,
        "list_ends": lists.ends,
        "list_text": lists.text,
        "codes": column.codes.astype(np.min_scalar_type(column.num_codes)),
        "owners": column.owners.astype(np.uint32),
    }
    elements = None if column.elements is None else _packed(content, column.elements)
    return {"elements": elements, **{name: _placed(content, array) for name, array in parts.items()}}


def _unpacked(data: NDArray[np.uint8], entry: dict[str, Any], num_rows: int) -> Column:
    """A column by where its parts are; an error where they do not fit together."""
    parts = {name: _array(data, *place) for name, place in entry.items() if name != "elements"}
    strings, lists = Strings(parts["ends"], parts["text"]), Strings(parts["list_ends"], parts["list_text"])
    values: Any = _numbers(parts["numbers"]), strings, lists
    codes, owners, inner = parts["codes"], parts["owners"], entry["elements"]
    elements = None if inner is None else _unpacked(data, inner, len(owners))
    column = Column(codes, values, owners, elements)
    for name, array, count in (("codes", codes, column.num_codes), ("owners", owners, len(lists))):
        if array.dtype.kind not in "iu" or (len(array) and not (0 <= array.min() and array.max() < count)):
            raise ValueError(f"{name} must be below {count}")
    if len(codes) != num_rows:
        raise ValueError(f"it must have {num_rows} rows, and has {len(codes)}")
    return column


def _packed_numbers(numbers: Any) -> NDArray[Any]:
    """Numbers of one type as an array; those of both as JSON."""
    if isinstance(numbers, np.ndarray):
        return numbers
    for kind, dtype in ((int, "<i8"), (float, "<f8")):
        if all(type(number) is kind for number in numbers):
            return np.array(numbers, dtype)
    return np.frombuffer(json.dumps(numbers).encode(), np.uint8)


def _numbers(array: NDArray[Any]) -> Any:
    """The numbers that were packed; a ValueError where they do not ascend."""
    if array.dtype != np.uint8:
        numbers: Any = array
        is_sound = bool((array[1:] > array[:-1]).all())
    else:
        numbers = json.loads(array.tobytes())
        is_sound = all(type(n) in (int, float) for n in numbers) and all(a < b for a, b in pairwise(numbers))
    if not is_sound:
        raise ValueError("numbers must ascend")
    return numbers


_DTYPES = ("|u1", "<u2", "<u4", "<i8", "<f8")


def _placed(content: bytearray, array: NDArray[Any]) -> list[Any]:
    """Appends an array; its dtype, where it begins and its length."""
    content += b"\0" * (-len(content) % _ALIGNMENT)
    dtype = array.dtype.newbyteorder("<")
    place = [dtype.str, len(content), len(array)]
    content += array.astype(dtype, copy=False).tobytes()
    return place


def _array(data: NDArray[np.uint8], dtype: str, start: int, length: int) -> NDArray[Any]:
    if dtype not in _DTYPES or min(start, length) < 0:
        raise ValueError(f"{dtype!r:.20} at {start!r:.20}")
    stop = start + length * np.dtype(dtype).itemsize
    if stop > len(data):
        raise ValueError("it ends too early")
    return data[start:stop].view(dtype)
