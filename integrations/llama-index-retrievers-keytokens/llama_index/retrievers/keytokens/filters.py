"""LlamaIndex's metadata filters in the language of our index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from st_keytokens.index import Document
from st_keytokens.retrieval import json_value

__all__ = ["index_filter", "joined_filters", "metadata_test"]

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


def index_filter(filters: MetadataFilters | None) -> IndexFilter | None:
    """LlamaIndex filters as a filter of our index.

    Comparisons are looked up in the database. ``ANY``, ``ALL``, ``CONTAINS``, the text matches and ``IS_EMPTY``, which
    look into lists and strings, are tested on every document. A document without the key matches ``NE``, ``NIN`` and
    ``IS_EMPTY`` only; values of different types are unequal.

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


def _is_comparison(filters: MetadataFilters | MetadataFilter) -> bool:
    if isinstance(filters, MetadataFilters):
        return all(map(_is_comparison, filters.filters))
    return filters.operator in _OPERATORS


def _dictionary(filters: MetadataFilters | MetadataFilter) -> dict[str, Any]:
    if isinstance(filters, MetadataFilter):
        _check_value(filters)
        return {filters.key: {_OPERATORS[filters.operator]: filters.value}}
    parts = [_dictionary(part) for part in filters.filters]
    if not parts:
        return {}
    if filters.condition is FilterCondition.NOT:
        return {"$not": {"$or": parts}}
    return {"$or" if filters.condition is FilterCondition.OR else "$and": parts}


def metadata_test(filters: MetadataFilters | MetadataFilter) -> Callable[[Mapping[str, Any]], bool]:
    """A function that tells of metadata whether filters let them through, as :func:`index_filter` does."""
    if isinstance(filters, MetadataFilter):
        _check_value(filters)
        return lambda metadata: _holds(filters, json_value(metadata.get(filters.key)))
    parts = [metadata_test(part) for part in filters.filters]
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
        case FilterOperator.CONTAINS if isinstance(found, str):
            return isinstance(value, str) and value in found
        case FilterOperator.CONTAINS:
            return _contains(found, value)
        case FilterOperator.ANY:
            return any(_contains(found, part) for part in value)
        case FilterOperator.ALL:
            return all(_contains(found, part) for part in value)
    return (
        _is_comparable(found, value)
        and {
            FilterOperator.GT: found > value,
            FilterOperator.GTE: found >= value,
            FilterOperator.LT: found < value,
            FilterOperator.LTE: found <= value,
        }[given.operator]
    )


def _contains(found: Any, value: Any) -> bool:
    return isinstance(found, (list, tuple)) and any(_is_same(part, value) for part in found)


def _is_same(found: Any, value: Any) -> bool:
    if isinstance(found, bool) != isinstance(value, bool):
        return False  # true is not 1
    return bool(found == value)


def _is_comparable(found: Any, value: Any) -> bool:
    if isinstance(value, str):
        return isinstance(found, str)
    return isinstance(found, (int, float)) and not isinstance(found, bool)
