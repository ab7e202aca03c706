"""What every side of scale.py is given and asked: documents with their texts and labels, and queries.

A side's hits come with their texts. The labels of a document are for filters: ``half`` is one of 2 numbers,
``percent`` one of 100 and ``myriad`` one of 10,000, each as frequent as the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from st_keytokens.sparse_embeddings import SparseEmbeddings

TOP_K = 10
LABELS = {"half": 2, "percent": 100, "myriad": 10_000}
FILTERS = (*LABELS, "new")  # one that comes again and again for each label, and one that every query has for itself
Where = tuple[str, Any] | None
Found = list[tuple[int, float]]


class Side(Protocol):
    """What is asked of a side, of dense search only the first four. A document's id is its number."""

    def load(self, documents: SparseEmbeddings) -> None: ...

    def open(self) -> None: ...

    def prepare(self, query: SparseEmbeddings) -> Any: ...

    def search(self, query: Any, where: Where) -> Found: ...

    def add(self, documents: SparseEmbeddings, first: int) -> None: ...

    def delete(self, numbers: list[int]) -> None: ...

    def compact(self) -> None: ...


def where_of(filter: str | None, query: int) -> Where:
    """What a query's filter asks for."""
    if filter is None:
        return None
    return ("percent", query % LABELS["percent"]) if filter == "new" else (filter, 1)


def text_of(number: int) -> str:
    return f"document {number}: a line of text to be fetched with the hit"


def labels_of(number: int) -> dict[str, int]:
    """Labels without order: neighbouring documents have different ones."""
    scattered = number * 7919 % LABELS["myriad"]
    return {name: scattered % count for name, count in LABELS.items()}


TAGS = 1000


def wide_labels_of(number: int) -> dict[str, Any]:
    """Labels, and what every document has for itself: a number, a name and a list; of the last, TAGS elements."""
    labels = labels_of(number)
    tags = [f"tag {number * step % TAGS}" for step in (7919, 104_729)]
    return {**labels, "number": number / 2, "name": f"name {number}", "tags": tags, "date": _date(number)}


def _date(number: int) -> str:
    return f"{2000 + number % 25}-{1 + number % 12:02d}-{1 + number % 28:02d}"


def filter_kinds(num_documents: int) -> dict[str, Iterator[Where]]:
    """By kind, filters that are new one after the other, of which the first touches its key."""
    turns = range(1, 51)
    step = num_documents // 200
    return {
        "one of 100 numbers": (("percent", turn) for turn in turns),
        "one of 10,000 numbers": (("myriad", turn) for turn in turns),
        "a range of dates": (("date", {"$gte": f"2010-{1 + turn % 12:02d}-{1 + turn % 28:02d}"}) for turn in turns),
        "a range of distinct numbers": (("number", {"$gte": turn * step, "$lt": (turn + 2) * step}) for turn in turns),
        "one of the distinct strings": (("name", f"name {turn}") for turn in turns),
        "an element of lists": (("tags", {"$contains": f"tag {turn}"}) for turn in turns),
        "a part of distinct strings": (("name", {"$contains": f"{turn}99"}) for turn in turns),
    }
