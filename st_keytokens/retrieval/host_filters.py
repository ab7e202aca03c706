"""Filters over metadata as the vector stores of frameworks read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from st_keytokens.index.filters import (
    AllOf,
    AnyOf,
    Condition,
    Exists,
    Filter,
    HasElement,
    HasId,
    IsIn,
    Not,
    Within,
    filter_operands,
    parse_filter,
)
from st_keytokens.retrieval.metadata import as_instants, json_value

__all__ = ["host_filter", "host_filter_keys"]


def host_filter(filter: Mapping[str, Any]) -> Filter:
    """A dictionary in our language, read as most stores read theirs.

    What is asked of a value may be that of an element of a list, so that ``$ne`` and ``$nin`` leave out a list that
    has one; a key with dots leads into nested dictionaries where no key of that name is there; and times in ISO format
    that name their time zone are instants.

    Args:
        filter: The dictionary; dates and the like are as in metadata. Not modified.

    Raises:
        TypeError: If it holds a value that cannot be compared.
        ValueError: If it has an unknown operator, or a key that cannot be looked for.

    >>> host_filter({"tags": "star"}).matches("", {"tags": ["gas", "star"]})
    True
    >>> host_filter({"author.name": {"$ne": "Ada"}}).matches("", {"author": {"name": "Ada"}})
    False
    """
    said = json_value(filter)
    condition = _as_stores_compare(parse_filter(as_instants(said)))
    if as_instants(said) == said:
        return condition
    return lambda document: condition.matches(document.id, as_instants(json_value(document.metadata)))


def host_filter_keys(filter: Mapping[str, Any]) -> list[str]:
    """The metadata keys that a dictionary asks for."""
    return list(filter_operands(parse_filter(json_value(filter))))


def _as_stores_compare(condition: Any) -> Condition:
    """A condition that looks into lists and along dots too."""
    if isinstance(condition, (AllOf, AnyOf)):
        return replace(condition, parts=tuple(map(_as_stores_compare, condition.parts)))
    if isinstance(condition, (Not, Within)):
        return replace(condition, part=_as_stores_compare(condition.part))
    if isinstance(condition, HasId):
        return condition
    plain = _or_element(condition)
    first, *steps = condition.key.split(".")
    if not steps:
        return plain
    inner: Condition = _or_element(replace(condition, key=steps[-1]))
    for step in reversed([first, *steps[:-1]]):
        inner = Within(step, inner)
    return AnyOf((plain, AllOf((Not(Exists(condition.key)), inner))))


def _or_element(condition: Any) -> Condition:
    if isinstance(condition, IsIn):
        return AnyOf((condition, HasElement(condition.key, condition.values)))
    return condition  # type: ignore[no-any-return]  # one of the other leaves
