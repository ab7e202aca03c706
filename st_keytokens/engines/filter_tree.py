"""Filters as a tree of conditions, checked once, for engines to translate.

The language is that of :mod:`st_keytokens.index.filters`, without functions, which an engine cannot call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from st_keytokens.index.documents import checked_strings
from st_keytokens.index.filters import filter_sql

__all__ = ["AllOf", "AnyOf", "Comparison", "Condition", "Exists", "HasId", "IsIn", "Not", "parse_filter"]


Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class AllOf:
    """All of some conditions; of none: true."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one of some conditions."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Not:
    """The opposite, true as well where a key is missing."""

    part: Condition


@dataclass(frozen=True)
class IsIn:
    """The value of a key is one of some, of the same type: numbers are one type, true is not 1. Of none: false."""

    key: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Comparison:
    """The value of a key, a number or a string as the bound is, compares with it; strings by code point."""

    key: str
    operator: Literal["$gt", "$gte", "$lt", "$lte"]
    bound: str | int | float


@dataclass(frozen=True)
class Exists:
    """The key is there, with null as well."""

    key: str


@dataclass(frozen=True)
class HasId:
    """The document's id is one of some; of none: false."""

    ids: tuple[str, ...]


Condition = AllOf | AnyOf | Not | IsIn | Comparison | Exists | HasId


def parse_filter(filter: Mapping[str, Any] | Collection[str]) -> Condition:
    """The tree of a filter.

    Args:
        filter: A dictionary in the language of :mod:`st_keytokens.index.filters`, or a collection of ids.

    Raises:
        TypeError: If it is something else, such as a function, or holds a value that cannot be compared.
        ValueError: If it has an unknown operator, or a key or value that is not allowed.

    >>> parse_filter({"year": {"$gte": 2000}})
    Comparison(key='year', operator='$gte', bound=2000)
    >>> parse_filter({"language": {"$ne": "en"}})
    Not(part=IsIn(key='language', values=('en',)))
    """
    if isinstance(filter, Mapping):
        filter_sql(filter)  # the rules of the language, and the errors
        return _tree(filter)
    if isinstance(filter, Callable):  # type: ignore[arg-type]
        raise TypeError(
            "filter must be a dictionary or a collection of ids, got a function. An engine cannot call it."
        )
    return HasId(tuple(dict.fromkeys(checked_strings("filter", filter))))


def _tree(filter: Mapping[str, Any]) -> Condition:
    parts: list[Condition] = []
    for key, value in filter.items():
        if key == "$and":
            parts.append(AllOf(tuple(map(_tree, value))))
        elif key == "$or":
            parts.append(AnyOf(tuple(map(_tree, value))))
        elif key == "$not":
            parts.append(Not(_tree(value)))
        elif isinstance(value, Mapping):
            parts += [_operator(key, operator, operand) for operator, operand in value.items()]
        else:
            parts.append(IsIn(key, (value,)))
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _operator(key: str, operator: str, operand: Any) -> Condition:
    if operator in ("$eq", "$in"):
        return IsIn(key, tuple(operand) if operator == "$in" else (operand,))
    if operator in ("$ne", "$nin"):
        return Not(IsIn(key, tuple(operand) if operator == "$nin" else (operand,)))
    if operator == "$exists":
        return Exists(key) if operand else Not(Exists(key))
    return Comparison(key, operator, operand)  # type: ignore[arg-type]  # filter_sql knows no others
