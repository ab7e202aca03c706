"""What a calibration accumulates: statistics of embeddings and literal terms, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.calibration.embedding_sample import EmbeddingSample
from st_keytokens.calibration.state_files import FORMAT_VERSION, State, state_hash
from st_keytokens.calibration.statistic import Statistic
from st_keytokens.calibration.term_counts import TermCounts, count_matrix
from st_keytokens.calibration.term_cross_moments import TermCrossMoments
from st_keytokens.checks import checked_float
from st_keytokens.first_component import Dense, FirstComponent, SecondMoments, check_embeddings
from st_keytokens.weighting import Corpus

if TYPE_CHECKING:
    from typing_extensions import Self


class CorpusStatistics:
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

    Example:
        >>> statistics = CorpusStatistics(2, vocab_size=4)
        >>> statistics.update(np.array([[1.0, 0.0], [3.0, 0.0]]), [np.array([1, 1, 2]), np.array([2])])
        >>> statistics.document_frequencies.tolist(), statistics.average_length
        ([0, 1, 2, 0], 2.0)
        >>> statistics.first_component.coefficient
        2.0
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
        self._first_component: FirstComponent | None = None
        self._idf: NDArray[np.float32] | None = None
        self._corpus: Corpus | None = None
        self._decoded_trust: float | None = None
        self._hash: str | None = None

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
        self._forget()

    def merge(self, other: Self) -> None:
        """Add everything that ``other`` was fitted on, as if it had been given to this one.

        In another order of merging, second moments differ by float64's rounding, and so does the hash. The one thing
        that is not as if fitted on both is ``decoded_trust``: the mean of the two, weighted by documents.

        Args:
            other: Of the same model, tokenizer and folding. Not modified.

        Raises:
            TypeError: If ``other`` is of another class.
            ValueError: If embedding dimension, model or vocabulary differ, or one has cross moments and one has not.
        """
        if not isinstance(other, type(self)):
            raise TypeError(f"other must be a {type(self).__name__}, got {type(other).__name__}.")
        self.check_same(other, "other")
        trusts = [(c.decoded_trust, c.document_count) for c in (self, other) if c.decoded_trust is not None]
        for name, statistic in self.statistics.items():
            statistic.merge(other.statistics[name])
        self._forget()
        if total := sum(count for _, count in trusts):
            self.decoded_trust = sum(trust * count for trust, count in trusts) / total

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

    @property
    def document_frequencies(self) -> NDArray[np.int64] | None:
        """Number of documents that hold each term, int64, shape ``(V,)``; None where no terms are counted."""
        return None if self.terms is None else self.terms.document_frequencies

    @property
    def total_terms(self) -> int:
        """Number of literal terms in all documents, with repetition; 0 where no terms are counted."""
        return 0 if self.terms is None else self.terms.total

    @property
    def first_component(self) -> FirstComponent:
        """First component of the embeddings, see :meth:`SecondMoments.first_component`; computed once, then kept.

        Raises:
            ValueError: If the calibration is empty, or all embeddings were zero.
        """
        if self._first_component is None:
            self._first_component = self.moments.first_component()
        return self._first_component

    @property
    def idf(self) -> NDArray[np.float32]:
        """Inverse document frequencies as in BM25, ``ln(1 + (N − df + 0.5) / (df + 0.5))``, float32, shape ``(V,)``.

        Computed once, then kept; read-only.

        Raises:
            ValueError: If no terms are counted.
        """
        if self._idf is None:
            frequencies = self._check_has_terms().document_frequencies.astype(np.float64)
            idf = np.log1p((self.document_count - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
            idf.flags.writeable = False
            self._idf = idf
        return self._idf

    @property
    def decoded_trust(self) -> float | None:
        """How far decoded terms can be trusted beside literal ones, see ``known_items``; None where not known."""
        return self._decoded_trust

    @decoded_trust.setter
    def decoded_trust(self, value: float | None) -> None:
        self._decoded_trust = None if value is None else checked_float("decoded_trust", value, minimum=0)
        self._corpus = self._hash = None

    @property
    def corpus(self) -> Corpus:
        """What weights need to know of the corpus; computed once, then kept."""
        if self._corpus is None:
            known: dict[str, Any] = {} if self.decoded_trust is None else {"decoded_trust": self.decoded_trust}
            if self.terms is not None and self.document_count > 0:
                shares = self.terms.document_frequencies / self.document_count
                norm = float(np.sqrt((shares * self.idf.astype(np.float64) ** 2).sum()))
                known |= {"idf": self.idf, "average_length": self.average_length, "literal_norm": norm}
            self._corpus = Corpus(**known)
        return self._corpus

    @property
    def average_length(self) -> float:
        """Mean number of literal terms of a document.

        Raises:
            ValueError: If no terms are counted, or there is no document.
        """
        terms = self._check_has_terms()
        if self.document_count == 0:
            raise ValueError("calibration must hold at least one document, got none. Fit it first.")
        return terms.total / self.document_count

    def _forget(self) -> None:
        """Drops what was derived from statistics that have changed."""
        self._first_component = self._idf = self._corpus = self._hash = None

    def _check_has_terms(self) -> TermCounts:
        if self.terms is None:
            raise ValueError(
                "calibration must have document frequencies, got one fitted on embeddings alone. Use Calibration.fit "
                "with the texts, and embeddings=... if those are stored."
            )
        return self.terms

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal, over all numbers that change a score; the same after saving and loading."""
        if self._hash is None:
            self._hash = state_hash(*self.to_state())
        return self._hash

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(embedding_dimension={self.embedding_dimension}, "
            f"document_count={self.document_count}, vocab_size={self.vocab_size}, model_name={self.model_name!r})"
        )

    def to_state(self, *, has_first_component: bool = True) -> State:
        """Everything as tensors, named after their statistic, and JSON values.

        Args:
            has_first_component: Whether a first component is stored; LAPACKs differ in the last bit.

        Returns:
            Tensors and settings.
        """
        tensors = {
            f"{name}.{key}": tensor
            for name, statistic in self.statistics.items()
            for key, tensor in statistic.to_tensors().items()
        }
        names = (
            "embedding_dimension",
            "document_count",
            "vocab_size",
            "vocabulary_hash",
            "model_name",
            "has_cross_moments",
            "decoded_trust",
        )
        settings = {"format_version": FORMAT_VERSION, **{name: getattr(self, name) for name in names}}
        if has_first_component and bool(self.moments.second_moment.any()):
            component = self.first_component
            tensors["first_component.direction"] = component.direction
            settings |= {"coefficient": component.coefficient, "singular_value": component.singular_value}
        return tensors, settings

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_state`.

        Args:
            tensors: As given by it; the calibration takes hold of them.
            settings: As given by it.

        Returns:
            The calibration.
        """
        calibration = cls(
            settings["embedding_dimension"],
            vocab_size=settings["vocab_size"],
            vocabulary_hash=settings["vocabulary_hash"],
            model_name=settings["model_name"],
            fit_decoder=settings["has_cross_moments"],
        )
        for name, statistic in calibration.statistics.items():
            own = {key.removeprefix(f"{name}."): tensors[key] for key in tensors if key.startswith(f"{name}.")}
            setattr(calibration, name, type(statistic).from_tensors(own))
        calibration.decoded_trust = settings["decoded_trust"]
        if "first_component.direction" in tensors:
            calibration._first_component = FirstComponent(
                tensors["first_component.direction"], settings["coefficient"], settings["singular_value"]
            )
        return calibration
