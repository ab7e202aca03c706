"""Mean and variance of every token's logit over a corpus, from its moments or from a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from st_keytokens.calibration.embedding_sample import EmbeddingSample
from st_keytokens.first_component import SecondMoments


class LogitsHead(Protocol):
    """What logit statistics need of an LM head."""

    @property
    def embedding_dimension(self) -> int:
        """As in ``LMHead``."""

    @property
    def vocab_size(self) -> int:
        """As in ``LMHead``."""

    @property
    def device(self) -> torch.device:
        """As in ``LMHead``."""

    @property
    def is_affine(self) -> bool:
        """As in ``LMHead``."""

    def logits(self, embeddings: Tensor) -> Tensor:
        """As in ``LMHead``."""


def _logits(lm_head: LogitsHead, embeddings: Tensor) -> Tensor:
    return lm_head.logits(embeddings.float().to(lm_head.device)).float()


def affine_statistics(
    moments: SecondMoments, lm_head: LogitsHead, transform: Callable[[Tensor], Tensor], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Mean and variance of all logits, exact for affine heads; see :meth:`Calibration.logit_statistics`."""
    values, vectors = torch.linalg.eigh(moments.covariance)
    rounding = moments.embedding_dimension * torch.finfo(torch.float64).eps
    is_kept = values > rounding * moments.second_moment.trace() / moments.count
    zero = torch.zeros_like(moments.sum)[None]
    spread = transform((vectors[:, is_kept] * values[is_kept].sqrt()).T) - transform(zero)
    origin = _logits(lm_head, zero)
    variance = torch.zeros_like(origin[0])
    for start in range(0, len(spread), batch_size):
        variance += (_logits(lm_head, spread[start : start + batch_size]) - origin).square_().sum(dim=0)
    return _logits(lm_head, transform(moments.mean[None]))[0], variance


def sample_statistics(
    sample: EmbeddingSample, lm_head: LogitsHead, transform: Callable[[Tensor], Tensor], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Mean and variance of all logits of the sample, for any head; see :meth:`Calibration.logit_statistics`."""
    rows = transform(torch.from_numpy(sample.embeddings))
    # Sums are taken of differences to the first embedding's logits: logits are often far from 0 and close together.
    origin = _logits(lm_head, rows[:1])
    total, squares = torch.zeros_like(origin[0]), torch.zeros_like(origin[0])
    for start in range(0, len(rows), batch_size):
        difference = _logits(lm_head, rows[start : start + batch_size]) - origin
        total += difference.sum(dim=0)
        squares += difference.square_().sum(dim=0)
    mean = total / len(rows)
    return origin[0] + mean, squares / len(rows) - mean.square()
