"""Calibration: what one pass over a corpus teaches about its embeddings and terms.

It holds second moments of the pooled embeddings (hence first component, mean, and the mean and standard deviation of
every token's logit), a small sample of embeddings, and document frequencies of the literal terms. All parts stream and
merge, so a corpus may be calibrated in pieces.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from st_keytokens.atomic_files import read_tensors, write_atomically
from st_keytokens.calibration.embedding_sample import EmbeddingSample
from st_keytokens.calibration.logit_statistics import LogitsHead, affine_statistics, sample_statistics
from st_keytokens.calibration.streaming import (
    CalibrationEncoder,
    Dense,
    embedding_chunks,
    float32_rows,
    stream,
    text_chunks,
    unequal,
)
from st_keytokens.first_component import Correction, FirstComponent, SecondMoments, check_embeddings, correct

__all__ = ["Calibration", "EmbeddingSample"]

_FORMAT_VERSION = 1


class Calibration:
    """Second moments, embedding sample and document frequencies of a corpus.

    Fit one with :meth:`fit` or :meth:`fit_embeddings`; the constructor gives an empty one, to be filled by
    :meth:`update` and :meth:`merge`.

    Args:
        embedding_dimension: Width ``d`` of the embeddings.
        vocab_size: Size ``V`` of the vocabulary; None: literal terms are not counted.
        vocabulary_hash: Hash of the vocabulary that the terms belong to.
        model_name: Name of the embedder, for messages and to refuse another one's calibration.

    Attributes:
        moments: Second moments of the embeddings. Change them through :meth:`update` and :meth:`merge` only.
        sample: Up to 1024 of the embeddings, for heads that are not affine.
        document_frequencies: Number of documents that hold each term, int64, shape ``(V,)``, or None.
        total_terms: Number of literal terms in all documents, with repetition.
        vocab_size: As given.
        vocabulary_hash: As given.
        model_name: As given.

    Raises:
        ValueError: If ``embedding_dimension`` or ``vocab_size`` is below 1.

    Example:
        >>> calibration = Calibration(2, vocab_size=4)
        >>> calibration.update(np.array([[1.0, 0.0], [3.0, 0.0]]), [np.array([1, 1, 2]), np.array([2])])
        >>> calibration.document_frequencies.tolist(), calibration.average_length
        ([0, 1, 2, 0], 2.0)
        >>> calibration.first_component.coefficient
        2.0
    """

    def __init__(
        self,
        embedding_dimension: int,
        *,
        vocab_size: int | None = None,
        vocabulary_hash: str | None = None,
        model_name: str | None = None,
    ) -> None:
        if vocab_size is not None and vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}.")
        self.moments = SecondMoments(embedding_dimension)
        self.sample = EmbeddingSample(embedding_dimension)
        self.vocab_size = vocab_size
        self.vocabulary_hash = vocabulary_hash
        self.model_name = model_name
        self.document_frequencies = None if vocab_size is None else np.zeros(vocab_size, dtype=np.int64)
        self.total_terms = 0
        self._first_component: FirstComponent | None = None
        self._idf: NDArray[np.float32] | None = None
        self._hash: str | None = None

    @classmethod
    def fit(
        cls,
        encoder: CalibrationEncoder,
        texts: Iterable[str],
        *,
        embeddings: Dense | None = None,
        batch_size: int = 256,
        show_progress_bar: bool = True,
        resume_from: str | os.PathLike[str] | None = None,
        save_every: int = 50,
    ) -> Calibration:
        """Fit on texts, in one pass: their plain dense embeddings, before any correction, and their literal terms.

        Args:
            encoder: Gives ``embed``, ``prepare_embeddings``, ``literal_terms``, ``vocabulary`` and ``model_name``; a
                ``KeyTokenEncoder``.
            texts: Unlabelled documents, best those that will be searched; may be a generator.
            embeddings: The texts' vectors, where they are stored already, shape ``(N, d)``, memory-mapped or not, as
                the model gives them. None: the texts are embedded.
            batch_size: Texts handed to the encoder at once; it forms its own batches of them.
            show_progress_bar: Whether to show progress.
            resume_from: Path of a state file. Written atomically every ``save_every`` batches and at the end; where it
                exists already, its texts, which must come first, are read and checked but not embedded again. It is
                left in place, so that texts appended later cost only their own embedding.
            save_every: Batches between two writes of the state file.

        Returns:
            The calibration.

        Raises:
            TypeError: If ``texts`` is one string, or holds something else than strings.
            ValueError: If there is no text, the numbers of texts and embeddings differ, an embedding is not finite, or
                the state file is unreadable or belongs to other texts, another model or vocabulary.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be an iterable of strings, got one string. Put it into a list.")
        total = len(texts) if isinstance(texts, Sized) else None
        if embeddings is not None and total is not None and len(embeddings) != total:
            raise unequal(len(embeddings), total)
        vocabulary = encoder.vocabulary
        return stream(
            text_chunks(encoder, texts, embeddings, _positive(batch_size, "batch_size")),
            partial(
                cls,
                vocab_size=vocabulary.vocab_size,
                vocabulary_hash=vocabulary.hash,
                model_name=encoder.model_name,
            ),
            bar=partial(tqdm, total=total, unit="text", desc="Calibrating", disable=not show_progress_bar),
            resume_from=resume_from,
            save_every=_positive(save_every, "save_every"),
        )

    @classmethod
    def fit_embeddings(
        cls,
        embeddings: Dense | Iterable[Dense],
        *,
        model_name: str | None = None,
        batch_size: int = 4096,
        show_progress_bar: bool = True,
        resume_from: str | os.PathLike[str] | None = None,
        save_every: int = 50,
    ) -> Calibration:
        """Fit on stored embeddings alone; there are no document frequencies then (see ``fit(embeddings=...)``).

        Args:
            embeddings: Array or tensor of shape ``(N, d)``, memory-mapped or not, or an iterable of such batches.
            model_name: Name of the embedder that made them.
            batch_size: Rows of an array read at once; batches of an iterable are taken as they are.
            show_progress_bar: Whether to show progress.
            resume_from: See :meth:`fit`.
            save_every: See :meth:`fit`.

        Returns:
            The calibration.

        Raises:
            TypeError: If a batch is no array or tensor of floating-point numbers.
            ValueError: If there is no embedding, a shape is wrong, a value is not finite, or the state file is
                unreadable or belongs to other embeddings or another model.

        Example:
            >>> rows = np.array([[3.0, 0.0], [5.0, 0.0]])
            >>> Calibration.fit_embeddings(rows, show_progress_bar=False).first_component.coefficient
            4.0
        """
        is_array = isinstance(embeddings, Tensor | np.ndarray)
        return stream(
            embedding_chunks(embeddings, _positive(batch_size, "batch_size")),
            partial(cls, model_name=model_name),
            bar=partial(
                tqdm,
                total=len(embeddings) if isinstance(embeddings, Sized) and is_array else None,
                unit="embedding",
                desc="Calibrating",
                disable=not show_progress_bar,
            ),
            resume_from=resume_from,
            save_every=_positive(save_every, "save_every"),
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
        frequencies, terms = None, 0
        if term_ids is not None and self.vocab_size is not None:
            if len(term_ids) != len(embeddings):
                raise ValueError(
                    f"term_ids must have one entry an embedding, got {len(term_ids)} for {len(embeddings)} embeddings."
                )
            frequencies, terms = _count_documents(term_ids, self.vocab_size)
        self.moments.update(embeddings)
        self.sample.update(float32_rows(embeddings))
        if frequencies is not None and self.document_frequencies is not None:
            self.document_frequencies += frequencies
            self.total_terms += terms
        self._first_component = self._idf = self._hash = None

    def merge(self, other: Calibration) -> None:
        """Add everything that ``other`` was fitted on, as if it had been given to this one. ``other`` is not modified.

        Raises:
            TypeError: If ``other`` is not a Calibration.
            ValueError: If embedding dimension, model or vocabulary differ.
        """
        if not isinstance(other, Calibration):
            raise TypeError(f"other must be a Calibration, got {type(other).__name__}.")
        self.check_same(other, "other")
        self.moments.merge(other.moments)
        self.sample.merge(other.sample)
        if self.document_frequencies is not None and other.document_frequencies is not None:
            self.document_frequencies += other.document_frequencies
        self.total_terms += other.total_terms
        self._first_component = self._idf = self._hash = None

    def check_same(self, other: Calibration, label: str) -> None:
        """Refuse, under the name ``label``, a calibration of another dimension, model or vocabulary (ValueError)."""
        for name in ("embedding_dimension", "model_name", "vocab_size", "vocabulary_hash"):
            mine, others = (getattr(c, name) for c in (self, other))
            if mine != others:
                raise ValueError(
                    f"{label} must have {name} {mine!r}, got {others!r}. Calibrations fit together only for the same "
                    "model, tokenizer and folding."
                )

    @property
    def embedding_dimension(self) -> int:
        """Width of the embeddings."""
        return self.moments.embedding_dimension

    @property
    def document_count(self) -> int:
        """Number of documents, or of embeddings where no terms are counted; documents without terms count."""
        return self.moments.count

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
            frequencies = self._check_has_terms().astype(np.float64)
            idf = np.log1p((self.document_count - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
            idf.flags.writeable = False
            self._idf = idf
        return self._idf

    @property
    def average_length(self) -> float:
        """Mean number of literal terms of a document.

        Raises:
            ValueError: If no terms are counted, or there is no document.
        """
        self._check_has_terms()
        if self.document_count == 0:
            raise ValueError("calibration must hold at least one document, got none. Fit it first.")
        return self.total_terms / self.document_count

    def _check_has_terms(self) -> NDArray[np.int64]:
        if self.document_frequencies is None:
            raise ValueError(
                "calibration must have document frequencies, got one fitted on embeddings alone. Use Calibration.fit "
                "with the texts, and embeddings=... if those are stored."
            )
        return self.document_frequencies

    def logit_statistics(
        self,
        lm_head: LogitsHead,
        *,
        correction: Correction = "none",
        shift: float | None = None,
        batch_size: int = 64,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of every token's logit over the corpus, of corrected embeddings.

        For an affine head (``lm_head.is_affine``), exact without a second pass: with mean ``μ`` and covariance
        ``Σ = Σⱼ λⱼ uⱼ uⱼᵀ`` of the corrected embeddings, the mean is ``logits(μ)`` and the variance of token ``v``
        is ``Σⱼ (logits(√λⱼ uⱼ) − logits(0))²ᵥ``, which is ``diag(WΣWᵀ)``. That is wrong for other heads (a transform
        with an activation, soft-capped logits); there both are estimated from the embeddings in :attr:`sample`: exact
        for up to 1024 documents, beyond that with a standard error of the mean of about 3 % of the standard deviation.
        Logits are computed in the head's dtype and summed in float32; a head in half precision rounds them
        accordingly.

        Args:
            lm_head: Decodes embeddings of this calibration's model.
            correction: What is done to embeddings before they are decoded, with this calibration's own first component
                and mean.
            shift: Signed amount for ``correction="shift"``, in embedding units.
            batch_size: Embeddings decoded at once; memory is bounded by ``batch_size × V`` logits.

        Returns:
            Mean and population standard deviation, both float32, shape ``(V,)``. The standard deviation is exactly 0
            where nothing varies (one text, identical texts).

        Raises:
            ValueError: If the calibration is empty, or does not fit the head, or the correction lacks its amount.
        """
        if lm_head.embedding_dimension != self.embedding_dimension:
            raise ValueError(
                f"lm_head must have embedding_dimension {self.embedding_dimension}, got "
                f"{lm_head.embedding_dimension}. Use the calibration of this model."
            )
        if self.vocab_size is not None and lm_head.vocab_size != self.vocab_size:
            raise ValueError(
                f"lm_head must have vocab_size {self.vocab_size}, got {lm_head.vocab_size}. Use the calibration of "
                "this model."
            )
        _positive(batch_size, "batch_size")
        transform = partial(
            correct,
            correction=correction,
            direction=self.first_component.direction if correction in ("remove", "shift") else None,
            mean=self.moments.mean,
            amount=shift,
        )
        with torch.no_grad():
            if lm_head.is_affine:
                mean, variance = affine_statistics(self.moments, lm_head, transform, batch_size)
            else:
                mean, variance = sample_statistics(self.sample, lm_head, transform, batch_size)
            return mean.cpu().numpy(), variance.clamp_min(0).sqrt().cpu().numpy()

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal, over all numbers that change a score; the same after saving and loading."""
        if self._hash is None:
            tensors, settings = self.to_state()
            del settings["model_name"]
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
            for name, tensor in sorted(tensors.items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
                digest.update(tensor.numpy().tobytes())
            self._hash = digest.hexdigest()
        return self._hash

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``calibration.safetensors`` and ``calibration.json`` into a directory, which is created if needed.

        Each file is replaced atomically; together they are checked against the hash when they are loaded.

        Raises:
            OSError: If the directory cannot be written.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors, settings = self.to_state()
        settings["hash"] = self.hash
        write_atomically(folder / "calibration.safetensors", safetensors.torch.save(tensors))
        write_atomically(folder / "calibration.json", (json.dumps(settings, indent=2) + "\n").encode())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Calibration:
        """Read what :meth:`save` wrote, bit for bit.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is truncated, altered, or of an unknown format version.
        """
        folder = Path(directory)
        settings_path, tensors_path = folder / "calibration.json", folder / "calibration.safetensors"
        for path in (settings_path, tensors_path):
            if not path.is_file():
                raise FileNotFoundError(f"directory must hold {path.name}, got none in {str(folder)!r}.")
        try:
            settings = json.loads(settings_path.read_text(encoding="utf-8"))
        except ValueError as err:
            raise ValueError(f"{settings_path} must be JSON, got {err}. Fit the calibration again.") from err
        calibration = cls.from_state(read_tensors(tensors_path)[0], settings, tensors_path)
        if calibration.hash != settings.get("hash"):
            raise ValueError(
                f"{tensors_path} must have the hash {settings.get('hash')} of its calibration.json, got "
                f"{calibration.hash}: one of the two was altered. Fit the calibration again."
            )
        return calibration

    def __repr__(self) -> str:
        return (
            f"Calibration(embedding_dimension={self.embedding_dimension}, document_count={self.document_count}, "
            f"vocab_size={self.vocab_size}, model_name={self.model_name!r})"
        )

    def to_state(self, *, has_first_component: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything as tensors and JSON values; a first component is stored, since LAPACKs differ in the last bit."""
        tensors = {f"moments.{name}": tensor for name, tensor in self.moments.to_tensors().items()}
        tensors["sample.embeddings"] = torch.from_numpy(self.sample.embeddings)
        tensors["sample.priorities"] = torch.from_numpy(self.sample.priorities.view(np.int64))
        if self.document_frequencies is not None:
            tensors["document_frequencies"] = torch.from_numpy(self.document_frequencies)
        names = ("embedding_dimension", "document_count", "total_terms", "vocab_size", "vocabulary_hash", "model_name")
        settings: dict[str, Any] = {"format_version": _FORMAT_VERSION}
        settings.update((name, getattr(self, name)) for name in names)
        if has_first_component and bool(self.moments.second_moment.any()):
            component = self.first_component
            tensors["first_component.direction"] = component.direction
            settings["coefficient"] = component.coefficient
            settings["singular_value"] = component.singular_value
        return tensors, settings

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Any, path: Path) -> Calibration:
        """The inverse of :meth:`to_state`; ``path`` is for messages (ValueError)."""
        version = settings.get("format_version") if isinstance(settings, dict) else None
        if version != _FORMAT_VERSION:
            raise ValueError(
                f"{path} must have format_version {_FORMAT_VERSION}, got {version}. Fit the calibration again, or use "
                "the version of st-keytokens that wrote it."
            )
        try:
            names = ("vocab_size", "vocabulary_hash", "model_name")
            calibration = cls(settings["embedding_dimension"], **{name: settings[name] for name in names})
            calibration.moments = SecondMoments.from_tensors(
                {name.removeprefix("moments."): tensor for name, tensor in tensors.items()}
            )
            calibration.sample.embeddings = tensors["sample.embeddings"].numpy()
            calibration.sample.priorities = tensors["sample.priorities"].numpy().view(np.uint64)
            if calibration.vocab_size is not None:
                calibration.document_frequencies = tensors["document_frequencies"].numpy()
            calibration.total_terms = settings["total_terms"]
            if "first_component.direction" in tensors:
                calibration._first_component = FirstComponent(
                    tensors["first_component.direction"], settings["coefficient"], settings["singular_value"]
                )
        except (KeyError, TypeError, ValueError) as err:
            raise ValueError(f"{path} must hold a whole calibration, got an error: {err}. Fit it again.") from err
        return calibration


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")
    return value


def _count_documents(term_ids: Sequence[NDArray[Any]], vocab_size: int) -> tuple[NDArray[np.int64], int]:
    """Number of documents that hold each term, ``(V,)``, and number of all terms."""
    lengths = [len(terms) for terms in term_ids]
    if sum(lengths) == 0:
        return np.zeros(vocab_size, dtype=np.int64), 0
    ids = np.concatenate([terms for terms in term_ids if len(terms)])
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"term_ids must be integers, got {ids.dtype}.")
    documents = np.repeat(np.arange(len(lengths)), lengths)
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = int(np.argmax((ids < 0) | (ids >= vocab_size)))
        raise ValueError(
            f"term_ids must be in [0, {vocab_size}), got {ids[wrong]} in document {documents[wrong]} of this batch. "
            "Use the vocabulary of this model."
        )
    distinct = np.unique(documents * vocab_size + ids)
    return np.bincount(distinct % vocab_size, minlength=vocab_size).astype(np.int64), len(ids)
