"""What is written into a collection: ids, embeddings, texts and metadata, checked once for all engines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from st_keytokens.index.dense import checked_dense
from st_keytokens.index.documents import checked_strings, packed_metadata
from st_keytokens.index.store import as_hybrid
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

__all__ = ["Records", "check_whole_numbers"]

_NUMBER_BYTES = 24  # of a float32 or an index in JSON, with its separator


@dataclass(frozen=True, eq=False)
class Records:
    """Documents to be written.

    Attributes:
        ids: Their ids: any valid Unicode without NUL, none twice.
        embeddings: Their embeddings; SparseEmbeddings are taken as HybridEmbeddings without dense rows.
        texts: Their texts, None for those without; None where none has one.
        metadata: A JSON object for each, None for those without; None where none has any.

    Raises:
        TypeError: If an attribute is of the wrong type, or metadata is no JSON object.
        ValueError: If lengths differ, an id is twice or no valid Unicode, a text is no valid Unicode, a dense value or
            norm is not finite, or a weight is not, or is so large that a score would not be.

    >>> rows = SparseEmbeddings.from_dicts([{2: 1.0}, {}, {7: 0.5}], vocab_size=9)
    >>> records = Records(["a", "b", "c"], rows, metadata=[{"year": 1999}, None, {"year": 2024}])
    >>> [part.ids for part in records.split(max_rows=2, max_bytes=10_000)]
    [['a', 'b'], ['c']]
    """

    ids: Sequence[str]
    embeddings: HybridEmbeddings | SparseEmbeddings
    texts: Sequence[str | None] | None = None
    metadata: Sequence[Mapping[str, Any] | None] | None = None

    def __post_init__(self) -> None:
        embeddings = as_hybrid("embeddings", self.embeddings)
        embeddings.sparse.check_weights("embeddings")
        size = len(embeddings)
        ids = checked_strings("ids", self.ids, size)
        _check_unicode("ids", ids)
        if len(set(ids)) < size:
            twice, _ = Counter(ids).most_common(1)[0]
            raise ValueError(f"ids must be unique, got {twice!r:.60} twice. Keep the one that is meant.")
        if self.texts is not None:
            if isinstance(self.texts, str) or len(self.texts) != size:
                raise ValueError(f"texts must be as many as there are documents, {size}, got {len(self.texts)}.")
            _check_unicode("texts", checked_strings("texts", [text for text in self.texts if text is not None]))
        if self.metadata is not None:
            packed_metadata(self.metadata, size)
        if embeddings.dense is not None:
            checked_dense("embeddings", embeddings.dense, "float32")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "embeddings", embeddings)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> Records:
        """Consecutive records, without checking them again."""
        part = object.__new__(Records)
        object.__setattr__(part, "ids", self.ids[rows])
        object.__setattr__(part, "embeddings", self.hybrid[rows])
        object.__setattr__(part, "texts", None if self.texts is None else self.texts[rows])
        object.__setattr__(part, "metadata", None if self.metadata is None else self.metadata[rows])
        return part

    @property
    def hybrid(self) -> HybridEmbeddings:
        """The embeddings, of the one type."""
        return as_hybrid("embeddings", self.embeddings)

    def text(self, row: int) -> str | None:
        """The text of a record."""
        return None if self.texts is None else self.texts[row]

    def metadata_of(self, row: int) -> dict[str, Any]:
        """The metadata of a record, empty where there are none."""
        return {} if self.metadata is None else dict(self.metadata[row] or {})

    def split(self, max_rows: int, max_bytes: int) -> Iterator[Records]:
        """Consecutive parts, each small enough for one request.

        Args:
            max_rows: At most so many records in a part.
            max_bytes: At most so many bytes of JSON in a part, estimated from above; a part has one record at least.
        """
        sizes = self.hybrid.sparse.active_dims * (2 * _NUMBER_BYTES) + 200
        if self.hybrid.dense is not None:
            sizes = sizes + self.hybrid.dense.shape[1] * _NUMBER_BYTES
        strings = [len(json.dumps([self.ids[row], self.text(row), self.metadata_of(row)])) for row in range(len(self))]
        ends = np.cumsum(sizes + np.array(strings, dtype=np.int64))
        start = 0
        while start < len(self):
            before = ends[start - 1] if start else 0
            fitting = int(np.searchsorted(ends, before + max_bytes, side="right"))
            stop = max(start + 1, min(fitting, start + max_rows))
            yield self[start:stop]
            start = stop


def _check_unicode(name: str, strings: Sequence[str]) -> None:
    for value in strings:
        if any("\ud800" <= character <= "\udfff" for character in value) or (name == "ids" and "\0" in value):
            rule = "valid Unicode without NUL" if name == "ids" else "valid Unicode"
            raise ValueError(f"{name} must be {rule}, got {value!r:.60}.")


def check_whole_numbers(value: Any, id: str) -> None:
    """Refuse whole numbers beyond 64 bits, which some engines would keep as rounded floats without a word.

    Args:
        value: Metadata, or a part of them.
        id: The document's id, for the error.

    Raises:
        ValueError: If there is one.

    >>> check_whole_numbers({"year": 2024, "counts": [2**63 - 1]}, "a")
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(
            f"metadata must have whole numbers of 64 bits, got {value} in document {id!r:.60}. Keep it as a string."
        )
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            check_whole_numbers(part, id)
