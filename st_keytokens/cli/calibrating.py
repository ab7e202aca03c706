"""Fitting a calibration on a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from st_keytokens.calibration import Calibration
from st_keytokens.cli.console import Console, UserError
from st_keytokens.cli.inputs import Corpus
from st_keytokens.encoder import KeyTokenEncoder


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


def check_can_calibrate(corpus: Corpus) -> None:
    """Refuses a corpus that is too small for a calibration.

    Raises:
        UserError: If there are fewer than two documents.
    """
    if len(corpus) < 2:
        raise UserError(
            f"{corpus.name} must hold at least two documents to calibrate on, got {len(corpus)}; thousands are good."
        )


def calibrate_on(
    encoder: KeyTokenEncoder,
    corpus: Corpus,
    console: Console,
    *,
    batch_size: int,
    state: str | Path | None = None,
    vectors: NDArray[np.float32] | None = None,
) -> Calibration:
    """Fits a calibration, and sets it in the encoder.

    Args:
        encoder: The encoder.
        corpus: Documents to fit it on.
        console: Whether there is a progress bar.
        batch_size: Texts a forward pass.
        state: See ``Calibration.fit(resume_from=...)``.
        vectors: The documents' pooled vectors. None: the documents are embedded.

    Returns:
        The calibration.

    Raises:
        ValueError: See ``Calibration.fit``.
    """
    encoder.calibration = Calibration.fit(
        encoder,
        Texts(corpus),
        embeddings=vectors,
        batch_size=batch_size,
        show_progress_bar=console.has_progress,
        resume_from=state,
    )
    return encoder.calibration
