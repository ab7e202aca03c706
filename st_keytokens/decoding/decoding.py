"""The best terms of a row of scores, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from st_keytokens.decoding.first_component import Correction, check_embeddings, correct


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
        """Decode embeddings."""


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
        """Scores of all tokens, before folding."""
        return self._scores(self._logits(embeddings))

    def key_tokens(self, embeddings: Tensor, k: int, activation: Activation) -> tuple[Tensor, Tensor]:
        """The best terms of each embedding."""
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
    """Embeddings in float32, and of length 1 where that is wanted."""
    embeddings = embeddings.float()
    return torch.nn.functional.normalize(embeddings, dim=-1) if is_normalizing else embeddings


def check_finite(embeddings: Tensor, first_row: int = 0) -> None:
    """Check that no value is NaN or infinite."""
    finite = torch.isfinite(embeddings).all(dim=1)
    if not finite.all():
        row = first_row + int((~finite).nonzero()[0])
        raise ValueError(f"embeddings must be finite, got NaN or infinity in row {row}. Embed that text again.")


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
