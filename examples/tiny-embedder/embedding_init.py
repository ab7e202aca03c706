"""Token embeddings from counts: the truncated SVD of the training text's positive pointwise mutual information.

Source: Levy and Goldberg 2014, "Neural word embedding as implicit matrix factorization"; context smoothing after
Levy, Goldberg and Dagan 2015. A few seconds of linear algebra that save a small model most of its pretraining.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse


def cooccurrences(ids: np.ndarray, vocab_size: int, window: int) -> sparse.csr_matrix:
    """Symmetric counts of tokens at most ``window`` apart, each weighted by the inverse of the distance."""
    total = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    block = 8_000_000
    for distance in range(1, window + 1):
        for start in range(0, len(ids) - distance, block):
            left, right = ids[start : start + block], ids[start + distance : start + distance + block]
            weights = np.full(min(len(left), len(right)), 1.0 / distance, dtype=np.float32)
            pairs = (left[: len(weights)], right[: len(weights)])
            total += sparse.coo_matrix((weights, pairs), shape=total.shape).tocsr()
    return (total + total.T).tocsr()


def ppmi_embeddings(
    ids: np.ndarray, vocab_size: int, dimension: int, window: int = 5, smoothing: float = 0.75, seed: int = 0
) -> torch.Tensor:
    """Shape ``(vocab_size, dimension)``, float32, rows of norm 1 (zero where a token never occurs)."""
    counts = cooccurrences(ids, vocab_size, window).tocoo()
    word = np.asarray(counts.sum(axis=1)).ravel()
    context = word**smoothing
    context /= context.sum()
    pmi = np.log(counts.data / (word[counts.row] * context[counts.col]))
    keep = pmi > 0
    matrix = torch.zeros(vocab_size, vocab_size)
    matrix[torch.from_numpy(counts.row[keep]).long(), torch.from_numpy(counts.col[keep]).long()] = torch.from_numpy(
        pmi[keep].astype(np.float32)
    )
    torch.manual_seed(seed)
    left, singular_values, _ = torch.svd_lowrank(matrix, q=dimension + 64, niter=6)
    embeddings = left[:, :dimension] * singular_values[:dimension].sqrt()
    return torch.nn.functional.normalize(embeddings, dim=1)
