"""What a source of stored embeddings is: anything that gives them in batches, from any place on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["EmbeddingBatch", "EmbeddingSource"]


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """Some rows of a source.

    Attributes:
        ids: Their ids; None where the source has none, and rows are known by their numbers.
        embeddings: float32 ``(rows, embedding_dimension)``.
        position: Where to read on after them, for :meth:`EmbeddingSource.batches`: what JSON can hold, not None.
        texts: Their texts, where the source has them and was asked for them.
    """

    ids: list[str] | None
    embeddings: NDArray[np.float32]
    position: Any
    texts: list[str] | None = None


class EmbeddingSource(Protocol):
    """A file, an index, a table or a collection of dense vectors, which is not changed while it is read.

    Any object with these members is one, whatever its class: :func:`~st_keytokens.bulk.convert` takes it as it is, and
    :func:`~st_keytokens.bulk.register_source` makes :func:`~st_keytokens.bulk.open_source` know its kind.
    """

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a later run must find the same to go on: names of parts, version; what JSON can hold."""

    @property
    def rows(self) -> int | None:
        """How many rows it has; None where that is not known."""

    @property
    def has_ids(self) -> bool:
        """Whether its rows have ids of their own."""

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """Reads it, in the same order every time.

        Args:
            batch_size: Rows of a batch at the most.
            position: That of a batch, to begin after it. None: from the start.

        Returns:
            An iterator of batches.

        Raises:
            ValueError: While reading, if a row has no vector, or one of another width.
        """
