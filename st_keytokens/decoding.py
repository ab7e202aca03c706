"""The way from pooled embeddings to key tokens: correct, decode, scale, fold, keep the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from st_keytokens.decoder import Decoder
from st_keytokens.first_component import Correction, check_embeddings, correct
from st_keytokens.top_terms import top_terms

Activation = Literal["relu", "log1p", "softplus"]

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "log1p": lambda scores: torch.log1p(torch.relu(scores)),
    "softplus": torch.nn.functional.softplus,
}
_BLOCK_SCORES = 1_250_000  # 5 MB of float32


@dataclass(frozen=True, eq=False)
class Decoding:
    """Everything that decoding needs, ready on the decoder's device.

    Args:
        decoder: Gives the logits of its tokens, here ``vocab_size`` in number.
        is_normalizing: Whether embeddings are decoded at length 1.
        correction: What is done to embeddings before they are decoded.
        direction: First component, shape ``(embedding_dimension,)``, for ``"remove"`` and ``"shift"``.
        mean: Mean embedding, shape ``(embedding_dimension,)``, for ``"center"``.
        shift: Signed amount for ``"shift"``.
        scale: Factor of each token's logit, float32, shape ``(vocab_size,)``; 0 for a masked token.
        offset: What is added after that, float32, shape ``(vocab_size,)``; ``-inf`` for a masked token.
        terms: Term of each token, int64, shape ``(vocab_size,)``.
    """

    decoder: Decoder
    is_normalizing: bool
    correction: Correction
    direction: Tensor | None
    mean: Tensor | None
    shift: float
    scale: Tensor
    offset: Tensor
    terms: Tensor

    def scores(self, embeddings: Tensor) -> Tensor:
        """Scores of all tokens, before folding.

        Args:
            embeddings: Shape ``(batch_size, embedding_dimension)``, float, any device. Not modified.

        Returns:
            float32 ``(batch_size, vocab_size)``; masked tokens are ``-inf``.

        Raises:
            TypeError: If embeddings are no floating-point tensor.
            ValueError: If their shape is wrong, or a value is not finite.
        """
        return self._scores(self._logits(embeddings))

    def key_tokens(self, embeddings: Tensor, k: int, activation: Activation) -> tuple[Tensor, Tensor]:
        """The best terms of each embedding.

        Args:
            embeddings: Shape ``(batch_size, embedding_dimension)``, float, any device. Not modified.
            k: Terms kept.
            activation: Turns scores into weights; what it leaves at zero is dropped.

        Returns:
            Term ids, int64, and weights, float32, both ``(batch_size, min(k, vocab_size))``: ids ascending, weights
            positive, the rest of a row 0. A zero embedding has none.

        Raises:
            TypeError: See :meth:`scores`.
            ValueError: See :meth:`scores`.
        """
        logits = self._logits(embeddings)
        if not len(logits):
            empty = torch.zeros(0, min(k, logits.shape[1]), device=logits.device)
            return empty.long(), empty
        # On the CPU in blocks that stay in its cache: what follows the product is bound by memory, not by arithmetic.
        rows = max(1, _BLOCK_SCORES // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
        best = [top_terms(self._scores(block), self.terms, k) for block in torch.split(logits, rows)]
        ids, scores = (torch.cat(parts) for parts in zip(*best, strict=True))
        is_text = embeddings.ne(0).any(dim=1, keepdim=True).to(scores.device)  # a zero vector says nothing
        weights = torch.where(is_text, _ACTIVATIONS[activation](scores), 0.0)
        ids = torch.where(weights > 0, ids, torch.iinfo(torch.int64).max)
        ids, order = ids.sort(dim=1)
        weights = weights.gather(1, order)
        return torch.where(weights > 0, ids, 0), weights

    def _logits(self, embeddings: Tensor) -> Tensor:
        check_embeddings(embeddings, self.decoder.embedding_dimension)
        check_finite(embeddings)
        vectors = prepared(embeddings, self.is_normalizing).to(self.decoder.device)
        return self.decoder.logits(
            correct(vectors, self.correction, direction=self.direction, mean=self.mean, amount=self.shift)
        )

    def _scores(self, logits: Tensor) -> Tensor:
        return torch.addcmul(self.offset, logits, self.scale).float()


def prepared(embeddings: Tensor, is_normalizing: bool) -> Tensor:
    """Embeddings in float32, and of length 1 where that is wanted.

    Args:
        embeddings: Shape ``(batch_size, embedding_dimension)``, any float dtype and device. Not modified.
        is_normalizing: Whether they are divided by their length.

    Returns:
        float32 tensor of the same shape, on the same device. An all-zero row stays zero.
    """
    embeddings = embeddings.float()
    return torch.nn.functional.normalize(embeddings, dim=-1) if is_normalizing else embeddings


def check_finite(embeddings: Tensor, first_row: int = 0) -> None:
    """Check that no value is NaN or infinite.

    Args:
        embeddings: Shape ``(batch_size, embedding_dimension)``.
        first_row: What errors call the first row.

    Raises:
        ValueError: Naming the first row that is not finite.
    """
    finite = torch.isfinite(embeddings).all(dim=1)
    if not finite.all():
        row = first_row + int((~finite).nonzero()[0])
        raise ValueError(f"embeddings must be finite, got NaN or infinity in row {row}. Embed that text again.")
