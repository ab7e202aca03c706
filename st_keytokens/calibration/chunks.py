"""A corpus in chunks: texts to embed, texts with stored embeddings, or stored embeddings alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.calibration.embedding_sample import float32_rows
from st_keytokens.first_component import Dense, check_embeddings

Documents = tuple[Dense, Sequence[NDArray[Any]] | None]
"""Embeddings and, where terms are counted, the term ids of each document."""

Chunk = tuple[list[bytes], Callable[[int], Documents]]
"""What identifies each item of a chunk, and a function that reads its documents from an item on."""

_CHUNK_BATCHES = 16  # the encoder sorts a chunk by length before it forms batches


class CalibrationVocabulary(Protocol):
    """What a calibration needs of a vocabulary."""

    @property
    def vocab_size(self) -> int:
        """As in ``Vocabulary``."""

    @property
    def hash(self) -> str:
        """As in ``Vocabulary``."""


class CalibrationEncoder(Protocol):
    """What a calibration needs of an encoder."""

    @property
    def model_name(self) -> str | None:
        """As in ``KeyTokenEncoder``."""

    @property
    def vocabulary(self) -> CalibrationVocabulary:
        """As in ``KeyTokenEncoder``."""

    def embed(self, texts: list[str], *, role: Any, batch_size: int) -> NDArray[np.float32]:
        """As in ``KeyTokenEncoder``."""

    def prepare_embeddings(self, embeddings: Dense) -> Dense:
        """What ``embed`` gives, of vectors as the model gives them."""

    def literal_terms(self, texts: list[str]) -> list[NDArray[Any]]:
        """As in ``KeyTokenEncoder``."""


def text_chunks(
    encoder: CalibrationEncoder, texts: Iterable[str], embeddings: Dense | None, batch_size: int
) -> Iterator[Chunk]:
    """Chunks of texts.

    Args:
        encoder: Embeds them, and finds their terms.
        texts: The texts.
        embeddings: Their vectors, shape ``(N, d)``, as the model gives them; None: they are embedded.
        batch_size: Texts a forward pass.

    Yields:
        Chunks of 16 batches. Nothing is embedded until it is read.

    Raises:
        TypeError: If something is not a string.
        ValueError: If the numbers of texts and embeddings differ.
    """
    iterator, start = iter(texts), 0
    while chunk := list(islice(iterator, _CHUNK_BATCHES * batch_size)):
        for position, text in enumerate(chunk, start):
            if not isinstance(text, str):
                raise TypeError(f"texts must be strings, got {type(text).__name__} at position {position}.")
        keys = [text.encode("utf-8", "surrogatepass") for text in chunk]
        stored = None if embeddings is None else embeddings[start : start + len(chunk)]
        if stored is not None:
            check_embeddings(stored)
            if len(stored) != len(chunk):
                raise unequal(start + len(stored), f"at least {start + len(chunk)}")
            keys = [text + row.tobytes() for text, row in zip(keys, float32_rows(stored), strict=True)]
        start += len(chunk)

        def read(first: int, chunk: list[str] = chunk, stored: Dense | None = stored) -> Documents:
            if stored is None:
                dense: Dense = encoder.embed(chunk[first:], role="document", batch_size=batch_size)
            else:
                dense = encoder.prepare_embeddings(stored[first:])
            return dense, encoder.literal_terms(chunk[first:])

        yield keys, read
    if embeddings is not None and len(embeddings) > start:
        raise unequal(len(embeddings), start)


def embedding_chunks(embeddings: Dense | Iterable[Dense], batch_size: int) -> Iterator[Chunk]:
    """Chunks of stored embeddings.

    Args:
        embeddings: An array or tensor, shape ``(N, d)``, or batches of rows.
        batch_size: Rows of an array in a chunk; batches are taken as they are.

    Yields:
        Chunks without terms.

    Raises:
        TypeError: If a batch is no array or tensor of floating-point numbers.
        ValueError: If a shape is wrong.
    """
    batches: Iterable[Dense] = embeddings
    if isinstance(embeddings, Tensor | np.ndarray):
        check_embeddings(embeddings)
        rows = embeddings
        batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    for batch in batches:
        check_embeddings(batch)

        def read(first: int, batch: Dense = batch) -> Documents:
            return batch[first:], None

        yield [row.tobytes() for row in float32_rows(batch)], read


def unequal(rows: int, texts: int | str) -> ValueError:
    """The error that numbers of embeddings and texts differ."""
    return ValueError(f"embeddings must have one row a text, got {rows} rows for {texts} texts.")
