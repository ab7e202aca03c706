"""Filters for OpenSearch and Elasticsearch: what is written beside the metadata, and the queries that look for it.

The metadata themselves are kept as they are and not indexed, because a server would guess a type for every key from
the first value that it sees, refuse documents whose value is of another one, and take dots in keys for paths. What
filters need is written into three fields of fixed types instead: ``facts``, a list of keywords for keys that are
there and for their values as far as these are numbers, true, false or null; ``strings.<key>`` (keyword); and
``numbers.<key>`` (double), for comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from st_keytokens.engines.filter_tree import AllOf, AnyOf, Condition, Exists, HasId, IsIn, Not
from st_keytokens.engines.search_server_ids import document_id

__all__ = ["FILTER_MAPPING", "FILTER_TEMPLATES", "filter_fields", "filter_query"]

_MAX_CHARACTERS = 8_191  # of four bytes each: what Lucene takes as a term
_PLAIN = {None: "null", True: "true", False: "false"}

FILTER_MAPPING: dict[str, Any] = {
    "facts": {"type": "keyword"},
    "numbers": {"type": "object", "dynamic": True},
    "strings": {"type": "object", "dynamic": True},
}
FILTER_TEMPLATES: list[dict[str, Any]] = [
    {"numbers": {"path_match": "numbers.*", "mapping": {"type": "double"}}},
    {"strings": {"path_match": "strings.*", "mapping": {"type": "keyword", "ignore_above": _MAX_CHARACTERS}}},
]


def filter_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is written beside a document's metadata.

    Strings of more than 8,191 characters are left out: no filter can ask for them.

    >>> filter_fields({"n": 1, "a.b": "en"})
    {'facts': ['any:n', '1:n', 'any:a%2Eb'], 'numbers': {'n': 1.0}, 'strings': {'a%2Eb': 'en'}}
    """
    facts: list[str] = []
    numbers: dict[str, float] = {}
    strings: dict[str, str] = {}
    for key, value in metadata.items():
        field = _field(key)
        facts.append(f"any:{field}")
        if value is None or isinstance(value, (bool, int, float)):
            facts.append(_fact(field, value))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[field] = _double(value)
        elif isinstance(value, str) and len(value) <= _MAX_CHARACTERS:
            strings[field] = value
    return {"facts": facts, "numbers": numbers, "strings": strings}


def filter_query(condition: Condition) -> dict[str, Any]:
    """A query that gives no scores, for ``bool.filter``.

    Numbers are equal exactly, and greater or less as doubles, in which integers beyond 2^53 are rounded.

    Raises:
        ValueError: If the filter asks for a string of more than 8,191 characters.

    >>> filter_query(IsIn("language", ("en", 3)))["bool"]["should"]
    [{'terms': {'facts': ['3:language']}}, {'terms': {'strings.language': ['en']}}]
    """
    if isinstance(condition, AllOf):
        parts = [filter_query(part) for part in condition.parts]
        return {"bool": {"filter": parts}} if parts else {"match_all": {}}
    if isinstance(condition, AnyOf):
        return _any([filter_query(part) for part in condition.parts])
    if isinstance(condition, Not):
        return {"bool": {"must_not": [filter_query(condition.part)]}}
    if isinstance(condition, HasId):
        return {"ids": {"values": [document_id(id) for id in condition.ids]}}
    field = _field(condition.key)
    if isinstance(condition, Exists):
        return {"term": {"facts": f"any:{field}"}}
    if isinstance(condition, IsIn):
        facts = [_fact(field, value) for value in condition.values if not isinstance(value, str)]
        strings = [_checked_string(value) for value in condition.values if isinstance(value, str)]
        wanted = {"facts": facts, f"strings.{field}": strings}
        return _any([{"terms": {name: values}} for name, values in wanted.items() if values])
    operator = condition.operator.removeprefix("$")
    if isinstance(condition.bound, str):
        return {"range": {f"strings.{field}": {operator: _checked_string(condition.bound)}}}
    return {"range": {f"numbers.{field}": {operator: _double(condition.bound)}}}


def _any(queries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"bool": {"should": queries, "minimum_should_match": 1}} if queries else {"match_none": {}}


def _field(key: str) -> str:
    """A key as a field's name, in which a dot would lead into objects, and a space or nothing be refused."""
    return quote(key, safe="").replace(".", "%2E") or "%"


def _fact(field: str, value: float | None) -> str:
    """A keyword for a value, the same for equal numbers and for no others."""
    if value is None or isinstance(value, bool):
        return f"{_PLAIN[value]}:{field}"
    return f"{int(value) if value == int(value) else value}:{field}"


def _double(value: float) -> float:
    """The nearest double, the largest one for integers beyond it."""
    try:
        return float(value)
    except OverflowError:
        return 1.7976931348623157e308 if value > 0 else -1.7976931348623157e308


def _checked_string(value: str) -> str:
    if len(value) > _MAX_CHARACTERS:
        raise ValueError(
            f"filter strings must have at most {_MAX_CHARACTERS} characters, got {len(value)} in {value!r:.40}. "
            "Keep something shorter in the metadata."
        )
    return value
