"""Fitting a calibration on a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_keytokens.calibration import Calibration
from st_keytokens.cli.console import Console, UserError
from st_keytokens.cli.inputs import BATCHES, Corpus
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.vocabulary import Vocabulary

_SAVE_EVERY = 16  # of Calibration.fit's batches


@dataclass(frozen=True)
class Texts:
    """The texts of a corpus, as often as they are wanted.

    Attributes:
        corpus: The corpus.
    """

    corpus: Corpus

    def __len__(self) -> int:
        return len(self.corpus)

    def __iter__(self) -> Iterator[str]:
        return (document.text or "" for document in self.corpus)


@dataclass(frozen=True)
class _BatchedEncoder:
    """What a calibration asks of an encoder, with a batch size for its forward passes."""

    encoder: KeyTokenEncoder
    batch_size: int

    @property
    def model_name(self) -> str | None:
        return self.encoder.model_name

    @property
    def vocabulary(self) -> Vocabulary:
        return self.encoder.vocabulary

    def embed(self, texts: list[str], *, role: Any) -> NDArray[np.float32]:
        return self.encoder.embed(texts, role=role, batch_size=self.batch_size)

    def prepare_embeddings(self, embeddings: Any) -> NDArray[np.float32]:
        return self.encoder.prepare_embeddings(embeddings)

    def literal_terms(self, texts: list[str]) -> list[NDArray[Any]]:
        return self.encoder.literal_terms(texts)


def calibrate_on(
    encoder: KeyTokenEncoder, corpus: Corpus, console: Console, *, batch_size: int, state: str | Path | None
) -> Calibration:
    """Fits a calibration, and sets it in the encoder.

    Args:
        encoder: The encoder.
        corpus: Documents to fit it on.
        console: Whether there is a progress bar.
        batch_size: Texts a forward pass.
        state: See ``Calibration.fit(resume_from=...)``.

    Returns:
        The calibration.

    Raises:
        UserError: If there are fewer than two documents.
        ValueError: See ``Calibration.fit``.
    """
    if len(corpus) < 2:
        raise UserError(
            f"{corpus.name} must hold at least two documents to calibrate on, got {len(corpus)}; thousands are good."
        )
    encoder.calibration = Calibration.fit(
        _BatchedEncoder(encoder, batch_size),
        Texts(corpus),
        batch_size=BATCHES * batch_size,
        show_progress_bar=console.has_progress,
        resume_from=state,
        save_every=_SAVE_EVERY,
    )
    return encoder.calibration
