"""Filters over LangChain documents as filters of our index."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from langchain_core.documents import Document
from st_keytokens.retrieval import Filter, host_filter, host_filter_keys

__all__ = ["DocumentFilter", "filter_keys", "index_filter"]

DocumentFilter = Mapping[str, Any] | Callable[[Document], bool] | Collection[str]


def index_filter(filter: DocumentFilter | None) -> Filter | None:
    """A filter over LangChain documents as one over those of the index.

    Args:
        filter: A dictionary in the language of ``st_keytokens.index.filters``, read as stores read theirs; a function
            of a ``Document``; or a collection of ids.

    Raises:
        TypeError: If it holds a value that cannot be compared.
        ValueError: If a dictionary has an unknown operator, or a key that cannot be looked for.
    """
    if isinstance(filter, Mapping):
        return host_filter(filter)
    if not callable(filter):
        return filter
    return lambda found: filter(Document(id=found.id, page_content=found.text or "", metadata=found.metadata))


def filter_keys(filter: DocumentFilter | None) -> list[str]:
    """The metadata keys that a filter asks for; none for a function or ids."""
    return host_filter_keys(filter) if isinstance(filter, Mapping) else []
