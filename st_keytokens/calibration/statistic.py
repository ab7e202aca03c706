"""What a statistic of a corpus has to do to be streamed, merged, resumed and saved with a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Statistic(Protocol):
    """Numbers that a calibration accumulates over a corpus.

    Its ``update`` takes what it needs of a batch of documents: embeddings, term counts, or both. It must not fail on
    what :meth:`Calibration.update` has checked, so that a batch enters all statistics or none.
    """

    def merge(self, other: Any) -> None:
        """Add everything that ``other``, one of the same class and shape, has seen. ``other`` is not modified."""

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as CPU tensors, for safetensors and for the hash."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Statistic:
        """Restore what :meth:`to_tensors` gave, bit for bit.

        Raises:
            KeyError: If a tensor is missing.
            ValueError: If tensors are missing or do not fit together.
        """
