"""What a calibration accumulates of a corpus: statistics of embeddings and literal terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from st_keytokens.calibration.embedding_sample import EmbeddingSample
from st_keytokens.calibration.statistic import Statistic
from st_keytokens.calibration.term_counts import TermCounts, count_matrix
from st_keytokens.calibration.term_cross_moments import TermCrossMoments
from st_keytokens.first_component import Dense, SecondMoments, check_embeddings

if TYPE_CHECKING:
    from typing_extensions import Self


class AccumulatedStatistics:
    """Statistics of a corpus's embeddings and literal terms, accumulated batch by batch; parts of a corpus merge.

    Args:
        embedding_dimension: Width ``d`` of the embeddings.
        vocab_size: Size ``V`` of the vocabulary; None: literal terms are not counted.
        vocabulary_hash: Hash of the vocabulary that the terms belong to.
        model_name: Name of the embedder, for messages and to refuse another one's calibration.
        fit_decoder: Whether cross moments of embeddings and terms are kept, where terms are counted: ``4 d`` bytes a
            term that occurs.

    Attributes:
        moments: Second moments of the embeddings. As all statistics, changed by :meth:`update` and :meth:`merge` only.
        sample: Up to 1024 of the embeddings, for heads that are not affine.
        terms: Counts of the literal terms, or None.
        cross_moments: Cross moments of embeddings and literal terms, for the ridge decoder, or None.
        vocab_size: As given.
        vocabulary_hash: As given.
        model_name: As given.

    Raises:
        TypeError: If ``embedding_dimension`` or ``vocab_size`` is not an integer.
        ValueError: If one is below 1.
    """

    def __init__(
        self,
        embedding_dimension: int,
        *,
        vocab_size: int | None = None,
        vocabulary_hash: str | None = None,
        model_name: str | None = None,
        fit_decoder: bool = True,
    ) -> None:
        self.moments = SecondMoments(embedding_dimension)
        self.sample = EmbeddingSample(embedding_dimension)
        self.terms = None if vocab_size is None else TermCounts(vocab_size)
        self.cross_moments = (
            None if vocab_size is None or not fit_decoder else TermCrossMoments(embedding_dimension, vocab_size)
        )
        self.vocab_size = vocab_size
        self.vocabulary_hash = vocabulary_hash
        self.model_name = model_name

    def update(self, embeddings: Dense, term_ids: Sequence[NDArray[Any]] | None = None) -> None:
        """Add documents; on an error nothing is added.

        Args:
            embeddings: Pooled embeddings, shape ``(batch_size, d)``, any float dtype and device. Not modified.
            term_ids: Literal terms of each document, folded, with repetition, integers in ``[0, V)``. Wanted exactly
                if the calibration has a ``vocab_size``.

        Raises:
            TypeError: If embeddings are not floating-point or term ids not integers.
            ValueError: If a shape is wrong, an embedding is not finite, a term id is out of range, or ``term_ids`` is
                missing or not wanted.
        """
        check_embeddings(embeddings, self.moments.embedding_dimension)
        if (term_ids is None) != (self.vocab_size is None):
            raise ValueError(
                f"term_ids must be given exactly if the calibration has a vocab_size, got vocab_size "
                f"{self.vocab_size} and {'no' if term_ids is None else len(term_ids)} term_ids."
            )
        counts = None
        if term_ids is not None and self.vocab_size is not None:
            if len(term_ids) != len(embeddings):
                raise ValueError(
                    f"term_ids must have one entry an embedding, got {len(term_ids)} for {len(embeddings)} embeddings."
                )
            counts = count_matrix(term_ids, self.vocab_size)
        self.moments.update(embeddings)  # checks the values before it adds them: from here on nothing fails
        self.sample.update(embeddings)
        if self.terms is not None and counts is not None:
            self.terms.update(counts)
        if self.cross_moments is not None and counts is not None:
            self.cross_moments.update(embeddings, counts)

    def merge(self, other: Self) -> None:
        """Add everything that ``other`` was fitted on, as if it had been given to this one.

        In another order of merging, second moments differ by float64's rounding.

        Args:
            other: Of the same model, tokenizer and folding. Not modified.

        Raises:
            TypeError: If ``other`` is of another class.
            ValueError: If embedding dimension, model or vocabulary differ, or one has cross moments and one has not.
        """
        if not isinstance(other, type(self)):
            raise TypeError(f"other must be a {type(self).__name__}, got {type(other).__name__}.")
        self.check_same(other, "other")
        for name, statistic in self.statistics.items():
            statistic.merge(other.statistics[name])

    def check_same(self, other: Self, label: str) -> None:
        """Check that a calibration can be merged with this one.

        Args:
            other: The calibration.
            label: What errors call it.

        Raises:
            ValueError: If its embedding dimension, model or vocabulary is another one, or just one of the two has
                cross moments.
        """
        for name in ("embedding_dimension", "model_name", "vocab_size", "vocabulary_hash", "has_cross_moments"):
            mine, others = (getattr(c, name) for c in (self, other))
            if mine != others:
                raise ValueError(
                    f"{label} must have {name} {mine!r}, got {others!r}. Calibrations fit together only for the same "
                    "model, tokenizer and folding, and the same fit_decoder."
                )

    @property
    def statistics(self) -> dict[str, Statistic]:
        """What the corpus is reduced to, by name; each is merged and saved by itself."""
        statistics: dict[str, Statistic] = {"moments": self.moments, "sample": self.sample}
        if self.terms is not None:
            statistics["terms"] = self.terms
        if self.cross_moments is not None:
            statistics["cross_moments"] = self.cross_moments
        return statistics

    @property
    def has_cross_moments(self) -> bool:
        """Whether cross moments of embeddings and terms are kept."""
        return self.cross_moments is not None

    @property
    def embedding_dimension(self) -> int:
        """Width of the embeddings."""
        return self.moments.embedding_dimension

    @property
    def document_count(self) -> int:
        """Number of documents, or of embeddings where no terms are counted; documents without terms count."""
        return self.moments.count
