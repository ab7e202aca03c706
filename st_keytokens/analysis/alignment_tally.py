"""Counting alignment, a batch of decoded terms at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from st_keytokens.analysis.alignment_intervals import global_rate, mean_estimates
from st_keytokens.analysis.alignment_result import Alignment, TextAlignments
from st_keytokens.analysis.alignment_terms import Definition, OwnTerms

__all__ = ["AlignmentTally"]


class AlignmentTally:
    """Counts how many of each text's decoded terms are its own; holds a few numbers and the hit terms of each text.

    Args:
        vocab_size: Number of terms.
        ks: Numbers of decoded terms for Hit@k and shares.

    >>> tally = AlignmentTally(vocab_size=3, ks=[1, 2])
    >>> tally.update(np.array([[2, 0, 1]]), [OwnTerms(np.array([0, 1]), cut=2)])
    >>> tally.result("clean").table().splitlines()[-1]
    '|  | 0.000 | 0.000 | 0.500 | 0.500 |'
    """

    def __init__(self, vocab_size: int, ks: Sequence[int]) -> None:
        self._vocab_size = vocab_size
        self._ks = np.array(sorted(set(ks)), dtype=np.int64)
        self._count = 0
        self._positions: list[int] = []
        self._own: list[OwnTerms] = []
        self._hits: list[NDArray[np.int64]] = []  # own terms among the first k, (batch_size, len(ks))
        self._found: list[NDArray[np.int64]] = []  # own terms up to the cut
        self._answers: list[int] = []  # decoded terms up to the cut

    def update(self, decoded: NDArray[np.int64], own: Sequence[OwnTerms]) -> None:
        """Adds texts.

        Args:
            decoded: Distinct decoded ids of each text, best first, shape ``(batch_size, depth)``; -1 where a text has
                no more.
            own: The texts' own terms; a text without any is counted and left out.
        """
        rows = np.array([row for row, terms in enumerate(own) if len(terms.ids)], dtype=np.int64)
        texts = [own[row] for row in rows]
        self._positions += (rows + self._count).tolist()
        self._count += len(own)
        if not texts:
            return
        decoded = decoded[rows]
        is_own = np.zeros((len(rows), self._vocab_size + 1), dtype=bool)  # the last column is -1's
        is_own[
            np.repeat(np.arange(len(rows)), [len(t.ids) for t in texts]), np.concatenate([t.ids for t in texts])
        ] = True
        is_hit = np.take_along_axis(is_own, decoded, axis=1)
        totals = np.pad(is_hit.cumsum(axis=1), ((0, 0), (1, 0)))
        self._hits.append(totals[:, np.minimum(self._ks, decoded.shape[1])])
        self._own += texts
        for ids, hits, terms in zip(decoded, is_hit, texts, strict=True):
            self._found.append(ids[: terms.cut][hits[: terms.cut]])
            self._answers.append(int((ids[: terms.cut] >= 0).sum()))

    def result(
        self, definition: Definition, *, confidence: float = 0.95, samples: int = 1000, seed: int = 0
    ) -> Alignment:
        """The rates of all texts so far.

        Args:
            definition: What the cuts were made by.
            confidence: Of the intervals, between 0 and 1.
            samples: Resamplings of the texts.
            seed: Of the random numbers.

        Returns:
            The alignment.

        Raises:
            ValueError: If no text has a term.
        """
        if not self._own:
            raise ValueError(
                f"texts must hold at least one with a term that counts, got {self._count} without any. Give texts "
                "with words, or raise max_document_share."
            )
        counts = np.array([len(terms.ids) for terms in self._own], dtype=np.int64)
        hits = np.concatenate(self._hits)
        found = np.array([len(ids) for ids in self._found], dtype=np.float64)
        texts = TextAlignments(
            np.array(self._positions, dtype=np.int64),
            counts,
            hits > 0,
            hits / np.minimum(self._ks, counts[:, None]),
            found / counts,
            found / np.maximum(self._answers, 1),
        )
        columns = [texts.is_hit, texts.shares, texts.local_alignment_rates[:, None], texts.precisions[:, None]]
        values = np.hstack(columns).astype(np.float64)
        estimates = mean_estimates(values, confidence=confidence, samples=samples, seed=seed)
        ks = self._ks.tolist()
        own = [terms.ids for terms in self._own]
        return Alignment(
            definition,
            len(counts),
            self._count - len(counts),
            dict(zip(ks, estimates, strict=False)),
            dict(zip(ks, estimates[len(ks) :], strict=False)),
            estimates[-2],
            global_rate(self._found, own, self._vocab_size, confidence=confidence),
            estimates[-1],
            texts,
        )
