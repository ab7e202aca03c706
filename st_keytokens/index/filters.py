"""Filters: which documents a search may find.

A filter is a dictionary over the metadata, a function of a :class:`Document`, or a collection of ids. A dictionary
holds conditions, all of which must be met::

    {"year": 2024}                          the value is 2024: a number, not the string and not True
    {"year": {"$gte": 2000, "$lt": 2010}}   $eq, $ne, $gt, $gte, $lt, $lte; strings compare by code point
    {"language": {"$in": ["en", "de"]}}     $in, $nin
    {"year": {"$exists": True}}             the key is there, with null as well
    {"tags": {"$contains": "star"}}         a list has the element, or a string the part
    {"tags": {"$any": ["star", "gas"]}}     one of some, or "$all" of them
    {"author": {"$within": {"name": "Ada"}}}    a dictionary meets a filter of its own
    {"$or": [{"year": 2024}, {"$not": {"language": "en"}}]}     $and, $or, $not

A value meets a condition only if it has the type of what it is compared with, so that a list or a dictionary meets
none but those of the last three lines, and ``$ne``, ``$nin`` and ``$not`` hold where a key is missing. Elements of a
list compare as values do. Engines refuse these three.

:func:`parse_filter` checks a filter once and makes a tree of conditions of it. The tree is what everything works with:
:class:`FilterMasks` for our index, with :func:`filter_sql` where memory is short, ``matches()`` for a single document,
and each engine's own translation.
"""

from __future__ import annotations

import json
import math
import operator
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_keytokens.index.columns import Column, read_numbers
from st_keytokens.index.documents import Document, checked_strings
from st_keytokens.index.metadata_columns import MetadataColumns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.index.snapshot import Snapshot
    from st_keytokens.index.store import Store

__all__ = [
    "AllOf",
    "AnyOf",
    "Compares",
    "Condition",
    "Exists",
    "Filter",
    "FilterMasks",
    "HasElement",
    "HasId",
    "HasPart",
    "IsIn",
    "Not",
    "ParsedFilter",
    "Scalar",
    "Within",
    "filter_operands",
    "filter_sql",
    "is_passing",
    "looks_inside",
    "metadata_types",
    "parse_filter",
    "refused_condition",
]

Scalar = str | int | float | bool | None
Sql = tuple[str, list[Any]]

_COMPARISONS = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_OPERATORS = ("$eq", "$ne", "$in", "$nin", *_COMPARISONS, "$exists", "$contains", "$any", "$all", "$within")
_LISTS = ("$in", "$nin", "$any", "$all")


@dataclass(frozen=True)
class AllOf:
    """All of some conditions; of none: true."""

    parts: tuple[Condition, ...]

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """Whether the document of an id and metadata meets the condition."""
        return all(part.matches(id, metadata) for part in self.parts)


@dataclass(frozen=True)
class AnyOf:
    """At least one of some conditions; of none: false."""

    parts: tuple[Condition, ...]

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """See :meth:`AllOf.matches`."""
        return any(part.matches(id, metadata) for part in self.parts)


@dataclass(frozen=True)
class Not:
    """The opposite, true as well where a key is missing."""

    part: Condition

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """See :meth:`AllOf.matches`."""
        return not self.part.matches(id, metadata)


@dataclass(frozen=True)
class IsIn:
    """The value of a key is one of some, of the same type: numbers are one type, true is not 1. Of none: false."""

    key: str
    values: tuple[Scalar, ...]

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """See :meth:`AllOf.matches`."""
        kind, found = _typed(metadata.get(self.key, self))
        return kind is not None and any((kind, found) == _typed(value) for value in self.values)


@dataclass(frozen=True)
class Compares:
    """The value of a key, a number or a string as the bound is, compares with it; strings by code point."""

    key: str
    operator: Literal["$gt", "$gte", "$lt", "$lte"]
    bound: str | int | float

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """See :meth:`AllOf.matches`."""
        (kind, found), (wanted, bound) = _typed(metadata.get(self.key, self)), _typed(self.bound)
        return kind == wanted and bool(_COMPARISONS[self.operator](found, bound))


@dataclass(frozen=True)
class Exists:
    """The key is there, with null as well."""

    key: str

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """See :meth:`AllOf.matches`."""
        return self.key in metadata


@dataclass(frozen=True)
class HasElement:
    """The value of a key is a list with an element that is one of some, of the same type. Of none: false."""

    key: str
    values: tuple[Scalar, ...]

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """See :meth:`AllOf.matches`."""
        found, wanted = metadata.get(self.key), [_typed(value) for value in self.values]
        return isinstance(found, (list, tuple)) and any(_typed(element) in wanted for element in found)


@dataclass(frozen=True)
class HasPart:
    """The value of a key is a string in which one of some stands. Of none: false."""

    key: str
    parts: tuple[str, ...]

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """See :meth:`AllOf.matches`."""
        found = metadata.get(self.key)
        return isinstance(found, str) and any(part in found for part in self.parts)


@dataclass(frozen=True)
class Within:
    """The value of a key is a dictionary that meets a condition."""

    key: str
    part: Condition

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """See :meth:`AllOf.matches`."""
        found = metadata.get(self.key)
        return isinstance(found, Mapping) and self.part.matches(id, found)


@dataclass(frozen=True)
class HasId:
    """The document's id is one of some; of none: false."""

    ids: tuple[str, ...]

    @cached_property
    def _set(self) -> frozenset[str]:
        return frozenset(self.ids)

    def matches(self, id: str, metadata: Mapping[str, Any]) -> bool:
        """See :meth:`AllOf.matches`."""
        return id in self._set


Condition = AllOf | AnyOf | Not | IsIn | Compares | Exists | HasElement | HasPart | Within | HasId
Filter = Mapping[str, Any] | Callable[[Document], bool] | Collection[str] | Condition
ParsedFilter = Condition | Callable[[Document], bool]


def _typed(value: Any) -> tuple[str | None, Any]:
    """A value's type by which it compares, None where it never does, and the value as SQLite has it."""
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, str):
        return "string", value
    if not isinstance(value, (int, float)):
        return None, None
    try:
        return "number", float(value) if abs(value) >= 2**63 else value
    except OverflowError:
        return "number", math.inf if value > 0 else -math.inf


def parse_filter(filter: Filter) -> ParsedFilter:
    """Check a filter, and make a tree of conditions of it; a function stays what it is.

    Args:
        filter: A dictionary in the language of this module, a function of a :class:`Document`, or a collection of ids,
            of which unknown ones match nothing. Not modified. A tree of conditions stays what it is.

    Raises:
        TypeError: If it is none of these, or holds a value that cannot be compared.
        ValueError: If a dictionary has an unknown operator, or a key or value that SQL cannot look for.

    >>> parse_filter({"year": {"$gte": 2000}})
    Compares(key='year', operator='$gte', bound=2000)
    >>> parse_filter({"language": {"$ne": "en"}})
    Not(part=IsIn(key='language', values=('en',)))
    """
    if isinstance(filter, Mapping):
        return _tree(filter)
    if isinstance(filter, Condition) or callable(filter):
        return filter
    return HasId(tuple(dict.fromkeys(checked_strings("filter", filter))))


def _tree(filter: Mapping[str, Any]) -> Condition:
    if not isinstance(filter, Mapping):
        raise TypeError(f"filter must be a dictionary here, got {type(filter).__name__} {filter!r:.60}.")
    parts: list[Condition] = []
    for key, value in filter.items():
        if key in ("$and", "$or"):
            if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection) or not value:
                raise TypeError(f"filter {key} must be a list of at least one filter, got {value!r:.60}.")
            inner = tuple(map(_tree, value))
            parts.append(AllOf(inner) if key == "$and" else AnyOf(inner))
        elif key == "$not":
            parts.append(Not(_tree(value)))
        else:
            parts += _field(key, value)
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _field(key: str, value: Any) -> list[Condition]:
    if not isinstance(key, str):
        raise TypeError(f"filter keys must be strings, got {type(key).__name__} {key!r:.60}.")
    if key.startswith("$"):
        raise ValueError(
            f"filter operators must be $and, $or, $not or, inside a field, {', '.join(_OPERATORS)}, got {key}."
        )
    if any(character in '"\\' or character < " " or "\ud800" <= character <= "\udfff" for character in key):
        raise ValueError(
            f"filter keys must have no quotes, backslashes, control characters or surrogates, got {key!r}. "
            "Use a function."
        )
    if isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError(
            f"filter values must be strings, numbers, booleans or None, got {type(value).__name__} {value!r:.60}. "
            f'For one of them say {{"$in": [...]}}, and for a list that has one {{"$any": [...]}}.'
        )
    if not isinstance(value, Mapping):
        return [IsIn(key, _checked_values([value]))]
    if not value:
        raise ValueError(f"filter on {key!r} must have an operator or a value, got {{}}.")
    return [_operator(key, name, operand) for name, operand in value.items()]


def _operator(key: str, name: str, operand: Any) -> Condition:
    if name in ("$eq", "$ne"):
        found: Condition = IsIn(key, _checked_values([operand]))
    elif name in _LISTS:
        if isinstance(operand, (str, bytes, Mapping)) or not isinstance(operand, Collection):
            raise TypeError(f"filter {name} must have a list, got {type(operand).__name__} {operand!r:.60}.")
        if name == "$all":
            return AllOf((Exists(key), *(_contains(key, [value]) for value in operand)))
        found = _contains(key, operand) if name == "$any" else IsIn(key, _checked_values(operand))
    elif name == "$contains":
        return _contains(key, [operand])
    elif name == "$within":
        return Within(key, _tree(operand))
    elif name == "$exists":
        if not isinstance(operand, bool):
            raise TypeError(f"filter $exists must be True or False, got {operand!r:.60}.")
        return Exists(key) if operand else Not(Exists(key))
    elif name in _COMPARISONS:
        if isinstance(operand, bool) or not isinstance(operand, (int, float, str)):
            raise TypeError(f"filter {name} must have a number or a string, got {type(operand).__name__}.")
        return Compares(key, name, *_checked_values([operand]))  # type: ignore[arg-type]  # of _COMPARISONS
    else:
        raise ValueError(f"filter operators in a field must be among {', '.join(_OPERATORS)}, got {name!r}.")
    return Not(found) if name in ("$ne", "$nin") else found


def _contains(key: str, values: Collection[Any]) -> Condition:
    """A list that has one of some values, or a string that has one that is a string."""
    checked = _checked_values(values)
    parts = tuple(value for value in checked if isinstance(value, str))
    element = HasElement(key, checked)
    return AnyOf((element, HasPart(key, parts))) if parts else element


def _checked_values(values: Collection[Any]) -> tuple[Scalar, ...]:
    """Values that can be compared: numbers and strings that SQLite holds as they are, booleans, None."""
    for value in values:
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise TypeError(
                f"filter values must be strings, numbers, booleans or None, got {type(value).__name__} {value!r:.60}."
            )
    for value in values:
        if isinstance(value, str):
            if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
                raise ValueError(f"filter values must be valid Unicode without NUL, got {value!r:.60}.")
        elif value is not None and not math.isfinite(_typed(value)[1]):
            raise ValueError(f"filter values must be finite, got {value!r:.60}.")
    return tuple(values)


_TYPE, _VALUE = "json_type(metadata, ?)", "json_extract(metadata, ?)"
_OPERAND = "json_extract(?, '$')"  # a number as SQLite reads it; outside coalesce(), it does so once and not per row
_SQL_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_PLAIN = {None: "null", True: "true", False: "false"}
_SQL_TYPES = {"number": "'integer', 'real'", "string": "'text'"}


def filter_sql(condition: Condition, path: str = "$") -> Sql:
    """A condition on the column ``metadata`` that is 0 or 1, never NULL, and its parameters.

    Args:
        condition: The condition.
        path: Where in the metadata its keys are.

    Raises:
        TypeError: If the condition asks for ids, which are in no metadata.

    >>> filter_sql(Not(Exists("year")))
    ('(NOT (json_type(metadata, ?) IS NOT NULL))', ['$."year"'])
    """
    if isinstance(condition, AllOf):
        parts = [filter_sql(part, path) for part in condition.parts]
        return _joined(" AND ", parts) if parts else ("1", [])
    if isinstance(condition, AnyOf):
        parts = [filter_sql(part, path) for part in condition.parts]
        return _joined(" OR ", parts) if parts else ("0", [])
    if isinstance(condition, Not):
        sql, parameters = filter_sql(condition.part, path)
        return f"(NOT {sql})", parameters
    if isinstance(condition, HasId):
        raise TypeError("condition must be on metadata, got HasId.")
    path = f'{path}."{condition.key}"'
    if isinstance(condition, Exists):
        return f"({_TYPE} IS NOT NULL)", [path]
    if isinstance(condition, Compares):
        kind, bound = _typed(condition.bound)
        compared = f"{_VALUE} {_SQL_COMPARISONS[condition.operator]} {_OPERAND}"
        parameters = [path, json.dumps(bound, ensure_ascii=False), path]
        return f"(({compared} AND {_TYPE} IN ({_SQL_TYPES[str(kind)]})) IS TRUE)", parameters
    if isinstance(condition, Within):
        sql, parameters = filter_sql(condition.part, path)
        return f"({_TYPE} IS 'object' AND {sql})", [path, *parameters]
    if isinstance(condition, HasPart):
        parts_sql = f"EXISTS (SELECT 1 FROM json_each(?) part WHERE instr({_VALUE}, part.value))"
        return f"({_TYPE} IS 'text' AND {parts_sql})", [path, json.dumps(condition.parts, ensure_ascii=False), path]
    if isinstance(condition, HasElement):
        sql, parameters = _among("element.type", "element.atom", [], condition.values)
        elements = f"EXISTS (SELECT 1 FROM json_each(metadata, ?) element WHERE {sql})"
        return f"({_TYPE} IS 'array' AND {elements})", [path, path, *parameters]
    return _among(_TYPE, _VALUE, [path], condition.values)


def _joined(word: str, conditions: Iterable[Sql]) -> Sql:
    parts = list(conditions)
    joined = word.join(condition for condition, _ in parts)
    return f"({joined})", [parameter for _, parameters in parts for parameter in parameters]


def _among(type_sql: str, value_sql: str, path: list[Any], values: tuple[Scalar, ...]) -> Sql:
    """Whether a value is one of some, of the same type; what gives type and value has the path as its parameter."""
    plain = sorted({_PLAIN[value] for value in values if value is None or isinstance(value, bool)})
    conditions: list[Sql] = []
    if plain:
        conditions.append((f"{type_sql} IN ({', '.join(map(repr, plain))})", path))
    for kind, names in _SQL_TYPES.items():
        scalars = [scalar for its_kind, scalar in map(_typed, values) if its_kind == kind]
        if scalars:
            # The value first: most documents have another, and their types need not be looked at.
            several = len(scalars) > 1
            among = "IN (SELECT value FROM json_each(?))" if several else f"= {_OPERAND}"
            operand = json.dumps(scalars if several else scalars[0], ensure_ascii=False)
            conditions.append((f"({value_sql} {among} AND {type_sql} IN ({names}))", [*path, operand, *path]))
    condition, parameters = _joined(" OR ", conditions) if conditions else ("0", [])
    return f"({condition} IS TRUE)", parameters


def is_passing(filter: ParsedFilter, document: Document) -> bool:
    """Whether a search with a filter may find a document, whose metadata are as in our index.

    >>> is_passing(parse_filter({"year": {"$gte": 2000}}), Document("a", None, {"year": 2024}))
    True
    """
    return bool(filter(document)) if callable(filter) else filter.matches(document.id, document.metadata)


def filter_operands(filter: ParsedFilter) -> dict[str, set[str]]:
    """The metadata keys that a filter asks for, and the types that it compares each with; none for a function or ids.

    >>> filter_operands(parse_filter({"year": {"$gte": 2000}, "$or": [{"note": None}, {"x": {"$exists": True}}]}))
    {'year': {'number'}, 'note': {'null'}, 'x': set()}
    """
    found: dict[str, set[str]] = {}
    pending: list[Any] = [filter]
    while pending:
        part = pending.pop(0)
        if isinstance(part, (AllOf, AnyOf)):
            pending += part.parts
        elif isinstance(part, Not):
            pending.append(part.part)
        elif isinstance(part, (HasElement, HasPart, Within)):
            kind = {HasElement: "list", HasPart: "string", Within: "dictionary"}[type(part)]
            found.setdefault(part.key, set()).add(kind)
        elif isinstance(part, (IsIn, Compares, Exists)):
            values = part.values if isinstance(part, IsIn) else (part.bound,) if isinstance(part, Compares) else ()
            found.setdefault(part.key, set()).update(str(_typed(value)[0]) for value in values)
    return found


def refused_condition(condition: Condition) -> ValueError:
    """What an engine raises for a condition that it cannot translate.

    >>> str(refused_condition(HasElement("tags", (1,))))
    "filter must compare values alone in an engine, got $contains, $any or $all on 'tags'. Keep it in other keys."
    """
    name = "$within" if isinstance(condition, Within) else "$contains, $any or $all"
    key = getattr(condition, "key", None)
    return ValueError(f"filter must compare values alone in an engine, got {name} on {key!r}. Keep it in other keys.")


def looks_inside(condition: Condition) -> Condition | None:
    """The part of a condition that looks into a list, a string or a dictionary, which engines refuse; None for none.

    >>> looks_inside(parse_filter({"$not": {"tags": {"$contains": 1}}}))
    HasElement(key='tags', values=(1,))
    """
    if isinstance(condition, (HasElement, HasPart, Within)):
        return condition
    if isinstance(condition, Not):
        return looks_inside(condition.part)
    parts = condition.parts if isinstance(condition, (AllOf, AnyOf)) else ()
    return next((found for found in map(looks_inside, parts) if found), None)


_TYPE_NAMES = {
    "integer": "number",
    "real": "number",
    "text": "string",
    "true": "boolean",
    "false": "boolean",
    "array": "list",
    "object": "dictionary",
}


def metadata_types(connection: sqlite3.Connection, keys: Collection[str] | None) -> dict[str, dict[str, int]]:
    """See :meth:`~st_keytokens.index.HybridIndex.metadata_types`; ``keys`` as a filter may have them."""
    if keys is None:
        sql = "SELECT m.key, m.type, count(*) FROM documents, json_each(metadata) m GROUP BY m.key, m.type"
        rows = connection.execute(sql).fetchall()
    else:
        sql = f"SELECT ?, {_TYPE}, count(*) FROM documents WHERE {_TYPE} IS NOT NULL GROUP BY 2"
        rows = [row for key in keys for row in connection.execute(sql, [key, *[f'$."{key}"'] * 2])]
    found: dict[str, dict[str, int]] = {}
    for key, kind, count in rows:
        counts, name = found.setdefault(key, {}), _TYPE_NAMES.get(kind, kind)
        counts[name] = counts.get(name, 0) + count
    return found


class FilterMasks:
    """Masks of filters over metadata, a byte for each row, kept until the index changes.

    Threads need no lock: what is lost between two of them is looked for again. Functions are called each time, as they
    may depend on anything.

    Args:
        store: The database of the filtered documents.
        most_bytes: How much is kept; a mask that does not fit takes the place of all others.
        most_column_bytes: How much is kept of metadata that filters ask for; SQLite is asked where it is not enough.
    """

    def __init__(self, store: Store, *, most_bytes: int = 1 << 26, most_column_bytes: int = 1 << 28) -> None:
        self._store, self._most_bytes = store, most_bytes
        self._columns = MetadataColumns(most_bytes=most_column_bytes)
        self._asked: set[str] = set()  # places that a filter has asked for
        self._held: tuple[int, dict[tuple[str, ...], NDArray[np.bool_]]] = 0, {}

    def mask(self, connection: sqlite3.Connection, snapshot: Snapshot, filter: ParsedFilter) -> NDArray[np.bool_]:
        """Mask of the rows that a filter lets through, padded, not to be written to.

        Args:
            connection: A connection in a transaction.
            snapshot: The snapshot of that transaction.
            filter: What :func:`parse_filter` gave.
        """
        documents = self._store.documents
        if callable(filter):
            found = [key for key, fields in documents.all(connection) if filter(Document(*fields))]
            return snapshot.mask(np.array(found, np.int64))
        if isinstance(filter, HasId):
            keys = documents.keys(connection, filter.ids)
            return snapshot.mask(np.sort(np.array(list(keys.values()), np.int64)))
        condition, parameters = filter_sql(filter)
        key = condition, *parameters
        generation, masks = self._held
        if generation != snapshot.generation:
            masks = {}
            self._held = snapshot.generation, masks
        mask = masks.get(key)
        if mask is None:
            mask = _by_segments(connection, snapshot, filter)
            if mask is None:
                mask = self._by_columns(connection, snapshot, filter)
            if mask is None:
                rows = connection.execute(f"SELECT key FROM documents WHERE {condition} ORDER BY key", parameters)
                mask = snapshot.mask(np.array(rows.fetchall(), np.int64).reshape(-1))
            mask.setflags(write=False)
            if (len(masks) + 1) * len(mask) > self._most_bytes:
                masks.clear()
            masks[key] = mask
        return mask

    def _by_columns(
        self, connection: sqlite3.Connection, snapshot: Snapshot, condition: Condition
    ) -> NDArray[np.bool_] | None:
        """The mask of a condition by columns in memory; None where one of these is not to be had.

        The first filter on a key has none, since making one takes as long as ten filters: a process that asks once and
        ends, as the command line does, is better off without.
        """
        columns: dict[str, Column] = {}
        paths = _paths(condition, "$")
        if not paths <= self._asked:
            self._asked |= paths
            return None
        for path in paths:
            column = self._columns.column(connection, snapshot, path)
            if column is None:
                return None
            columns[path] = column
        mask = snapshot.mask(np.empty(0, np.int64))
        mask[: snapshot.num_rows] = _rows_of(connection, condition, columns, "$", snapshot.num_rows)
        mask[snapshot.dead] = False
        return mask


def _by_segments(connection: sqlite3.Connection, snapshot: Snapshot, condition: Condition) -> NDArray[np.bool_] | None:
    """The mask of a condition by the columns that the segments keep; None where one of these is not to be had."""
    paths = _paths(condition, "$")
    mask = snapshot.mask(np.empty(0, np.int64))
    for start, segment in zip(snapshot.starts.tolist(), snapshot.segments, strict=False):
        columns: dict[str, Column] = {}
        for path in paths:
            column = segment.column(
                path[3:-1]
            )  # of a key within another one, which has quotes in between, there is none
            if column is None:
                return None
            columns[path] = column
        mask[start : start + len(segment)] = _rows_of(connection, condition, columns, "$", len(segment))
    mask[snapshot.dead] = False
    return mask


def _paths(condition: Condition, path: str) -> set[str]:
    """The places in the metadata that a condition asks for."""
    if isinstance(condition, (AllOf, AnyOf)):
        return set().union(*(_paths(part, path) for part in condition.parts))
    if isinstance(condition, Not):
        return _paths(condition.part, path)
    path = _inner(path, condition)
    return {path} | (_paths(condition.part, path) if isinstance(condition, Within) else set())


def _inner(path: str, condition: Any) -> str:
    return f'{path}."{condition.key}"'


def _rows_of(
    connection: sqlite3.Connection, condition: Condition, columns: Mapping[str, Column], path: str, num_rows: int
) -> NDArray[np.bool_]:
    """Where a condition holds; what :func:`filter_sql` says, by columns."""
    if isinstance(condition, (AllOf, AnyOf)):
        join, start = (np.logical_and, np.ones) if isinstance(condition, AllOf) else (np.logical_or, np.zeros)
        found = start(num_rows, np.bool_)
        for part in condition.parts:
            join(found, _rows_of(connection, part, columns, path, num_rows), out=found)
        return found
    if isinstance(condition, Not):
        return ~_rows_of(connection, condition.part, columns, path, num_rows)
    path = _inner(path, condition)
    column = columns[path]
    if isinstance(condition, Exists):
        return column.exists()
    if isinstance(condition, Within):
        return column.is_dictionary() & _rows_of(connection, condition.part, columns, path, num_rows)
    if isinstance(condition, HasPart):
        return column.has_part(condition.parts)  # type: ignore[no-any-return]
    if isinstance(condition, Compares):
        bound = condition.bound
        if not isinstance(bound, str):
            (bound,) = read_numbers(connection, [_typed(bound)[1]])
        return column.compares(condition.operator, bound)
    if isinstance(condition, (IsIn, HasElement)):
        typed = [(*_typed(value), value) for value in condition.values]
        numbers = read_numbers(connection, [value for kind, value, _ in typed if kind == "number"])
        strings = [value for value in condition.values if isinstance(value, str)]
        plain = [value for value in condition.values if value is None or isinstance(value, bool)]
        among = column.is_among if isinstance(condition, IsIn) else column.has_element
        return among(plain, numbers, strings)  # type: ignore[no-any-return]
    raise TypeError(f"condition must be on metadata, got {type(condition).__name__}.")
