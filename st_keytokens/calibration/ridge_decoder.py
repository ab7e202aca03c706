"""The ridge decoder: a linear map from embeddings to the terms of a corpus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.first_component import check_embeddings


@dataclass(frozen=True, eq=False)
class RidgeDecoder:
    """Decodes embeddings into terms of a corpus: ``(x − mean) @ weight.T``. See :meth:`Calibration.ridge_decoder`.

    Attributes:
        term_ids: The terms, ascending, int64, shape ``(n,)``; representatives, where variants are folded.
        weight: A row for each of them, shape ``(n, embedding_dimension)``.
        mean: Mean embedding of the corpus, float32, shape ``(embedding_dimension,)``.

    Example:
        >>> decoder = RidgeDecoder(np.array([3, 7]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0]))
        >>> decoder.logits(torch.tensor([[4.0, 0.0]]))
        tensor([[ 3., -2.]])
    """

    term_ids: NDArray[np.int64]
    weight: Tensor
    mean: Tensor

    @property
    def vocab_size(self) -> int:
        """Number of terms that it decodes to, ``n``."""
        return len(self.term_ids)

    @property
    def is_scale_free(self) -> bool:
        """Whether an embedding twice as long has logits twice as high: no, for the mean is subtracted."""
        return False

    @property
    def embedding_dimension(self) -> int:
        """Width of the embeddings that go in."""
        return self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        return self.weight.device

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> RidgeDecoder:
        """The decoder on another device, or with a weight of another dtype; the mean stays float32.

        Args:
            device: Where to put it; None: where it is.
            dtype: Floating-point dtype of the product; None: as it is.

        Returns:
            A decoder; tensors that need no change are shared.
        """
        return RidgeDecoder(self.term_ids, self.weight.to(device, dtype), self.mean.to(device))

    def with_normalized_terms(self) -> RidgeDecoder:
        """The decoder with each term's weights divided by their length plus the median length of all terms.

        So frequent terms do not win by the size of their weights, nor rare ones by that of their noise.

        Returns:
            A decoder. Where all weights are zero, they stay zero.

        Example:
            >>> decoder = RidgeDecoder(np.array([3, 7]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2))
            >>> decoder.with_normalized_terms().weight
            tensor([[0.7500, 0.0000],
                    [0.0000, 0.5000]])
        """
        lengths = self.weight.float().norm(dim=1, keepdim=True)
        if not lengths.any():
            return self
        divisors = (lengths + lengths[lengths > 0].median()).to(self.weight.dtype)
        return RidgeDecoder(self.term_ids, self.weight / divisors, self.mean)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Decode embeddings.

        Args:
            embeddings: As the calibration sees them (``prepare_embeddings``), shape
                ``(batch_size, embedding_dimension)``, float, any device. Not modified.

        Returns:
            A logit for each of :attr:`term_ids`, shape ``(batch_size, n)``, of the weight's dtype, on its device.

        Raises:
            TypeError: If embeddings are no floating-point numbers.
            ValueError: If their shape is wrong.
        """
        check_embeddings(embeddings, self.embedding_dimension)
        centred = embeddings.to(self.device, torch.float32) - self.mean
        return centred.to(self.weight.dtype) @ self.weight.T
