"""Filters in Milvus's expression language, with the same meaning on every version of it.

What Milvus makes of a JSON value of another type, of null and of a missing key differs between versions. So a document
has, beside its metadata, an array of *facets*: short hashes that say which keys it has, of which type a value is, and
which value it is. Expressions ask for facets, and look into the metadata only to compare numbers or strings that are
known to be such. Hashes need no escaping.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from st_keytokens.engines.filter_tree import AllOf, AnyOf, Comparison, Condition, Exists, HasId, IsIn, Not, Scalar
from st_keytokens.engines.point_ids import point_id

__all__ = ["FACET_LENGTH", "facets_of", "milvus_filter"]

FACET_LENGTH = 24  # hexadecimal digits, 96 bits
_OPERATORS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_NOTHING = "key in []"


def facets_of(metadata: Mapping[str, Any]) -> list[str]:
    """The facets of a document's metadata: of every key, and of the type and the value where that is a scalar.

    >>> len(facets_of({"year": 2024, "tags": ["a", "b"]}))
    4
    """
    facets = []
    for key, value in metadata.items():
        facets.append(_facet("key", key))
        if value is None or isinstance(value, (str, int, float)):
            facets += [_facet(_kind(value), key), _value_facet(key, value)]
    return facets


def milvus_filter(condition: Condition) -> str:
    """A filter as an expression.

    Raises:
        ValueError: If strings with control characters are to be compared with ``$lt`` and the like.

    >>> milvus_filter(Comparison("year", "$gte", 2000))
    '(array_contains(facets, "fb8533d3c55cdb05fe929a21") and metadata["year"] >= 2000)'
    """
    if isinstance(condition, AllOf):
        return _joined(" and ", [milvus_filter(part) for part in condition.parts]) if condition.parts else "true"
    if isinstance(condition, AnyOf):
        return _joined(" or ", [milvus_filter(part) for part in condition.parts])
    if isinstance(condition, Not):
        return f"(not {milvus_filter(condition.part)})"
    if isinstance(condition, HasId):
        return f"(key in {json.dumps([point_id(id) for id in condition.ids])})"
    if isinstance(condition, Exists):
        return _has([_facet("key", condition.key)])
    if isinstance(condition, IsIn):
        return _has([_value_facet(condition.key, value) for value in condition.values])
    return _comparison(condition)


def _comparison(condition: Comparison) -> str:
    bound = condition.bound
    if isinstance(bound, str) and any(character < " " or character == "\x7f" for character in bound):
        raise ValueError(f"filter {condition.operator} must have no control characters in Milvus, got {bound!r:.60}.")
    field = f"metadata[{json.dumps(condition.key, ensure_ascii=False)}]"
    compared = f"{field} {_OPERATORS[condition.operator]} {json.dumps(bound, ensure_ascii=False)}"
    return _joined(" and ", [_has([_facet(_kind(bound), condition.key)]), compared])


def _joined(operator: str, parts: list[str]) -> str:
    return f"({operator.join(parts)})"


def _has(facets: list[str]) -> str:
    if not facets:
        return f"({_NOTHING})"
    if len(facets) == 1:
        return f'array_contains(facets, "{facets[0]}")'
    return f"array_contains_any(facets, {json.dumps(facets)})"


def _kind(value: Scalar) -> str:
    if value is None or isinstance(value, bool):
        return "constant"
    return "string" if isinstance(value, str) else "number"


def _value_facet(key: str, value: Scalar) -> str:
    """Of equal numbers one facet, whether whole or not; true is not 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _facet("value", key, value)


def _facet(*parts: Scalar) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:FACET_LENGTH]
