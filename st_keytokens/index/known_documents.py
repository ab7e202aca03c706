"""Documents that were read from an index: the last ones or, where the index is small, soon all.

SQLite takes longer for ten of them than a search of some ten thousand rows. A key is never given to another document,
so what was read stays true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["KnownDocuments", "PackedFields"]

PackedFields = tuple[str, str | None, str | None]
"""Id, text and metadata, as JSON."""

_MAX_KNOWN_CHARACTERS = 1 << 22  # where not all are kept
_MAX_CHARACTERS = 1 << 25  # where all are
_MAX_FILE = 1 << 24  # bytes of a database whose documents are all kept
_OVERHEAD = 200  # of a document, in characters
_MISSES = 64  # once one in so many documents was read, all are, where they fit


class KnownDocuments:
    """What is kept of the documents that were read. Threads need no lock: what one forgets is read again.

    Attributes:
        fields: By key: a dictionary or, where all are kept, a list, which costs a search fewer cache misses.
    """

    def __init__(self) -> None:
        self._num_missed, self._due = 0, _MISSES
        self.begin(is_whole=False)

    def begin(self, is_whole: bool) -> None:
        """Forgets all, to keep all or the last ones from then on."""
        self.fields: dict[int, PackedFields] | list[PackedFields | None] = [] if is_whole else {}
        self._num_characters = 0

    def among(self, keys: Sequence[int]) -> dict[int, PackedFields]:
        """Those of some documents that are known, by key."""
        fields = self.fields
        if isinstance(fields, dict):
            return {key: fields[key] for key in keys if key in fields}
        return {key: found for key in keys if key < len(fields) and (found := fields[key]) is not None}

    def is_due(self, num_missed: int) -> bool:
        """Whether, with these, so many were missed that it is to be asked whether all fit."""
        self._num_missed += num_missed
        return self._num_missed >= self._due

    def fits(self, next_key: int, num_bytes: int) -> bool:
        """Whether enough were missed, for the number of documents, to keep all, and they take little enough.

        Args:
            next_key: That of the next document.
            num_bytes: Of the database.
        """
        self._due = max(_MISSES, next_key // _MISSES)
        if self._num_missed < self._due:
            return False
        self._num_missed = 0
        return num_bytes <= _MAX_FILE and num_bytes + next_key * _OVERHEAD <= _MAX_CHARACTERS

    def add(self, read: Mapping[int, PackedFields]) -> None:
        """Keeps documents; where there are too many, none."""
        fields = self.fields
        is_whole = isinstance(fields, list)
        self._num_characters += sum(
            _OVERHEAD + len(name) + len(text or "") + len(metadata or "") for name, text, metadata in read.values()
        )
        if self._num_characters > (_MAX_CHARACTERS if is_whole else _MAX_KNOWN_CHARACTERS):
            self.begin(is_whole=False)
        elif isinstance(fields, dict):
            fields.update(read)
        elif read:
            fields.extend([None] * (max(read) + 1 - len(fields)))
            for key, found in read.items():
                fields[key] = found
