"""Values of terms by their ids, for vocabularies of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DENSE = 1 << 22  # terms up to which an array of the whole vocabulary is small, and is what is saved and looked up in


class TermValues:
    """Values of some terms, and one for all others, looked up as in an array of the whole vocabulary.

    Args:
        ids: The terms, ascending, int64, shape ``(n,)``.
        values: Their values, shape ``(n,)``.
        default: The value of every other term.

    Example:
        >>> TermValues(np.array([3, 7]), np.array([1.5, 2.5]), 0.5)[np.array([7, 4, 3])].tolist()
        [2.5, 0.5, 1.5]
    """

    def __init__(self, ids: NDArray[np.int64], values: NDArray[Any], default: float = 0) -> None:
        self.ids, self.values, self.default = ids, values, default

    def __getitem__(self, ids: NDArray[Any]) -> NDArray[Any]:
        places, is_known = self._find(ids)
        found = np.full(len(ids), self.default, dtype=self.values.dtype)
        found[is_known] = self.values[places[is_known]]
        return found

    def has(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each term has a value of its own."""
        return self._find(ids)[1]

    def _find(self, ids: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each term would stand, and whether it does."""
        places = np.searchsorted(self.ids, ids)
        is_known = places < len(self.ids)
        is_known[is_known] = self.ids[places[is_known]] == ids[is_known]
        return places, is_known

    def plus(self, ids: NDArray[Any], values: NDArray[Any]) -> TermValues:
        """With values added to those of some terms, ``ids`` ascending; the default is 0."""
        every = np.union1d(self.ids, ids)
        total = self[every]
        total[np.searchsorted(every, ids)] += values
        return TermValues(every, total, self.default)

    def dense(self, vocab_size: int) -> NDArray[Any]:
        """An array of the whole vocabulary, shape ``(V,)``."""
        every = np.full(vocab_size, self.default, dtype=self.values.dtype)
        every[self.ids] = self.values
        return every
