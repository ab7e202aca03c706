"""A text's own terms, as alignment counts them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Definition", "OwnTerms", "own_terms"]

Definition = Literal["clean", "nie2025"]


class OwnTerms(NamedTuple):
    """A text's own terms, and how many decoded ones are held against them.

    Attributes:
        ids: Distinct ids, ascending, int64.
        cut: Decoded terms that the alignment rates look at.
    """

    ids: NDArray[np.int64]
    cut: int


def own_terms(ids: NDArray[np.int64], definition: Definition = "clean", k: int = 10) -> OwnTerms:
    """The terms of a text and the cut of its decoded terms.

    Args:
        ids: Ids of the text's tokens or terms, with repetition.
        definition: ``"clean"`` cuts at the number of distinct ids. ``"nie2025"`` cuts where the published code does:
            at the number of ids with repetition, yet at ``k`` at most, since it keeps no more.
        k: Decoded ids that ``"nie2025"`` keeps.

    Returns:
        The terms.

    >>> own_terms(np.array([5, 3, 5, 5])).cut, own_terms(np.array([5, 3, 5, 5]), "nie2025").cut
    (2, 4)
    """
    distinct = np.unique(ids).astype(np.int64)
    return OwnTerms(distinct, len(distinct) if definition == "clean" else min(len(ids), k))
