"""What a decoder is: it turns embeddings into a logit for every token of a vocabulary."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Decoder(Protocol):
    """All that decoding asks of what gives the logits: an LM head, or another map from embeddings to tokens."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, ``V``."""

    @property
    def embedding_dimension(self) -> int:
        """Width of the embeddings that go in."""

    @property
    def device(self) -> torch.device:
        """Where the logits are."""

    @property
    def is_scale_free(self) -> bool:
        """Whether an embedding twice as long has logits twice as high, so that its length changes no ranking."""

    def logits(self, embeddings: Tensor) -> Tensor:
        """Decode embeddings.

        Args:
            embeddings: Shape ``(batch_size, embedding_dimension)``, float32, finite, any device. Not modified.

        Returns:
            Logits, shape ``(batch_size, vocab_size)``, any float dtype, on the decoder's device.
        """
