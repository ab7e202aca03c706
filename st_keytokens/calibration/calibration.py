"""Calibration: what one pass over a corpus teaches about its embeddings and terms."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sized
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from st_keytokens.calibration.chunks import CalibrationEncoder, embedding_chunks, text_chunks, unequal
from st_keytokens.calibration.decodable_statistics import DecodableStatistics
from st_keytokens.calibration.known_items import KnownItems, decoded_trust
from st_keytokens.calibration.logit_statistics import affine_statistics, sample_statistics
from st_keytokens.calibration.state_files import read_directory, write_directory
from st_keytokens.calibration.streaming import stream
from st_keytokens.checks import checked_int
from st_keytokens.first_component import Correction, Dense, correct
from st_keytokens.lm_head import LMHead


class Calibration(DecodableStatistics):
    """What one pass over a corpus teaches about its embeddings and terms: fitted, saved, applied to an LM head.

    Fit one with :meth:`fit` or :meth:`fit_embeddings`; the constructor gives an empty one, to be filled by
    :meth:`update` and :meth:`merge`. See :class:`AccumulatedStatistics` for its arguments and attributes.

    Example:
        >>> calibration = Calibration(2)
        >>> calibration.update(np.array([[1.0, 0.0], [3.0, 0.0]]))
        >>> calibration.document_count, calibration.first_component.coefficient
        (2, 2.0)
    """

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
            batch_size: Texts a forward pass.
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
        calibration = stream(
            text_chunks(encoder, items.watch(texts), embeddings, checked_int("batch_size", batch_size, minimum=1)),
            partial(
                cls,
                vocab_size=vocabulary.vocab_size,
                vocabulary_hash=vocabulary.hash,
                model_name=encoder.model_name,
                fit_decoder=fit_decoder,
            ),
            bar=partial(tqdm, total=total, unit="text", desc="Calibrating", disable=not show_progress_bar),
            resume_from=resume_from,
            save_every=checked_int("save_every", save_every, minimum=1),
        )
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
        return stream(
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
