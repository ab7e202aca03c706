"""What Qdrant is sent, in the words of its REST interface: point ids, payloads, filters.

A point's id is the UUIDv5 of the document's id, and its payload is ``{"id": ..., "text": ..., "metadata": {...}}``;
``"empty_lists"`` names the metadata keys that hold an empty list, which Qdrant does not tell from missing ones.
"""

from __future__ import annotations

import re
from typing import Any

from st_keytokens.engines.filter_tree import AllOf, AnyOf, Comparison, Condition, Exists, HasId, IsIn, Not
from st_keytokens.engines.point_ids import point_id
from st_keytokens.engines.records import Records, check_whole_numbers

__all__ = ["RRF_K", "payload_of", "qdrant_filter"]

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXACT = 2**53  # whole numbers below it are exact in double precision, in which Qdrant compares
RRF_K = 61  # Qdrant counts ranks from 0: 1 / (61 + 0) is our 1 / (60 + 1)


def payload_of(records: Records, row: int) -> dict[str, Any]:
    """The payload of a record.

    Raises:
        ValueError: If the metadata have a whole number that does not fit into 64 bits.
    """
    metadata = records.metadata_of(row)
    check_whole_numbers(metadata, records.ids[row])
    payload = {"id": records.ids[row], "text": records.text(row), "metadata": metadata}
    empty = [key for key, value in metadata.items() if value == []]
    return {**payload, "empty_lists": empty} if empty else payload


def qdrant_filter(condition: Condition) -> dict[str, Any]:
    """A filter with the same meaning as in our index, where a list matches none of its elements.

    Raises:
        ValueError: If strings are to be compared with ``$lt`` and the like, which Qdrant does not do.

    >>> qdrant_filter(Comparison("year", "$gte", 2000))["must"][0]
    {'key': 'metadata.year', 'range': {'gte': 2000}}
    """
    if isinstance(condition, AllOf):
        return {"must": [qdrant_filter(part) for part in condition.parts]}
    if isinstance(condition, AnyOf):
        return {"should": [qdrant_filter(part) for part in condition.parts]}
    if isinstance(condition, Not):
        return {"must_not": [qdrant_filter(condition.part)]}
    if isinstance(condition, HasId):
        return {"must": [{"has_id": [point_id(id) for id in condition.ids]}]}
    path = f"metadata.{condition.key}" if _PLAIN_KEY.fullmatch(condition.key) else f'metadata."{condition.key}"'
    if isinstance(condition, Exists):
        is_empty_list = {"key": "empty_lists", "match": {"value": condition.key}}
        return {"should": [{"must_not": [{"is_empty": {"key": path}}]}, {"is_null": {"key": path}}, is_empty_list]}
    is_no_list = {"is_empty": {"key": f"{path}[]"}}
    if isinstance(condition, Comparison):
        if isinstance(condition.bound, str):
            raise ValueError(
                f"filter {condition.operator} must have a number in Qdrant, got {condition.bound!r:.60}. "
                "Keep such values as numbers, dates as timestamps for example."
            )
        return {"must": [{"key": path, "range": {condition.operator[1:]: condition.bound}}, is_no_list]}
    found = [{"must": [{"should": _equals(condition, path)}, is_no_list]}] if _equals(condition, path) else []
    if None in condition.values:
        found.append({"must": [{"is_null": {"key": path}}], "must_not": [{"is_null": {"key": f"{path}[]"}}]})
    return {"should": found} if found else {"must": [{"has_id": []}]}


def _equals(condition: IsIn, path: str) -> list[dict[str, Any]]:
    """A condition for every kind of value that is no null."""
    strings = [value for value in condition.values if isinstance(value, str)]
    found: list[dict[str, Any]] = [{"key": path, "match": {"any": strings}}] if strings else []
    for value in condition.values:
        if isinstance(value, bool):
            found.append({"key": path, "match": {"value": value}})
        elif isinstance(value, (int, float)):
            number = int(value) if isinstance(value, float) and value.is_integer() else value
            is_large = isinstance(number, int) and _EXACT <= abs(number) < 2**63
            equal = {"match": {"value": number}} if is_large else {"range": {"gte": value, "lte": value}}
            found.append({"key": path, **equal})
    return found
