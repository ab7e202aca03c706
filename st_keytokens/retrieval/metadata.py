"""Metadata of frameworks as JSON, which filters can look into, and back as it was."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

import numpy as np

__all__ = ["KINDS_KEY", "as_instants", "as_json", "as_json_list", "json_value", "restored"]

KINDS_KEY = "_keytokens_kinds"  # beside the metadata: what JSON does not tell apart, by position

_ZONED_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*([Zz]|[+-]\d\d:?\d\d(:?\d\d)?)")

_KINDS: dict[type, tuple[str, Callable[[Any], Any]]] = {  # the most special first: a datetime is a date
    datetime.datetime: ("datetime", datetime.datetime.isoformat),
    datetime.date: ("date", datetime.date.isoformat),
    PurePath: ("path", str),
    UUID: ("uuid", str),
    tuple: ("tuple", list),
}
_BACK: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.datetime.fromisoformat,
    "instant": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "path": Path,
    "uuid": UUID,
    "tuple": tuple,
}


def as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as a JSON object: dates in ISO format, paths and UUIDs as strings, tuples as lists, numpy as Python.

    A datetime with a time zone is kept in UTC, so that two of them compare as instants; it comes back with its offset.

    Args:
        metadata: Not modified.

    Returns:
        A new dictionary, which :func:`restored` turns back.

    Raises:
        TypeError: If a key is no string, or a value is of another type; the error names the key.
        ValueError: If a number is not finite, or the key that is kept for the types is taken.

    >>> as_json({"date": datetime.date(2024, 5, 1)})
    {'date': '2024-05-01', '_keytokens_kinds': [[['date'], 'date']]}
    """
    if KINDS_KEY in metadata:
        raise ValueError(f"metadata must not have the key {KINDS_KEY!r}, which is used inside. Rename it.")
    kinds: list[list[Any]] = []
    found: dict[str, Any] = _plain(dict(metadata), [], kinds)
    return {**found, KINDS_KEY: kinds} if kinds else found


def as_json_list(metadata: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any] | None]:
    """:func:`as_json` of each, None for None.

    Raises:
        TypeError: If one is no dictionary, and see :func:`as_json`.
    """
    for entry in metadata:
        if entry is not None and not isinstance(entry, Mapping):
            raise TypeError(f"metadata must be dictionaries, got {type(entry).__name__} {entry!r:.60}.")
    return [None if entry is None else as_json(entry) for entry in metadata]


def restored(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`as_json` was given, numpy numbers as Python's.

    >>> restored(as_json({"pages": (1, 2)}))
    {'pages': (1, 2)}
    """
    found = dict(metadata)
    for path, kind in found.pop(KINDS_KEY, []):  # what is inside comes before what holds it
        holder: Any = found
        for step in path[:-1]:
            holder = holder[step]
        name, _, offset = kind.partition(" ")
        value = _BACK[name](holder[path[-1]])
        if offset:
            value = value.astimezone(datetime.timezone(datetime.timedelta(seconds=float(offset))))
        holder[path[-1]] = value
    return found


def json_value(value: Any) -> Any:
    """A value of metadata or of a filter in the form that the index keeps: what :func:`as_json` makes of it.

    Args:
        value: JSON, dates, paths, UUIDs, tuples, numpy numbers, or dictionaries and lists of them. Not modified.

    Raises:
        TypeError: If a value is of another type; the error names its key.
        ValueError: If a number is not finite.

    >>> json_value({"date": {"$gte": datetime.date(2024, 5, 1)}})
    {'date': {'$gte': '2024-05-01'}}
    """
    return _plain(value, [], [])


def as_instants(value: Any) -> Any:
    """A JSON value with the times that name their time zone, in ISO format, in UTC: their texts compare as they do.

    Args:
        value: Not modified.

    >>> as_instants({"at": {"$gte": "2024-05-01T10:00:00+02:00"}, "day": "2024-05-01"})
    {'at': {'$gte': '2024-05-01T08:00:00+00:00'}, 'day': '2024-05-01'}
    """
    if isinstance(value, Mapping):
        return {key: as_instants(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_instants(part) for part in value]
    if not isinstance(value, str) or not _ZONED_TIME.fullmatch(value):
        return value
    try:
        time = datetime.datetime.fromisoformat(value[:-1] + "+00:00" if value[-1] in "Zz" else value)
        return value if time.tzinfo is None else time.astimezone(datetime.timezone.utc).isoformat()
    except (ValueError, OverflowError):
        return value


def _plain(value: Any, path: list[Any], kinds: list[list[Any]]) -> Any:
    if isinstance(value, np.generic):  # some of which are Python's strings and floats as well
        return _plain(value.item(), path, kinds)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"metadata must have finite numbers, got {value} for {_name(path)}.")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"metadata must have strings as keys, got {key!r:.60} in {_name(path)}.")
        return {key: _plain(part, [*path, key], kinds) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part, [*path, number], kinds) for number, part in enumerate(value)]
    if isinstance(value, datetime.datetime) and (offset := value.utcoffset()) is not None:
        kinds.append([path, f"instant {offset.total_seconds()}"])
        return value.astimezone(datetime.timezone.utc).isoformat()  # instants, which compare as their texts do
    for kind, (name, convert) in _KINDS.items():
        if isinstance(value, kind):
            found = _plain(convert(value), path, kinds)
            kinds.append([path, name])
            return found
    raise TypeError(
        f"metadata must be strings, numbers, booleans, None, dates, paths, lists or dictionaries, got "
        f"{type(value).__name__} for {_name(path)}. Turn it into one of them, or leave it out."
    )


def _name(path: list[Any]) -> str:
    return repr(".".join(map(str, path))) if path else "the metadata"
