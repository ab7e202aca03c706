"""The rows that the last filters let through: looking for them reads the metadata of every document."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from st_keytokens.index.documents import Document, checked_strings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.index.snapshot import Snapshot
    from st_keytokens.index.store import Store

__all__ = ["Filter", "FilterMasks", "filter_sql", "filtered_keys", "keys_where"]


Filter = Mapping[str, Any] | Callable[[Document], bool] | Collection[str]
Sql = tuple[str, list[Any]]

_TYPE, _VALUE = "json_type(metadata, ?)", "json_extract(metadata, ?)"
_OPERAND = "json_extract(?, '$')"  # a number as SQLite reads it; outside coalesce(), it does so once and not per row
_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_OPERATORS = ("$eq", "$ne", "$in", "$nin", *_COMPARISONS, "$exists")


def filtered_keys(store: Store, connection: sqlite3.Connection, filter: Filter) -> NDArray[np.int64]:
    """Keys of the documents that a filter lets through, ascending.

    Args:
        store: The database.
        connection: A connection in a transaction.
        filter: A dictionary as above; a function of a :class:`Document` (slow: it is called on every document); or a
            collection of ids, of which unknown ones match nothing.

    Raises:
        TypeError: If it is none of these, or holds a value that cannot be compared.
        ValueError: If a dictionary has an unknown operator, or a key or value that SQL cannot look for.
    """
    if isinstance(filter, Mapping):
        return keys_where(connection, *filter_sql(filter))
    if callable(filter):
        return np.array(
            [key for key, fields in store.documents.all(connection) if filter(Document(*fields))], np.int64
        )
    keys = store.documents.keys(connection, checked_strings("filter", filter))
    return np.sort(np.array(list(keys.values()), np.int64))


def keys_where(connection: sqlite3.Connection, condition: str, parameters: list[Any]) -> NDArray[np.int64]:
    """Keys of the documents that fulfil a condition of :func:`filter_sql`, ascending."""
    rows = connection.execute(f"SELECT key FROM documents WHERE {condition} ORDER BY key", parameters)
    return np.array(rows.fetchall(), np.int64).reshape(-1)


def filter_sql(filter: Mapping[str, Any]) -> Sql:
    """A condition on the column ``metadata`` that is 0 or 1, never NULL, and its parameters.

    >>> filter_sql({"$not": {"year": {"$exists": False}}})
    ('(NOT ((json_type(metadata, ?) IS NULL)))', ['$."year"'])
    """
    if not isinstance(filter, Mapping):
        raise TypeError(f"filter must be a dictionary here, got {type(filter).__name__} {filter!r:.60}.")
    conditions = []
    for key, value in filter.items():
        if key in ("$and", "$or"):
            if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection) or not value:
                raise TypeError(f"filter {key} must be a list of at least one filter, got {value!r:.60}.")
            conditions.append(_joined(f" {key[1:].upper()} ", [filter_sql(part) for part in value]))
        elif key == "$not":
            condition, parameters = filter_sql(value)
            conditions.append((f"(NOT {condition})", parameters))
        else:
            conditions.append(_field(key, value))
    return _joined(" AND ", conditions) if len(conditions) != 1 else conditions[0]


def _joined(operator: str, conditions: list[Sql]) -> Sql:
    if not conditions:
        return "1", []
    return (
        "(" + operator.join(condition for condition, _ in conditions) + ")",
        [parameter for _, parameters in conditions for parameter in parameters],
    )


def _field(key: str, value: Any) -> Sql:
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
    path = f'$."{key}"'
    if not isinstance(value, Mapping):
        return _among(path, [value])
    if not value:
        raise ValueError(f"filter on {key!r} must have an operator or a value, got {{}}.")
    return _joined(" AND ", [_operator(path, operator, operand) for operator, operand in value.items()])


def _operator(path: str, operator: str, operand: Any) -> Sql:
    if operator in ("$eq", "$ne"):
        condition, parameters = _among(path, [operand])
    elif operator in ("$in", "$nin"):
        if isinstance(operand, (str, bytes, Mapping)) or not isinstance(operand, Collection):
            raise TypeError(f"filter {operator} must have a list, got {type(operand).__name__} {operand!r:.60}.")
        condition, parameters = _among(path, operand)
    elif operator == "$exists":
        if not isinstance(operand, bool):
            raise TypeError(f"filter $exists must be True or False, got {operand!r:.60}.")
        return f"({_TYPE} IS {'NOT ' if operand else ''}NULL)", [path]
    elif operator in _COMPARISONS:
        if isinstance(operand, bool) or not isinstance(operand, (int, float, str)):
            raise TypeError(f"filter {operator} must have a number or a string, got {type(operand).__name__}.")
        types = "'text'" if isinstance(operand, str) else "'integer', 'real'"
        condition = f"(({_VALUE} {_COMPARISONS[operator]} {_OPERAND} AND {_TYPE} IN ({types})) IS TRUE)"
        parameters = [path, json.dumps(_scalar(operand), ensure_ascii=False), path]
    else:
        raise ValueError(f"filter operators in a field must be among {', '.join(_OPERATORS)}, got {operator!r}.")
    return (f"(NOT {condition})" if operator in ("$ne", "$nin") else condition), parameters


def _among(path: str, values: Collection[Any]) -> Sql:
    """Whether the value is one of some, of the same type."""
    types = [_json_type(value) for value in values]
    plain = sorted({kind for kind in types if kind in ("null", "true", "false")})
    conditions: list[Sql] = []
    if plain:
        conditions.append((f"{_TYPE} IN ({', '.join(map(repr, plain))})", [path]))
    for kind, names in (("number", "'integer', 'real'"), ("string", "'text'")):
        scalars = [_scalar(value) for value, its_kind in zip(values, types, strict=True) if its_kind == kind]
        if scalars:
            # The value first: most documents have another, and their types need not be looked at.
            several = len(scalars) > 1
            among = "IN (SELECT value FROM json_each(?))" if several else f"= {_OPERAND}"
            operand = json.dumps(scalars if several else scalars[0], ensure_ascii=False)
            conditions.append((f"({_VALUE} {among} AND {_TYPE} IN ({names}))", [path, operand, path]))
    condition, parameters = _joined(" OR ", conditions) if conditions else ("0", [])
    return f"({condition} IS TRUE)", parameters


def _json_type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    raise TypeError(
        f"filter values must be strings, numbers, booleans or None, got {type(value).__name__} {value!r:.60}."
    )


def _scalar(value: float | str) -> float | str:
    """A number or string that SQLite holds as it is."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"filter values must be valid Unicode without NUL, got {value!r:.60}.")
        return value
    if not math.isfinite(value):
        raise ValueError(f"filter values must be finite, got {value}.")
    return float(value) if abs(value) >= 2**63 else value


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
