"""A snapshot: the rows of an index at one commit, numbered through its segments, and which of them are alive."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from st_keytokens.index.kernels import padded
from st_keytokens.index.segments import MAX_MERGED_ROWS, Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.index.segments import Postings
    from st_keytokens.index.store import Store

__all__ = ["Snapshot"]

_MOST_WORDS = 100_000  # that are remembered
_LEAST_WORN = 1024  # dead rows, below which nothing is gained


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What one commit holds. A row is a number: its segment's first row plus its place there.

    Attributes:
        generation: The number of the commit.
        next_key: The key of the next document.
        settings: The settings of the index.
        segments: The live segments in order of insertion.
        dead: Rows that are deleted, ascending.
    """

    generation: int
    next_key: int
    settings: dict[str, Any]
    segments: tuple[Segment, ...]
    dead: NDArray[np.int64]

    @classmethod
    def load(cls, store: Store, connection: sqlite3.Connection, known: Mapping[str, Segment]) -> Snapshot:
        """Load the snapshot of a transaction, opening the segments that are not known yet.

        Raises:
            FileNotFoundError: If a file is missing, as when a writer has removed it since.
            ValueError: If a file is damaged.
        """
        segments = tuple(
            known.get(name) or Segment.open(store.segments / name, files)
            for name, files in store.segment_files(connection).items()
        )
        snapshot = cls(*store.state(connection), segments, np.empty(0, np.int64))
        dead = snapshot.rows(store.dead_keys(connection))
        return cls(snapshot.generation, snapshot.next_key, snapshot.settings, segments, dead)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First row of each segment, and the number of rows at the end."""
        return np.cumsum([0, *map(len, self.segments)], dtype=np.int64)

    @cached_property
    def postings(self) -> list[Postings]:
        """Those of the segments."""
        return [segment.postings for segment in self.segments]

    @cached_property
    def num_rows(self) -> int:
        """Number of rows, dead ones included."""
        return int(self.starts[-1])

    def __len__(self) -> int:
        return self.num_rows - len(self.dead)

    @cached_property
    def alive(self) -> NDArray[np.bool_] | None:
        """Mask of the rows that may be found, :func:`padded`; None where all may."""
        if not len(self.dead):
            return None
        mask = np.ones(padded(self.num_rows), np.bool_)
        mask[self.dead] = False
        return mask

    def mask(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mask of the rows of some documents, given by ascending key, :func:`padded`."""
        mask = np.zeros(padded(self.num_rows), np.bool_)
        mask[self.rows(keys)] = True
        return mask

    def rows(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of some documents, given by ascending key, without those that no segment holds."""
        found = [np.empty(0, np.int64)]
        for start, segment in zip(self.starts.tolist(), self.segments, strict=False):
            near = keys[np.searchsorted(keys, segment.keys[0]) : np.searchsorted(keys, segment.keys[-1], "right")]
            places = np.searchsorted(segment.keys, near)
            found.append(start + places[segment.keys[places] == near])
        return np.concatenate(found)

    def keys(self, rows: NDArray[np.int64]) -> list[int]:
        """Keys of some rows, in their order."""
        if len(self.segments) == 1:
            return self.segments[0].keys[rows].tolist()  # type: ignore[no-any-return]
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        keys = np.empty(len(rows), np.int64)
        for number in np.unique(numbers).tolist():
            is_here = numbers == number
            keys[is_here] = self.segments[number].keys[rows[is_here] - self.starts[number]]
        return keys.tolist()  # type: ignore[no-any-return]

    def dead_keys(self, numbers: range) -> list[int]:
        """Keys of the dead rows of some consecutive segments."""
        first, last = np.searchsorted(self.dead, self.starts[[numbers.start, numbers.stop]])
        return self.keys(self.dead[first:last])

    def living_keys(self) -> NDArray[np.int64]:
        """Keys of all documents, ascending."""
        keys = np.concatenate([np.empty(0, np.int64), *(segment.keys for segment in self.segments)])
        return np.delete(keys, self.dead)

    def place(self, key: int) -> tuple[Segment, int]:
        """The segment that holds a document, and its row there."""
        (row,) = self.rows(np.array([key], np.int64)).tolist()
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.segments[number], row - int(self.starts[number])

    def alive_in(self, number: int) -> NDArray[np.bool_] | None:
        """Mask of the rows of a segment that are alive; None where all are."""
        start, stop = self.starts[number : number + 2].tolist()
        first, last = np.searchsorted(self.dead, (start, stop))
        if first == last:
            return None
        mask = np.ones(stop - start, np.bool_)
        mask[self.dead[first:last] - start] = False
        return mask

    @cached_property
    def _factors(self) -> dict[Any, dict[int, float]]:
        """Factors of words that are remembered, for the last calibration that was asked for."""
        return {}

    def word_factors(self, calibration: Any) -> dict[int, float]:
        """What is remembered of words for a calibration, to be added to; see ``word_rarity``."""
        remembered = self._factors.get(calibration)
        if remembered is None or len(remembered) > _MOST_WORDS:
            self._factors.clear()
            remembered = self._factors[calibration] = {}
        return remembered

    def document_frequencies(self, terms: Sequence[int], at_least: Sequence[float]) -> list[int]:
        """In how many documents each term has at least some weight."""
        return [
            sum(self._count(number, term, least) for number in range(len(self.segments)))
            for term, least in zip(terms, at_least, strict=True)
        ]

    def _count(self, number: int, term: int, at_least: float) -> int:
        """In how many living documents of a segment a term has at least some weight."""
        postings, alive = self.segments[number].postings, self.alive_in(number)
        position = int(np.searchsorted(postings.terms, term))
        if position == len(postings.terms) or postings.terms[position] != term:
            return 0
        rows, weights = postings.of_term(position)
        rows = rows[(weights > 0) & (weights >= at_least)]  # the steps of wide gaps have a weight of 0
        return len(rows) if alive is None else int(np.count_nonzero(alive[rows]))

    def tail(self, num_rows: int) -> range:
        """The last segments that so many new rows are written together with.

        A segment is taken while it has no more living rows than follow it, so sizes at least halve from one segment to
        the next, and there are never more of them than the logarithm of the number of rows.
        """
        first = len(self.segments)
        while first:
            living = self._num_living(first - 1)
            if living > num_rows or num_rows + living > MAX_MERGED_ROWS:
                break
            num_rows += living
            first -= 1
        return range(first, len(self.segments))

    def worn(self) -> int | None:
        """The segment with the most dead rows, if it is worth writing anew without them; None where none is.

        A dead row then costs at most four times the writing of a living one, and a fifth of all rows are dead at most.
        """
        numbers_dead = np.diff(np.searchsorted(self.dead, self.starts))
        if not len(numbers_dead):
            return None
        number = int(np.argmax(numbers_dead))
        num_dead = int(numbers_dead[number])
        is_worn = num_dead >= _LEAST_WORN and 4 * num_dead >= len(self.segments[number]) - num_dead
        return number if is_worn else None

    def groups(self) -> list[range]:
        """Consecutive segments that fit into one, covering all."""
        groups, first, num_rows = [], 0, 0
        for number in range(len(self.segments)):
            living = self._num_living(number)
            if number > first and num_rows + living > MAX_MERGED_ROWS:
                groups.append(range(first, number))
                first, num_rows = number, 0
            num_rows += living
        return [*groups, range(first, len(self.segments))]

    def _num_living(self, number: int) -> int:
        first, last = np.searchsorted(self.dead, self.starts[number : number + 2])
        return len(self.segments[number]) - int(last - first)
