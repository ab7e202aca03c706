"""Mean and standard deviation of every token's logit over a corpus, from its moments or from a sample.

Both work through the vocabulary in blocks of the head's weight, upcast to float32, so that a head in half precision
rounds no logit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.calibration.embedding_sample import EmbeddingSample
from st_keytokens.first_component import SecondMoments
from st_keytokens.lm_head import LMHead

Statistics = tuple[NDArray[np.float32], NDArray[np.float32]]


def affine_statistics(
    moments: SecondMoments, lm_head: LMHead, transform: Callable[[Tensor], Tensor], block_size: int
) -> Statistics:
    """Mean and standard deviation of all logits, exact for affine heads.

    Args:
        moments: Of the embeddings; not empty.
        lm_head: An affine one.
        transform: Affine correction of embeddings, shape ``(n, d)``.
        block_size: Rows of the head's weight upcast at once.

    Returns:
        Mean and population standard deviation, float32, shape ``(V,)``; see :meth:`Calibration.logit_statistics`.
    """
    zero = torch.zeros_like(moments.sum)[None]
    spread = transform(_spread(moments)) - transform(zero)
    hidden = lm_head.hidden_states(spread * lm_head.scale)
    mean = transform(moments.mean[None])[0].to(lm_head.device, _widest(lm_head)) * lm_head.scale
    means, deviations = [], []
    for weight, bias in _blocks(lm_head, block_size):
        means.append((weight.to(mean.dtype) @ mean + bias).float().cpu())
        deviations.append(torch.linalg.vector_norm(weight @ hidden.T, dim=1).cpu())
    return torch.cat(means).numpy(), torch.cat(deviations).numpy()


def sample_statistics(
    sample: EmbeddingSample, lm_head: LMHead, transform: Callable[[Tensor], Tensor], block_size: int
) -> Statistics:
    """Mean and standard deviation of all logits of the sample, for any head.

    Args:
        sample: Of the embeddings; not empty.
        lm_head: Any.
        transform: Correction of embeddings, shape ``(n, d)``.
        block_size: Rows of the head's weight upcast at once.

    Returns:
        Mean and population standard deviation, float32, shape ``(V,)``; see :meth:`Calibration.logit_statistics`.
    """
    _, first, counts = np.unique(sample.priorities, return_index=True, return_counts=True)  # each embedding once
    hidden = lm_head.hidden_states(transform(torch.from_numpy(sample.embeddings[first]))) * lm_head.scale
    share = torch.from_numpy(counts / counts.sum()).to(lm_head.device, _widest(lm_head))[:, None]
    means, deviations = [], []
    for weight, bias in _blocks(lm_head, block_size):
        logits = hidden @ weight.T + bias
        if lm_head.soft_cap is not None:
            logits = torch.tanh(logits / lm_head.soft_cap) * lm_head.soft_cap
        logits = logits.to(share.dtype)
        mean = (logits * share).sum(dim=0)
        means.append(mean.float().cpu())
        deviations.append(((logits - mean).square_() * share).sum(dim=0).sqrt_().float().cpu())
    return torch.cat(means).numpy(), torch.cat(deviations).numpy()


def _spread(moments: SecondMoments) -> Tensor:
    """Vectors ``√λⱼ uⱼ`` of the covariance ``Σⱼ λⱼ uⱼ uⱼᵀ``, float64, shape ``(rank, d)``."""
    values, vectors = torch.linalg.eigh(moments.covariance)
    rounding = torch.finfo(torch.float64).eps * moments.second_moment.trace() / moments.count
    if values.sum() <= rounding * (moments.embedding_dimension + moments.count):  # sums of equal embeddings
        return torch.zeros_like(vectors[:0])
    is_kept = values > rounding * moments.embedding_dimension
    spread: Tensor = (vectors[:, is_kept] * values[is_kept].sqrt()).T
    return spread


def _blocks(lm_head: LMHead, block_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the output weight, shape ``(block, hidden_size)``, and of the scaled bias, as logits are computed."""
    for start in range(0, lm_head.vocab_size, block_size):
        weight, bias = lm_head.rows(start, start + block_size)
        yield weight, weight.new_zeros(len(weight)) if bias is None else bias


def _widest(lm_head: LMHead) -> torch.dtype:
    return torch.float32 if lm_head.device.type == "mps" else torch.float64
