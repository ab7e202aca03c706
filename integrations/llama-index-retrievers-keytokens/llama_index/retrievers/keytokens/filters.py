"""LlamaIndex's metadata filters in the language of our index."""

from __future__ import annotations

import datetime
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from st_keytokens.index import Document
from st_keytokens.retrieval import json_value

__all__ = ["filter_keys", "index_filter", "joined_filters", "metadata_test", "metadata_value"]

IndexFilter = Mapping[str, Any] | Callable[[Document], bool]

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
}
_INSIDE = (FilterOperator.ANY, FilterOperator.ALL, FilterOperator.CONTAINS)
_ORDERED = {
    FilterOperator.GT: operator.gt,
    FilterOperator.GTE: operator.ge,
    FilterOperator.LT: operator.lt,
    FilterOperator.LTE: operator.le,
}
_PLAIN_KEY = re.compile(r'[^."\\\x00-\x1f\ud800-\udfff]*')  # others are no plain key of the database
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def index_filter(filters: MetadataFilters | None) -> IndexFilter | None:
    """LlamaIndex filters as a filter of our index.

    Values compare as in LlamaIndex's own store: true is 1 and false 0. Dates and times in the metadata compare as
    instants with what a filter names in ISO format; without a time zone they are UTC. A key with dots leads into
    nested dictionaries where no key of that name is there.

    Comparisons, and ``ANY``, ``ALL`` and ``CONTAINS``, which look into lists, strings and the keys of dictionaries,
    are looked up in the database; those with dates or nested keys, the text matches and ``IS_EMPTY`` are tested node
    by node. A document without the key matches ``NE``, ``NIN`` and ``IS_EMPTY`` only; strings and numbers are unequal.

    Args:
        filters: Filters, nested as deep as wanted; None for none.

    Returns:
        A filter for the index, or None if there is nothing to filter by.

    Raises:
        TypeError: If they are no ``MetadataFilters``.
        ValueError: If an operator needs a list and has none, or the other way round.
    """
    whole = joined_filters(filters)
    if whole is None:
        return None
    if _is_comparison(whole):
        return _dictionary(whole)
    check = metadata_test(whole)
    return lambda document: check(document.metadata)


def joined_filters(*filters: MetadataFilters | None) -> MetadataFilters | None:
    """Filters that hold where all of some do; None for none.

    Raises:
        TypeError: If one is no ``MetadataFilters``.
    """
    parts: list[MetadataFilter | MetadataFilters] = []
    for given in filters:
        if given is not None and not isinstance(given, MetadataFilters):
            raise TypeError(f"filters must be MetadataFilters, got {type(given).__name__} {given!r:.60}.")
        if given is not None and given.filters:
            parts.append(given)
    if len(parts) == 1:
        return cast("MetadataFilters", parts[0])
    return MetadataFilters(filters=parts) if parts else None


def filter_keys(filters: MetadataFilters | None) -> list[str]:
    """The keys that filters ask for, each once."""
    found: dict[str, None] = {}
    for part in [] if filters is None else filters.filters:
        found.update(dict.fromkeys([part.key] if isinstance(part, MetadataFilter) else filter_keys(part)))
    return list(found)


def _is_comparison(filters: MetadataFilters | MetadataFilter) -> bool:
    """Whether the database can look it up."""
    if isinstance(filters, MetadataFilters):
        return all(map(_is_comparison, filters.filters))
    values = filters.value if isinstance(filters.value, list) else [filters.value]
    has_date = any(isinstance(value, str) and _DATE.match(value) for value in values)
    is_known = filters.operator in _OPERATORS or (filters.operator in _INSIDE and all(map(_is_plain_part, values)))
    return is_known and not has_date and bool(_PLAIN_KEY.fullmatch(filters.key))


def _is_plain_part(value: Any) -> bool:
    """Whether the database can look for it as a key too."""
    return not isinstance(value, str) or (bool(_PLAIN_KEY.fullmatch(value)) and not value.startswith("$"))


def _dictionary(filters: MetadataFilters | MetadataFilter) -> dict[str, Any]:
    if isinstance(filters, MetadataFilter):
        _check_value(filters)
        return _comparison(filters.key, filters.operator, filters.value)
    parts = [_dictionary(part) for part in filters.filters]
    if not parts:
        return {}
    if filters.condition is FilterCondition.NOT:
        return {"$not": {"$or": parts}}
    return {"$or" if filters.condition is FilterCondition.OR else "$and": parts}


def _comparison(key: str, name: FilterOperator, value: Any) -> dict[str, Any]:
    """One comparison, in which true is 1 and false 0, as in Python and unlike in the database."""
    if name in _INSIDE:
        return _inside(key, name, value)
    if name in _ORDERED:
        plain = {key: {_OPERATORS[name]: value}}
        if isinstance(value, str):
            return plain
        passing = [truth for truth in (False, True) if _ORDERED[name](truth, value)]
        return {"$or": [plain, {key: {"$in": passing}}]}
    values = value if isinstance(value, list) else [value]
    truths = [truth for truth in (False, True) if truth in values]
    among = "$in" if name in (FilterOperator.EQ, FilterOperator.IN) else "$nin"
    return {key: {among: [*values, *truths]}}


def _inside(key: str, name: FilterOperator, value: Any) -> dict[str, Any]:
    """What looks into lists, strings and dictionaries, of which the keys count."""
    parts: list[dict[str, Any]] = []
    for part in value if isinstance(value, list) else [value]:
        same = [part, *(truth for truth in (False, True) if truth == part)]
        found: dict[str, Any] = {key: {"$any": same}}
        if isinstance(part, str):
            found = {"$or": [found, {key: {"$within": {part: {"$exists": True}}}}]}
        parts.append(found)
    if name is FilterOperator.ALL:
        return {"$and": [{key: {"$exists": True, "$ne": None}}, *parts]}
    return {"$or": parts} if parts else {key: {"$any": []}}


def metadata_value(metadata: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or what its dots lead to; None where there is none."""
    if key in metadata or "." not in key:
        return metadata.get(key)
    found: Any = metadata
    for step in key.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(step)
    return found


def metadata_test(
    filters: MetadataFilters | MetadataFilter, *, reads_dates: bool = False
) -> Callable[[Mapping[str, Any]], bool]:
    """A function that tells of metadata whether filters let them through, as :func:`index_filter` does.

    Args:
        filters: The filters.
        reads_dates: Whether strings in ISO format are dates too, as in a store that keeps these as strings.
    """
    if isinstance(filters, MetadataFilter):
        _check_value(filters)
        return lambda metadata: _holds(filters, _plain(metadata_value(metadata, filters.key), reads_dates))
    parts = [metadata_test(part, reads_dates=reads_dates) for part in filters.filters]
    if not parts:
        return lambda metadata: True
    if filters.condition is FilterCondition.NOT:
        return lambda metadata: not any(part(metadata) for part in parts)
    if filters.condition is FilterCondition.OR:
        return lambda metadata: any(part(metadata) for part in parts)
    return lambda metadata: all(part(metadata) for part in parts)


def _check_value(given: MetadataFilter) -> None:
    needs_list = given.operator in (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
    if given.operator is not FilterOperator.IS_EMPTY and needs_list != isinstance(given.value, list):
        rule = "a list" if needs_list else "a single value"
        raise ValueError(f"filter {given.operator.name} on {given.key!r} must have {rule}, got {given.value!r:.60}.")
    is_text = given.operator in (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)
    if is_text and not isinstance(given.value, str):
        raise ValueError(f"filter {given.operator.name} on {given.key!r} must have a string, got {given.value!r:.60}.")


def _holds(given: MetadataFilter, found: Any) -> bool:
    """Whether a value of the metadata, None where there is none, is what one filter asks for."""
    value: Any = given.value
    match given.operator:
        case FilterOperator.EQ:
            return _is_same(found, value)
        case FilterOperator.NE:
            return not _is_same(found, value)
        case FilterOperator.IN:
            return any(_is_same(found, part) for part in value)
        case FilterOperator.NIN:
            return not any(_is_same(found, part) for part in value)
        case FilterOperator.IS_EMPTY:
            return found is None or found == "" or found == []
        case FilterOperator.TEXT_MATCH:
            return isinstance(found, str) and value in found
        case FilterOperator.TEXT_MATCH_INSENSITIVE:
            return isinstance(found, str) and value.lower() in found.lower()
        case FilterOperator.CONTAINS:
            return _contains(found, value)
        case FilterOperator.ANY:
            return any(_contains(found, part) for part in value)
        case FilterOperator.ALL:
            return found is not None and all(_contains(found, part) for part in value)
    if isinstance(found, datetime.date):
        found, value = _comparable_dates(found, value)
    return _is_comparable(found, value) and bool(_ORDERED[given.operator](found, value))


def _plain(found: Any, reads_dates: bool) -> Any:
    """A value of the metadata as the index keeps it, but dates as dates."""
    if isinstance(found, datetime.date):
        return found
    if isinstance(found, (list, tuple)):
        return [_plain(part, reads_dates) for part in found]
    if reads_dates and isinstance(found, str):
        return _instant(found) or found
    return json_value(found)


def _contains(found: Any, value: Any) -> bool:
    if isinstance(found, str):
        return isinstance(value, str) and value in found
    if isinstance(found, Mapping):
        return value in found
    return isinstance(found, (list, tuple)) and any(_is_same(part, value) for part in found)


def _is_same(found: Any, value: Any) -> bool:
    if isinstance(found, datetime.date):
        found, value = _comparable_dates(found, value)
    return bool(found == value)


def _is_comparable(found: Any, value: Any) -> bool:
    for kind in (str, datetime.datetime):
        if isinstance(value, kind):
            return isinstance(found, kind)
    return isinstance(found, (int, float))


def _comparable_dates(found: datetime.date, value: Any) -> tuple[Any, Any]:
    """A date and what it is compared with as instants, or as strings where that is no date."""
    instant = _instant(value)
    return (found.isoformat(), value) if instant is None else (_instant(found), instant)


def _instant(value: Any) -> datetime.datetime | None:
    """A date, or what names one in ISO format, as a time in UTC, which is its time zone where it has none."""
    if isinstance(value, str) and _DATE.match(value):
        try:
            value = datetime.datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value)
        except ValueError:
            return None
    if not isinstance(value, datetime.date):
        return None
    midnight = datetime.datetime(value.year, value.month, value.day)
    time = value if isinstance(value, datetime.datetime) else midnight
    return time.replace(tzinfo=datetime.timezone.utc) if time.tzinfo is None else time
