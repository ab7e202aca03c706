"""What goes into an index and what comes out: documents, hits, matched terms."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

__all__ = ["Document", "Hit", "MatchedTerm", "checked_strings", "hits", "packed_metadata"]

_MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document.

    Attributes:
        id: Its id.
        text: Its text, or None where none was given.
        metadata: Its metadata, empty where none was given.
    """

    id: str
    text: str | None
    metadata: dict[str, Any]


@dataclass(slots=True)  # freezing would triple the time that it takes to make one
class Hit:
    """A found document.

    Attributes:
        id: Its id.
        score: What the ranking is by: the sparse or dense score, or the fused one.
        rank: Its rank, from 1.
        text: Its text, or None where none was given.
        metadata: Its metadata, empty where none was given.
        scores: The scores behind it: ``"sparse"``, ``"dense"`` or, in a hybrid search, of the sides that found it.
        is_hybrid: Whether both sides were searched.
    """

    id: str
    score: float
    rank: int
    text: str | None
    metadata: dict[str, Any]
    scores: dict[str, float]
    is_hybrid: bool = False


@dataclass(frozen=True, slots=True)
class MatchedTerm:
    """A term that a query and a document share.

    Attributes:
        term_id: Its token id.
        token: The token, readable, or None where the index has no encoder.
        query_weight: Its weight in the query.
        document_weight: Its weight in the document.
        contribution: Their product. The contributions sum to the sparse score.
    """

    term_id: int
    token: str | None
    query_weight: float
    document_weight: float
    contribution: float


def hits(
    fields: Sequence[tuple[str, str | None, dict[str, Any]]],
    scored: Sequence[tuple[float, dict[str, float]]],
    is_hybrid: bool,
) -> list[Hit]:
    """Hits from found documents' ids, texts and metadata, and their scores and those behind them, best first."""
    return [
        Hit(name, score, rank, text, metadata, scores, is_hybrid)
        for rank, ((name, text, metadata), (score, scores)) in enumerate(zip(fields, scored, strict=True), 1)
    ]


def checked_strings(name: str, values: Collection[str], length: int | None = None) -> list[str]:
    """A list of strings; where a length is given, an ordered one of that length.

    Raises:
        TypeError: If it is a single string, no collection, or holds something else.
        ValueError: If the length differs.
    """
    is_unordered = isinstance(values, (Set, Mapping)) and length is not None
    if isinstance(values, (str, bytes)) or not isinstance(values, Collection) or is_unordered:
        raise TypeError(f"{name} must be a list of strings, got {type(values).__name__} {values!r:.60}.")
    strings = list(values)
    for value in strings:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be strings, got {type(value).__name__} {value!r:.60}.")
    if length is not None and len(strings) != length:
        raise ValueError(f"{name} must be as many as there are documents, {length}, got {len(strings)}.")
    return strings


def packed_metadata(metadata: Sequence[Mapping[str, Any] | None], length: int) -> list[str | None]:
    """Metadata as JSON texts, None for none, all checked.

    Raises:
        TypeError: If one is no mapping, or holds what JSON does not.
        ValueError: If the length differs, a number is not finite, a string is no valid Unicode or holds NUL, or one is
            nested more than 100 deep.
    """
    if isinstance(metadata, (str, bytes, Mapping)) or not isinstance(metadata, Sequence):
        raise TypeError(f"metadata must be a list with one dictionary per document, got {type(metadata).__name__}.")
    if len(metadata) != length:
        raise ValueError(f"metadata must be as many as there are documents, {length}, got {len(metadata)}.")
    packed: list[str | None] = []
    for position, entry in enumerate(metadata):
        if entry is not None and not isinstance(entry, Mapping):
            raise TypeError(f"metadata must be dictionaries, got {type(entry).__name__} at position {position}.")
        packed.append(_json(dict(entry), position) if entry else None)
    return packed


def _json(entry: dict[str, Any], position: int) -> str:
    """JSON that reads back as it was written, and that SQLite reads alike."""
    where = f"(position {position})"
    _check_json(entry, 0, where)
    try:
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError as err:
        raise ValueError(f"metadata must be valid Unicode, got {err.object[err.start]!r} {where}.") from err
    except TypeError as err:
        raise TypeError(f"metadata must be a JSON object: {err} {where}.") from err
    except ValueError as err:
        raise ValueError(f"metadata must be a JSON object: {err} {where}.") from err
    if json.loads(text) != entry:
        raise TypeError(
            f"metadata must be a JSON object that reads back unchanged, got {entry!r:.80} {where}. "
            "Use strings as keys, and lists instead of tuples."
        )
    return text


def _check_json(value: Any, depth: int, where: str) -> None:
    """Refuse what SQLite does not read: NUL, and deep nesting."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"metadata must be nested at most {_MAX_DEPTH} deep {where}.")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"metadata must not contain NUL characters {where}.")
    if isinstance(value, (Mapping, list, tuple)):
        for part in value:
            _check_json(part, depth + 1, where)
        for part in value.values() if isinstance(value, Mapping) else ():
            _check_json(part, depth + 1, where)
