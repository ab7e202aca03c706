"""Searching a snapshot: sparse, dense, or both fused, into rows with scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from st_keytokens.checks import check_choice, checked_int
from st_keytokens.index.dense import best_dense, checked_dense
from st_keytokens.index.documents import MatchedTerm
from st_keytokens.index.fusion import FUSIONS, Fusion
from st_keytokens.index.kernels import Kernel, Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.index.segments import Postings
    from st_keytokens.index.snapshot import Snapshot
    from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

__all__ = ["Mode", "Plan", "matched_terms"]

Mode = Literal["hybrid", "sparse", "dense"]
Scored = tuple[float, dict[str, float]]

_MODES = ("hybrid", "sparse", "dense")


@dataclass(slots=True)
class Plan:
    """How to search, checked.

    Attributes:
        mode: What to rank by.
        top_k: At most so many rows a query.
        depth: How many rows of each side are fused; None for ``max(100, 10 * top_k)``.
        fusion: The name of a fusion, or a function.
        weights: The sides' factors in it.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is below 1, or a name is unknown.
    """

    mode: Mode
    top_k: int
    depth: int | None
    fusion: str | Fusion
    weights: Mapping[str, float] | None

    def __post_init__(self) -> None:
        self.top_k = checked_int("top_k", self.top_k, minimum=1)
        if self.depth is not None:
            self.depth = checked_int("depth", self.depth, minimum=1)
        check_choice("mode", self.mode, _MODES)
        if not callable(self.fusion) and self.fusion not in FUSIONS:
            raise ValueError(
                f"fusion must be one of {', '.join(map(repr, FUSIONS))} or a function, got {self.fusion!r}."
            )

    def rank(
        self,
        snapshot: Snapshot,
        queries: HybridEmbeddings,
        mask: NDArray[np.bool_] | None,
        kernel: Kernel,
        scores: NDArray[np.float32],
    ) -> Iterator[tuple[NDArray[np.int64], list[Scored]]]:
        """Rank the rows of a snapshot for each query.

        Args:
            snapshot: What to search.
            queries: Embeddings over its vocabulary, and in its dimension where the mode needs dense rows.
            mask: Rows that may be found, padded; None for all.
            kernel: What computes sparse scores.
            scores: Its work space, padded.

        Yields:
            The best rows of each query, and for each the score and those of the sides behind it.
        """
        limit = self.top_k if self.mode != "hybrid" else self.depth or max(100, 10 * self.top_k)
        sides: dict[str, Iterator[Ranking]] = {}
        if self.mode != "sparse":
            sides["dense"] = _dense(snapshot, queries, mask, limit)
        if self.mode != "dense":
            best, postings = kernel.best, snapshot.postings
            sides["sparse"] = (best(postings, *query, scores, mask, limit) for query in queries.sparse)
        if self.mode != "hybrid":
            for rows, found in sides[self.mode]:
                yield rows, [(score, {self.mode: score}) for score in found.tolist()]
            return
        fuse = self.fusion if callable(self.fusion) else FUSIONS[self.fusion]
        for rankings in zip(*sides.values(), strict=True):
            pairs = [list(zip(rows.tolist(), found.tolist(), strict=True)) for rows, found in rankings]
            fused = fuse(dict(zip(sides, pairs, strict=True)), weights=self.weights)[: self.top_k]
            yield np.array([hit.id for hit in fused], np.int64), [(hit.score, hit.components) for hit in fused]


def _dense(
    snapshot: Snapshot, queries: HybridEmbeddings, mask: NDArray[np.bool_] | None, limit: int
) -> Iterator[Ranking]:
    if queries.dense is None:
        raise ValueError("queries must have dense rows for this mode, got none. Use mode='sparse'.")
    rows = np.arange(snapshot.num_rows) if mask is None else np.flatnonzero(mask[: snapshot.num_rows])
    parts = [segment.dense for segment in snapshot.segments if segment.dense is not None]
    dense = checked_dense("queries", queries.dense, "float32")
    return best_dense(parts, dense, snapshot.settings["similarity"], rows, limit)


def matched_terms(
    postings: Postings, row: int, query: SparseEmbeddings, strings: Sequence[str] | None
) -> list[MatchedTerm]:
    """The terms that the first query shares with a row, by falling contribution, ties by term id."""
    matched = []
    for term, weight in zip(*query.row(0), strict=True):
        held = postings.weight(term, row)
        if held:
            token = None if strings is None else strings[term]
            matched.append(MatchedTerm(int(term), token, float(weight), held, float(weight * np.float32(held))))
    return sorted(matched, key=lambda match: (-match.contribution, match.term_id))
