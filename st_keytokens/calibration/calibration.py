"""Calibration: what one pass over a corpus teaches about its embeddings and terms."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from st_keytokens.calibration.fitting import (
    FORMAT_VERSION,
    CalibrationEncoder,
    Chunk,
    State,
    embedding_chunks,
    read_directory,
    read_progress,
    state_hash,
    text_chunks,
    unequal,
    write_directory,
    write_progress,
)
from st_keytokens.calibration.moments import (
    EmbeddingSample,
    SecondMoments,
    Statistic,
    TermCounts,
    TermCrossMoments,
    affine_statistics,
    count_matrix,
    sample_statistics,
)
from st_keytokens.calibration.ridge import RidgeDecoder, RidgeRegression, RidgeSolution
from st_keytokens.calibration.trust import KnownItems, decoded_trust
from st_keytokens.decoding.first_component import Correction, Dense, FirstComponent, check_embeddings, correct
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.shared.checks import checked_float, checked_int
from st_keytokens.shared.hashes import fingerprint
from st_keytokens.terms.term_values import DENSE, TermValues
from st_keytokens.terms.weighting import Corpus
from st_keytokens.terms.words import WordNames, Words

ENOUGH_DOCUMENTS = 1000  # with fewer, the ridge decoder is shrunk: results/quality-tokens.md, calibrated elsewhere
_SHRINKAGE = 3.0


class Calibration:
    """What one pass over a corpus teaches about its embeddings and terms: fitted, saved, applied to an LM head.

    Fit one with :meth:`fit` or :meth:`fit_embeddings`; the constructor gives an empty one, to be filled by
    :meth:`update` and :meth:`merge`; parts of a corpus merge.

    Args:
        embedding_dimension: Width ``d`` of the embeddings.
        vocab_size: Size ``V`` of the vocabulary; None: literal terms are not counted.
        vocabulary_hash: Hash of the vocabulary that the terms belong to.
        model_name: Name of the embedder, for messages and to refuse another one's calibration.
        stemmer: Version of PyStemmer that the terms are of, see :meth:`~st_keytokens.terms.words.Words.keeping`; None:
            not stemmed, or not known.
        fit_decoder: Whether cross moments of embeddings and terms are kept, where terms are counted: ``4 d`` bytes
            per term that occurs.

    Attributes:
        moments: Second moments of the embeddings. As all statistics, changed by :meth:`update` and :meth:`merge` only.
        sample: Up to 1024 of the embeddings, for heads that are not affine.
        terms: Counts of the literal terms, or None.
        cross_moments: Cross moments of embeddings and literal terms, for the ridge decoder, or None.
        vocab_size: As given.
        vocabulary_hash: As given.
        model_name: As given.
        stemmer: As given.
        names: The words behind the terms, where terms are words; else None.

    Raises:
        TypeError: If ``embedding_dimension`` or ``vocab_size`` is not an integer.
        ValueError: If one is below 1.

    Example:
        >>> calibration = Calibration(2, vocab_size=4)
        >>> calibration.update(np.array([[1.0, 0.0], [3.0, 0.0]]), [np.array([1, 1, 2]), np.array([2])])
        >>> calibration.document_count, calibration.first_component.coefficient
        (2, 2.0)
        >>> calibration.document_frequencies.tolist(), calibration.average_length
        ([0, 1, 2, 0], 2.0)
    """

    def __init__(
        self,
        embedding_dimension: int,
        *,
        vocab_size: int | None = None,
        vocabulary_hash: str | None = None,
        model_name: str | None = None,
        stemmer: str | None = None,
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
        self.stemmer = stemmer
        self.names: WordNames | None = None
        self._first_component: FirstComponent | None = None  # each of these as it was last computed
        self._idf: NDArray[np.float32] | None = None
        self._corpus: Corpus | None = None
        self._decoded_trust: float | None = None
        self._hash: str | None = None
        self._solution: tuple[str, RidgeSolution] | None = None  # the last one, and a name for what it follows from
        self._decoder: tuple[str, RidgeDecoder] | None = None

    @classmethod
    def fit(
        cls,
        encoder: CalibrationEncoder,
        texts: Iterable[str],
        *,
        embeddings: Dense | None = None,
        fit_decoder: bool = True,
        batch_size: int = 32,
        show_progress_bar: bool = True,
        resume_from: str | os.PathLike[str] | None = None,
        save_every: int = 10_000,
    ) -> Calibration:
        """Fit on texts, in one pass: their plain dense embeddings, before any correction, and their literal terms.

        Args:
            encoder: Gives ``embed``, ``prepare_embeddings``, ``literal_terms``, ``vocabulary`` and ``model_name``; a
                ``KeyTokenEncoder``.
            texts: Unlabelled documents, best those that will be searched; may be a generator.
            embeddings: The texts' vectors, where they are stored already, shape ``(N, d)``, memory-mapped or not, as
                the model gives them. None: the texts are embedded. In both cases up to 600 short texts are embedded
                at the end, to learn :attr:`decoded_trust`.
            fit_decoder: Whether the ridge decoder can be had from the calibration afterwards, see
                :meth:`ridge_decoder`. It takes ``4 d`` bytes a term that occurs, in memory and in the files.
            batch_size: Texts a forward pass at most.
            show_progress_bar: Whether to show progress.
            resume_from: Path of a state file. Written atomically on the way and at the end; where it exists already,
                its texts, which must come first, are read and checked but not embedded again. It is left in place, so
                that texts appended later cost only their own embedding.
            save_every: Texts between two writes of the state file, at least.

        Returns:
            The calibration.

        Raises:
            TypeError: If ``texts`` is one string or holds something else than strings, or a number is no integer.
            ValueError: If there is no text, a number is below 1, the numbers of texts and embeddings differ, an
                embedding is not finite, or the state file is unreadable or belongs to other texts, another model or
                vocabulary.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be an iterable of strings, got one string. Put it into a list.")
        total = len(texts) if isinstance(texts, Sized) else None
        if embeddings is not None and total is not None and len(embeddings) != total:
            raise unequal(len(embeddings), total)
        vocabulary = encoder.vocabulary
        items = KnownItems()
        words = getattr(vocabulary, "words", None)
        names = None if words is None else WordNames(words)
        watched = items.watch(texts if names is None else names.watch(texts))
        calibration = _stream(
            text_chunks(encoder, watched, embeddings, checked_int("batch_size", batch_size, minimum=1)),
            partial(
                cls,
                vocab_size=vocabulary.vocab_size,
                vocabulary_hash=vocabulary.hash,
                model_name=encoder.model_name,
                stemmer=None if words is None else words.stemmer,
                fit_decoder=fit_decoder,
            ),
            bar=partial(tqdm, total=total, unit="text", desc="Calibrating", disable=not show_progress_bar),
            resume_from=resume_from,
            save_every=checked_int("save_every", save_every, minimum=1),
        )
        calibration.names = names
        if getattr(encoder, "can_embed", True):  # more texts than those whose vectors were given
            calibration.decoded_trust = decoded_trust(
                encoder, items.pairs, calibration.corpus, vocabulary.vocab_size, batch_size
            )
        return calibration

    @classmethod
    def fit_embeddings(
        cls,
        embeddings: Dense | Iterable[Dense],
        *,
        model_name: str | None = None,
        batch_size: int = 4096,
        show_progress_bar: bool = True,
        resume_from: str | os.PathLike[str] | None = None,
        save_every: int = 100_000,
    ) -> Calibration:
        """Fit on stored embeddings alone: no document frequencies and no decoder (see ``fit(embeddings=...)``).

        Args:
            embeddings: Array or tensor of shape ``(N, d)``, memory-mapped or not, or an iterable of such batches.
            model_name: Name of the embedder that made them.
            batch_size: Rows of an array added at once; batches of an iterable are taken as they are.
            show_progress_bar: Whether to show progress.
            resume_from: See :meth:`fit`.
            save_every: Embeddings between two writes of the state file, at least.

        Returns:
            The calibration.

        Raises:
            TypeError: If a batch is no array or tensor of floating-point numbers, or a number is no integer.
            ValueError: If there is no embedding, a number is below 1, a shape is wrong, a value is not finite, or the
                state file is unreadable or belongs to other embeddings or another model.

        Example:
            >>> rows = np.array([[3.0, 0.0], [5.0, 0.0]])
            >>> Calibration.fit_embeddings(rows, show_progress_bar=False).first_component.coefficient
            4.0
        """
        is_array = isinstance(embeddings, Tensor | np.ndarray)
        return _stream(
            embedding_chunks(embeddings, checked_int("batch_size", batch_size, minimum=1)),
            partial(cls, model_name=model_name),
            bar=partial(
                tqdm,
                total=len(embeddings) if isinstance(embeddings, Sized) and is_array else None,
                unit="embedding",
                desc="Calibrating",
                disable=not show_progress_bar,
            ),
            resume_from=resume_from,
            save_every=checked_int("save_every", save_every, minimum=1),
        )

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

    def merge(self, other: Calibration) -> None:
        """Add everything that ``other`` was fitted on, as if it had been given to this one.

        In another order of merging, second moments differ by float64's rounding. Only ``decoded_trust`` is not as if
        fitted on both: it is the mean of the two, weighted by documents.

        Args:
            other: Of the same model, tokenizer and folding. Not modified.

        Raises:
            TypeError: If ``other`` is of another class.
            ValueError: If embedding dimension, model or vocabulary differ, or one has cross moments and one has not.
        """
        if not isinstance(other, Calibration):
            raise TypeError(f"other must be a Calibration, got {type(other).__name__}.")
        self.check_same(other, "other")
        both = [(each.decoded_trust, each.document_count) for each in (self, other)]
        for name, statistic in self.statistics.items():
            statistic.merge(other.statistics[name])
        if self.names is not None and other.names is not None:
            self.names.merge(other.names)
        self._forget()
        trusts = [(trust, count) for trust, count in both if trust is not None]
        if total := sum(count for _, count in trusts):
            self.decoded_trust = sum(trust * count for trust, count in trusts) / total

    def of_embeddings(self) -> Calibration:
        """What it says of the embeddings alone, for any vocabulary.

        Returns:
            A calibration that shares its moments and sample.
        """
        calibration = Calibration(self.embedding_dimension, model_name=self.model_name)
        calibration.moments, calibration.sample = self.moments, self.sample
        return calibration

    def check_same(self, other: Calibration, label: str) -> None:
        """Check that a calibration can be merged with this one.

        Args:
            other: The calibration.
            label: What errors call it.

        Raises:
            ValueError: If its embedding dimension, model or vocabulary is another one, or just one of the two has
                cross moments.
        """
        for name in (
            "embedding_dimension",
            "model_name",
            "vocab_size",
            "vocabulary_hash",
            "stemmer",
            "has_cross_moments",
        ):
            mine, others = (getattr(c, name) for c in (self, other))
            if mine != others:
                raise ValueError(
                    f"{label} must have {name} {mine!r}, got {others!r}. Calibrations fit together only for the same "
                    "model, tokenizer, folding and version of PyStemmer, and the same fit_decoder."
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
    def document_frequencies(self) -> NDArray[np.int64] | TermValues | None:
        """Number of documents that hold each term, int64, shape ``(V,)``, or by term where terms are words.

        None where no terms are counted.
        """
        return None if self.terms is None else self.terms.document_frequencies

    @property
    def total_terms(self) -> int:
        """Number of literal terms in all documents, with repetition; 0 where no terms are counted."""
        return 0 if self.terms is None else self.terms.total

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

    @property
    def idf(self) -> NDArray[np.float32]:
        """Inverse document frequencies as in BM25, ``ln(1 + (N − df + 0.5) / (df + 0.5))``, float32, shape ``(V,)``.

        Computed once, then kept; read-only.

        Raises:
            ValueError: If no terms are counted.
        """
        if self._idf is None:
            idf = self.idf_values.dense(self._check_has_terms().vocab_size)
            idf.flags.writeable = False
            self._idf = idf
        return self._idf

    @property
    def idf_values(self) -> TermValues:
        """:attr:`idf` of the terms that occur, and of all others together: for vocabularies of any size.

        Raises:
            ValueError: If no terms are counted.
        """
        frequencies = self._check_has_terms().frequencies
        counts = np.append(frequencies.values, 0).astype(np.float64)
        idf = np.log1p((self.document_count - counts + 0.5) / (counts + 0.5)).astype(np.float32)
        return TermValues(frequencies.ids, idf[:-1], float(idf[-1]))

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
                idf, shares = self.idf_values, self.terms.frequencies.values / self.document_count
                norm = float(np.sqrt((shares * idf.values.astype(np.float64) ** 2).sum()))
                looked_up = self.idf if self.terms.vocab_size <= DENSE else idf
                known |= {"idf": looked_up, "average_length": self.average_length, "literal_norm": norm}
            self._corpus = Corpus(**known)
        return self._corpus

    @property
    def decoder(self) -> RidgeDecoder | None:
        """:meth:`ridge_decoder` as it is without an LM head; None where the calibration has no cross moments."""
        return self.ridge_decoder() if self.has_cross_moments else None

    def ridge_decoder(
        self,
        *,
        regularization: float = 0.3,
        spectral_power: float = 0.5,
        min_document_frequency: int = 1,
        lm_head: LMHead | None = None,
        lm_head_terms: NDArray[np.int64] | None = None,
        lm_head_shrinkage: float | None = None,
        show_progress_bar: bool = False,
    ) -> RidgeDecoder:
        """The linear map from embeddings to the corpus's own terms, solved in closed form; the last one is kept.

        Ridge regression, with ``X`` the centred embeddings and ``T`` the centred saturated frequencies of the literal
        terms times their idf: ``B = (XᵀX + λI)⁻¹ (XᵀT + λ c Wᵀ)``, its singular values raised to a power afterwards.
        It belongs to its corpus: for texts of another kind it is worse than the LM head.

        Args:
            regularization: ``λ`` in units of the mean eigenvalue of ``XᵀX``.
            spectral_power: Power of the singular values of ``B``, 0 to 1. 1: the plain regression; less: directions
                that predict rare or weakly expressed terms count more.
            min_document_frequency: Terms in fewer documents are left out.
            lm_head: Decodes embeddings of this calibration's model. Wanted for ``lm_head_shrinkage`` above 0.
            lm_head_terms: The term of each of its rows, shape ``(lm_head.vocab_size,)``, 0 for none, where terms are
                words. None: rows are terms.
            lm_head_shrinkage: ``c``: the solution is shrunk towards so much of the LM head's rows ``W`` of the terms,
                which are scaled to the Frobenius norm of the solution without them. 0: towards zero. None: 3 for fewer
                than 1,000 documents, where there is an affine LM head; else 0.
            show_progress_bar: Whether to show progress.

        Returns:
            The decoder, float32, on the CPU. All its weights are zero where there is one text only, or all are
            identical.

        Raises:
            TypeError: If a setting is of another type.
            ValueError: If the calibration has no cross moments or is empty, a setting is out of range, or ``lm_head``
                is missing, does not fit or is not affine.
        """
        regularization = checked_float("regularization", regularization, minimum=1e-9)
        spectral_power = checked_float("spectral_power", spectral_power, minimum=0, maximum=1)
        min_document_frequency = checked_int("min_document_frequency", min_document_frequency, minimum=1)
        if lm_head_shrinkage is None:
            is_shrunk = lm_head is not None and lm_head.is_affine and self.document_count < ENOUGH_DOCUMENTS
            lm_head_shrinkage = _SHRINKAGE if is_shrunk else 0.0
        lm_head_shrinkage = checked_float("lm_head_shrinkage", lm_head_shrinkage, minimum=0)
        if self.cross_moments is None:
            raise ValueError(
                "calibration must have cross moments, got one fitted without texts or with fit_decoder=False. Use "
                "Calibration.fit with the texts."
            )
        if lm_head_shrinkage == 0:
            lm_head = None
        elif lm_head is None or not lm_head.is_affine:
            raise ValueError(
                f"lm_head must be affine for lm_head_shrinkage={lm_head_shrinkage}, got "
                f"{'none' if lm_head is None else 'one with a transform or soft cap'}. Use lm_head_shrinkage=0."
            )
        else:
            self._check_fits(lm_head)
        settings = {
            "regularization": regularization,
            "spectral_power": spectral_power,
            "min_document_frequency": min_document_frequency,
            "lm_head_shrinkage": lm_head_shrinkage,
            "lm_head": None if lm_head is None else lm_head.hash,
        }
        name = fingerprint({"settings": settings, "document_count": self.document_count})
        if self._decoder is None or self._decoder[0] != name:
            frequencies = self._check_has_terms().frequencies
            regression = RidgeRegression(
                self.moments,
                self.cross_moments,
                self.idf_values,
                frequencies.ids[frequencies.values >= min_document_frequency],
                prior=None if lm_head is None else (lm_head.weight.detach(), _rows_of_terms(lm_head, lm_head_terms)),
                show_progress_bar=show_progress_bar,
            )
            if self._solution is None or self._solution[0] != name:
                self._solution = name, regression.solve(regularization, spectral_power, lm_head_shrinkage)
            self._decoder = name, regression.decoder(self._solution[1])
        return self._decoder[1]

    def logit_statistics(
        self,
        lm_head: LMHead,
        *,
        correction: Correction = "none",
        shift: float | None = None,
        block_size: int = 8192,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of every token's logit over the corpus, of corrected embeddings.

        For an affine head (``lm_head.is_affine``), exact without a second pass: with mean ``μ`` and covariance ``Σ``
        of the corrected embeddings, the mean is ``logits(μ)`` and the variance ``diag(WΣWᵀ)``. For other heads (a
        transform with an activation, soft-capped logits) both are estimated from the embeddings in :attr:`sample`:
        exact for up to 1024 documents, beyond that with a standard error of the mean of about 3 % of the standard
        deviation. Computed in float32 from the head's weight, whatever its dtype: logits in half precision scatter
        around the mean by their rounding. Autocast changes nothing.

        Args:
            lm_head: Decodes embeddings of this calibration's model.
            correction: What is done to embeddings before they are decoded, with this calibration's own first component
                and mean.
            shift: Signed amount for ``correction="shift"``, in embedding units.
            block_size: Rows of the head's weight upcast at once; beside it, memory is bounded by ``block_size × d``.

        Returns:
            Mean and population standard deviation, both float32, shape ``(V,)``. The standard deviation is exactly 0
            where nothing varies (one text, identical texts).

        Raises:
            TypeError: If ``block_size`` is not an integer.
            ValueError: If the calibration is empty, or does not fit the head, the correction is unknown or lacks its
                amount, or ``block_size`` is below 1.
        """
        self._check_fits(lm_head)
        block_size = checked_int("block_size", block_size, minimum=1)
        transform = partial(
            correct,
            correction=correction,
            direction=self.first_component.direction if correction in ("remove", "shift") else None,
            mean=self.moments.mean,
            amount=shift,
        )
        autocast = torch.autocast("cuda" if lm_head.device.type == "cuda" else "cpu", enabled=False)
        with torch.no_grad(), autocast:
            if lm_head.is_affine:
                return affine_statistics(self.moments, lm_head, transform, block_size)
            return sample_statistics(self.sample, lm_head, transform, block_size)

    def _check_fits(self, lm_head: LMHead) -> None:
        for name in ("embedding_dimension", "vocab_size") if self.names is None else ("embedding_dimension",):
            mine, others = (getattr(part, name) for part in (self, lm_head))
            if mine is not None and mine != others:
                raise ValueError(f"lm_head must have {name} {mine}, got {others}. Use the calibration of this model.")

    def _check_has_terms(self) -> TermCounts:
        if self.terms is None:
            raise ValueError(
                "calibration must have document frequencies, got one fitted on embeddings alone. Use Calibration.fit "
                "with the texts, and embeddings=... if those are stored."
            )
        return self.terms

    def _forget(self) -> None:
        """Drops what was derived from statistics that have changed."""
        self._first_component = self._idf = self._corpus = self._hash = None

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

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``calibration.safetensors`` and ``calibration.json`` into a directory, which is created if needed.

        Each file is replaced atomically; together they are checked against the hash when they are loaded. Cross
        moments are saved whole, so that what is loaded can be merged and go on; the decoder follows from them and
        from the ``d × d`` matrix that was solved last, which is saved too, so that it is not solved again.

        Args:
            directory: The directory.

        Raises:
            OSError: If the directory cannot be written.
        """
        write_directory(Path(directory), *self.to_state(has_solution=True))

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Calibration:
        """Read what :meth:`save` wrote, bit for bit.

        Args:
            directory: The directory.

        Returns:
            The calibration.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is truncated, altered, or of an unknown format version.
        """
        return cls.from_state(*read_directory(Path(directory)))

    def to_state(self, *, has_first_component: bool = True, has_solution: bool = False) -> State:
        """Everything as tensors, named after their statistic, and JSON values.

        Args:
            has_first_component: Whether a first component is stored; LAPACKs differ in the last bit.
            has_solution: Whether the last solution is among them. It follows from the rest, but takes time.

        Returns:
            Tensors and settings.
        """
        tensors = {
            f"{name}.{key}": tensor
            for name, statistic in self.statistics.items()
            for key, tensor in statistic.to_tensors().items()
        }
        if self.names is not None:
            tensors |= {f"names.{key}": tensor for key, tensor in self.names.to_tensors().items()}
        names = (
            "embedding_dimension",
            "document_count",
            "vocab_size",
            "vocabulary_hash",
            "model_name",
            "stemmer",
            "has_cross_moments",
            "decoded_trust",
        )
        settings = {"format_version": FORMAT_VERSION, **{name: getattr(self, name) for name in names}}
        if self.names is not None:
            settings["language"] = self.names.words.language
            if self.names.words.stop_words:
                settings["stop_words"] = sorted(self.names.words.stop_words)
        if has_first_component and bool(self.moments.second_moment.any()):
            component = self.first_component
            tensors["first_component.direction"] = component.direction
            settings |= {"coefficient": component.coefficient, "singular_value": component.singular_value}
        if has_solution and self._solution is not None:
            name, solution = self._solution
            tensors["solution.projection"] = solution.projection
            settings["solution"] = {"name": name, "prior_factor": solution.prior_factor}
        return tensors, settings

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Calibration:
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
            stemmer=settings.get("stemmer"),
            fit_decoder=settings["has_cross_moments"],
        )
        for name, statistic in calibration.statistics.items():
            own = {key.removeprefix(f"{name}."): tensors[key] for key in tensors if key.startswith(f"{name}.")}
            setattr(calibration, name, type(statistic).from_tensors(own))
        calibration.decoded_trust = settings["decoded_trust"]
        if "language" in settings:
            calibration.names = WordNames(Words(settings["language"], stop_words=settings.get("stop_words", ())))
            calibration.names.read_tensors(
                {key.removeprefix("names."): tensor for key, tensor in tensors.items() if key.startswith("names.")},
                calibration.stemmer,
            )
        if "first_component.direction" in tensors:
            calibration._first_component = FirstComponent(
                tensors["first_component.direction"], settings["coefficient"], settings["singular_value"]
            )
        if "solution" in settings:
            kept = settings["solution"]
            solution = RidgeSolution(tensors["solution.projection"], kept["prior_factor"])
            calibration._solution = kept["name"], solution
        return calibration

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoder": None}  # made from the solution sooner than sent


class _ItemHash:
    """A hash of the items so far, and their number."""

    def __init__(self) -> None:
        self.count = 0
        self._digest = hashlib.sha256()

    def update(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._digest.update(len(key).to_bytes(8, "little") + key)
            self.count += 1

    @property
    def value(self) -> str:
        return self._digest.hexdigest()


def _stream(
    chunks: Iterable[Chunk],
    blank: Callable[[int], Calibration],
    *,
    bar: Callable[[], Any],
    resume_from: str | os.PathLike[str] | None,
    save_every: int,
) -> Calibration:
    """Fit a calibration on chunks, leaving out what the state file has seen.

    Args:
        chunks: The corpus.
        blank: Makes an empty calibration for embeddings of a width.
        bar: Makes a progress bar of items.
        resume_from: The state file, or None; see :meth:`Calibration.fit`.
        save_every: Items between two writes of the state file, at least.

    Returns:
        The calibration.

    Raises:
        ValueError: If there is no item, a chunk's embeddings and terms cannot be added, or the state file is
            unreadable or belongs to other items, another model or vocabulary.
    """
    path = None if resume_from is None else Path(resume_from)
    calibration: Calibration | None = None
    known_count, known_hash = 0, ""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            calibration, known_count, known_hash = _resumed(path, blank)
    seen, saved = _ItemHash(), known_count
    with bar() as progress:
        for keys, read in chunks:
            known = min(len(keys), max(0, known_count - seen.count))
            seen.update(keys[:known])
            if known and seen.count == known_count and seen.value != known_hash:
                raise _other_corpus(path, known_count)
            if known < len(keys):
                dense, term_ids = read(known)
                if len(dense) != len(keys) - known:
                    raise unequal(len(dense), len(keys) - known)
                if calibration is None:
                    check_embeddings(dense)
                    calibration = blank(dense.shape[1])
                calibration.update(dense, term_ids)
                seen.update(keys[known:])
                if path is not None and seen.count - saved >= save_every:
                    write_progress(path, *calibration.to_state(has_first_component=False), seen.count, seen.value)
                    saved = seen.count
            progress.update(len(keys))
    if seen.count < known_count:
        raise _other_corpus(path, known_count)
    if calibration is None:
        raise ValueError("texts or embeddings must hold at least one item, got none.")
    if path is not None and seen.count > saved:
        write_progress(path, *calibration.to_state(has_first_component=False), seen.count, seen.value)
    return calibration


def _resumed(path: Path, blank: Callable[[int], Calibration]) -> tuple[Calibration, int, str]:
    """The calibration in a state file, the number of its items and their hash."""
    tensors, settings = read_progress(path)
    expected = blank(settings["embedding_dimension"])
    calibration = expected.from_state(tensors, settings)
    expected.check_same(calibration, f"resume_from={str(path)!r}")
    return calibration, settings["consumed"], settings["seen"]


def _other_corpus(path: Path | None, consumed: int) -> ValueError:
    return ValueError(
        f"resume_from must belong to the corpus given, but the first {consumed} items are not those that {path} was "
        "fitted on. Give the same items in the same order, or delete the file."
    )


def _rows_of_terms(lm_head: LMHead, terms_of_rows: NDArray[np.int64] | None) -> TermValues:
    """The first row of each term, -1 for none; None: rows are terms. Of words, 0 is no term."""
    if terms_of_rows is None:
        rows = np.arange(lm_head.vocab_size)
        return TermValues(rows, rows, -1)
    terms, rows = np.unique(terms_of_rows, return_index=True)
    is_term = terms != 0
    return TermValues(terms[is_term], rows[is_term].astype(np.int64), -1)
