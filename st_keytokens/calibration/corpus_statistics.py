"""What follows from the statistics of a corpus: first component, idf, what weights need; and its saved state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.calibration.accumulated_statistics import AccumulatedStatistics
from st_keytokens.calibration.state_files import FORMAT_VERSION, State, state_hash
from st_keytokens.calibration.term_counts import TermCounts
from st_keytokens.checks import checked_float
from st_keytokens.first_component import Dense, FirstComponent
from st_keytokens.weighting import Corpus

if TYPE_CHECKING:
    from typing_extensions import Self


class CorpusStatistics(AccumulatedStatistics):
    """Statistics of a corpus's embeddings and literal terms, and what follows from them.

    Takes the arguments and has the attributes of :class:`AccumulatedStatistics`.

    Example:
        >>> statistics = CorpusStatistics(2, vocab_size=4)
        >>> statistics.update(np.array([[1.0, 0.0], [3.0, 0.0]]), [np.array([1, 1, 2]), np.array([2])])
        >>> statistics.document_frequencies.tolist(), statistics.average_length
        ([0, 1, 2, 0], 2.0)
        >>> statistics.first_component.coefficient
        2.0
    """

    _first_component: FirstComponent | None = None  # each of these as it was last computed
    _idf: NDArray[np.float32] | None = None
    _corpus: Corpus | None = None
    _decoded_trust: float | None = None
    _hash: str | None = None

    def update(self, embeddings: Dense, term_ids: Sequence[NDArray[Any]] | None = None) -> None:
        """See :meth:`AccumulatedStatistics.update`."""
        super().update(embeddings, term_ids)
        self._forget()

    def merge(self, other: Self) -> None:
        """See :meth:`AccumulatedStatistics.merge`.

        Only ``decoded_trust`` is not as if fitted on both: it is the mean of the two, weighted by documents.
        """
        given = (self.decoded_trust, self.document_count)
        super().merge(other)
        self._forget()
        both = (given, (other.decoded_trust, other.document_count))
        trusts = [(trust, count) for trust, count in both if trust is not None]
        if total := sum(count for _, count in trusts):
            self.decoded_trust = sum(trust * count for trust, count in trusts) / total

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
