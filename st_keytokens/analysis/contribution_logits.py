"""Logits in float32, and in two parts: what a direction of the embedding feeds, and what the rest does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from st_keytokens.first_component import remove
from st_keytokens.lm_head import LMHead

__all__ = ["float32_logits", "split_logits"]

_BLOCK_ROWS = 16_384  # of the head's weight, upcast at a time


def float32_logits(lm_head: LMHead, embeddings: Tensor) -> Tensor:
    """Logits as an LM head gives them, but not rounded to its dtype.

    Args:
        lm_head: The LM head.
        embeddings: Shape ``(batch_size, embedding_dimension)``, float, any device. Not modified.

    Returns:
        float32, shape ``(batch_size, vocab_size)``, on the head's device.

    Raises:
        TypeError: If embeddings are no floating-point tensor.
        ValueError: If their shape does not fit.

    >>> head = LMHead(torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 2.0]]).bfloat16()))
    >>> float32_logits(head, torch.tensor([[1.001, 1.0]]))
    tensor([[1.0010, 2.0000]])
    """
    hidden = lm_head.hidden_states(embeddings) * lm_head.scale
    starts = range(0, lm_head.vocab_size, _BLOCK_ROWS)
    logits = torch.cat([functional.linear(hidden, *lm_head.rows(i, i + _BLOCK_ROWS)) for i in starts], dim=1)
    return logits if lm_head.soft_cap is None else torch.tanh(logits / lm_head.soft_cap) * lm_head.soft_cap


def split_logits(lm_head: LMHead, embeddings: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the part of them that a direction feeds.

    Args:
        lm_head: The LM head.
        embeddings: Shape ``(batch_size, embedding_dimension)``, float, any device. Not modified.
        direction: Unit vector, shape ``(embedding_dimension,)``.

    Returns:
        Logits, and what is missing to them where the direction is projected out of the embeddings; both float32,
        shape ``(batch_size, vocab_size)``, on the head's device. The difference is the rest's part.

    Raises:
        TypeError: If a tensor is not floating-point.
        ValueError: If shapes do not fit, or the direction is not of length 1.

    >>> head = LMHead(torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [1.0, 2.0]])))
    >>> split_logits(head, torch.tensor([[3.0, 1.0]]), torch.tensor([1.0, 0.0]))
    (tensor([[3., 5.]]), tensor([[3., 3.]]))
    """
    embeddings = embeddings.float()
    rest = remove(embeddings, direction)
    logits = float32_logits(lm_head, embeddings)
    if not lm_head.is_affine:
        return logits, logits - float32_logits(lm_head, rest)
    unit = direction.to(embeddings)[None]
    fed = (float32_logits(lm_head, unit) - float32_logits(lm_head, torch.zeros_like(unit)))[0]  # without the bias
    return logits, ((embeddings @ unit[0]).to(fed.device))[:, None] * fed
