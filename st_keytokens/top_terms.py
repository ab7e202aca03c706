"""The best terms of a row of scores, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 32  # scores; smaller ones have more maxima to sort, larger ones more candidates


def top_terms(scores: Tensor, terms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best distinct terms of each row; a term scores as the best of the tokens that fold into it.

    Args:
        scores: Score of each token, float ``(batch_size, vocab_size)``.
        terms: Term of each token, int64 ``(vocab_size,)``.
        k: Terms wanted.

    Returns:
        Term ids and scores, both ``(batch_size, min(k, vocab_size))``, best first; where a row has fewer terms, the
        last scores are ``-inf``.

    >>> ids, best = top_terms(torch.tensor([[0.1, 0.9, 0.8, 0.4]]), torch.tensor([0, 1, 1, 3]), 2)
    >>> ids.tolist()
    [[1, 3]]
    """
    vocab_size = scores.shape[1]
    k = min(k, vocab_size)
    depth = min(vocab_size, k + k // 4 + 8)
    while True:
        values, tokens = top_k(scores, depth)  # descending, so the first token of a term is its best
        folded, order = terms[tokens].sort(dim=1, stable=True)
        values = values.gather(1, order)
        is_repeated = torch.zeros_like(folded, dtype=torch.bool)
        is_repeated[:, 1:] = folded[:, 1:] == folded[:, :-1]
        values = values.masked_fill(is_repeated, float("-inf"))
        if depth == vocab_size or int((~is_repeated).sum(dim=1).min()) >= k:
            best, positions = values.topk(k, dim=1)
            return folded.gather(1, positions), best
        depth = min(vocab_size, 2 * depth)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``scores.topk(k, dim=1)``, on the CPU faster for wide rows.

    There the k blocks with the largest maxima are found first: whatever is among the k best lies in one of them, and
    is not below the least of these maxima.

    Args:
        scores: ``(batch_size, width)``, float.
        k: At most ``width``.

    Returns:
        Values, descending, and positions, both ``(batch_size, k)``.
    """
    rows, width = scores.shape
    blocks = width // _BLOCK
    if scores.device.type != "cpu" or k > blocks:
        values, positions = scores.topk(k, dim=1)
        return values, positions
    whole = scores[:, : blocks * _BLOCK].reshape(rows, blocks, _BLOCK)
    maxima, chosen = whole.amax(dim=2).topk(k, dim=1, sorted=False)
    flat = (chosen + torch.arange(rows).unsqueeze(1) * blocks).reshape(-1)
    candidates = whole.reshape(rows * blocks, _BLOCK).index_select(0, flat).reshape(rows, -1)
    if width % _BLOCK:
        candidates = torch.cat([candidates, scores[:, blocks * _BLOCK :]], dim=1)
    values, places = _at_least(candidates, maxima.amin(dim=1, keepdim=True))
    values, order = values.topk(k, dim=1)
    places = places.gather(1, order)
    block = chosen.gather(1, (places // _BLOCK).clamp(max=k - 1))
    tail = places - k * _BLOCK + blocks * _BLOCK
    return values, torch.where(places < k * _BLOCK, block * _BLOCK + places % _BLOCK, tail)


def _at_least(scores: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """The scores of each row not below its ``least``, ``(batch_size, 1)``, and their places, padded at the end."""
    is_kept = ~(scores < least)  # NaN counts as the largest, as in topk
    counts = is_kept.sum(dim=1)
    row, place = is_kept.nonzero(as_tuple=True)
    seat = torch.arange(len(row)) - (counts.cumsum(dim=0) - counts)[row]
    values = scores.new_full((len(scores), int(counts.max())), float("-inf"))
    places = torch.zeros(values.shape, dtype=torch.int64)
    values[row, seat], places[row, seat] = scores[row, place], place
    return values, places
