"""What a hybrid search asks for, and how two rankings are fused here, as in our index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from st_keytokens.engines.filter_tree import Condition
from st_keytokens.fusion import FUSIONS, Fusion
from st_keytokens.index.documents import Hit

__all__ = ["SIDES", "FusedSearch", "Side"]

Side = Literal["sparse", "dense"]

SIDES: tuple[Side, Side] = ("dense", "sparse")


@dataclass(frozen=True)
class FusedSearch:
    """A hybrid search, its arguments checked.

    Attributes:
        top_k: At most so many hits a query.
        depth: How many hits of each side are fused.
        fusion: A name or a function.
        weights: Factors of the sides; None where nobody gave any.
        condition: Which documents may be found; None for all.
    """

    top_k: int
    depth: int
    fusion: str | Fusion
    weights: Mapping[str, float] | None
    condition: Condition | None

    @property
    def has_equal_weights(self) -> bool:
        """Whether each side counts as much as the other, as where an engine takes no weights."""
        return self.weights is None or set(self.weights.values()) == {1.0}

    def refuse_weights(self) -> None:
        """For fusions that have none.

        Raises:
            ValueError: If there are some.
        """
        if self.weights is not None:
            raise ValueError(f"weights must be None for fusion={self.fusion!r}, which has none. Use fusion='score'.")

    def fused(self, rankings: Mapping[str, list[Hit]]) -> list[Hit]:
        """The hits of both sides in one ranking, with what each side gave to a hit."""
        fuse = self.fusion if callable(self.fusion) else FUSIONS[self.fusion]
        hits = {hit.id: hit for ranking in rankings.values() for hit in ranking}
        pairs = {side: [(hit.id, hit.score) for hit in ranking] for side, ranking in rankings.items()}
        return [
            Hit(fused.id, fused.score, rank, hits[fused.id].text, hits[fused.id].metadata, fused.components, True)
            for rank, fused in enumerate(fuse(pairs, weights=self.weights)[: self.top_k], 1)
        ]
