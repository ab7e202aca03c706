"""A uniform sample of a stream of embeddings that does not depend on batches, order or merging."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.decoding.first_component import Dense, FirstComponent, as_tensor, check_embeddings
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.shared.checks import checked_int
from st_keytokens.terms.term_values import DENSE, TermValues
from st_keytokens.terms.weighting import K1


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


_BLOCK_ROWS = 8192  # rows upcast to float64 at a time


class SecondMoments:
    """Count, sum and second-moment matrix ``XᵀX`` of a stream of embeddings ``X``.

    Everything is accumulated in float64, on every device: a batch is moved to ``device`` and upcast there, and enters
    by one matrix product. Float64 products are slow on consumer GPUs, yet one batch costs far less than its forward
    pass; devices without float64 (``mps``) cannot hold the moments, but their embeddings are accepted.

    Args:
        embedding_dimension: Width ``d`` of the embeddings, at least 1.
        device: Where the moments are held, with float64 support.

    Attributes:
        count: Number of embeddings seen.
        sum: Their sum, shape ``(d,)``, float64.
        second_moment: Their uncentred second-moment matrix ``XᵀX`` (not divided by the count), ``(d, d)``, float64.

    Raises:
        TypeError: If ``embedding_dimension`` is not an integer.
        ValueError: If ``embedding_dimension`` is below 1 or ``device`` has no float64.

    Example:
        >>> moments = SecondMoments(2)
        >>> moments.update(torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        >>> moments.count, moments.mean.tolist()
        (2, [2.0, 0.0])
        >>> moments.first_component().direction.tolist()
        [1.0, 0.0]
    """

    def __init__(self, embedding_dimension: int, *, device: str | torch.device = "cpu") -> None:
        embedding_dimension = checked_int("embedding_dimension", embedding_dimension, minimum=1)
        if torch.device(device).type == "mps":
            raise ValueError(
                f"device must support float64, got {str(device)!r}. Keep the moments on 'cpu': update() takes "
                "embeddings from any device."
            )
        self.count = 0
        with torch.inference_mode(False):  # so that updates work inside and outside of inference mode
            self.sum = torch.zeros(embedding_dimension, dtype=torch.float64, device=device)
            self.second_moment = torch.zeros(
                (embedding_dimension, embedding_dimension), dtype=torch.float64, device=device
            )

    @property
    def embedding_dimension(self) -> int:
        """Width of the embeddings."""
        return self.sum.shape[0]

    @property
    def device(self) -> torch.device:
        """Device that holds the moments."""
        return self.sum.device

    def __repr__(self) -> str:
        return f"SecondMoments(embedding_dimension={self.embedding_dimension}, count={self.count})"

    def update(self, embeddings: Dense) -> None:
        """Add a batch of embeddings; on an error nothing is added."""
        check_embeddings(embeddings, self.embedding_dimension)
        starts = range(0, len(embeddings), _BLOCK_ROWS)
        with torch.no_grad():
            for start in starts:
                self._check_finite(embeddings[start : start + _BLOCK_ROWS], start)
            for start in starts:
                block = as_tensor(embeddings[start : start + _BLOCK_ROWS]).to(self.device, torch.float64)
                self.sum.add_(block.sum(dim=0))
                self.second_moment.addmm_(block.T, block)
        self.count += len(embeddings)

    def _check_finite(self, block: Dense, start: int) -> None:
        is_finite = torch.isfinite(as_tensor(block).float()).all(dim=1)
        if not bool(is_finite.all()):
            row = int((~is_finite).nonzero()[0])
            values = as_tensor(block[row]).float()
            value = float(values[~torch.isfinite(values)][0])
            raise ValueError(
                f"embeddings must be finite in float32, got {value} in row {start + row} of this batch (embedding "
                f"{self.count + start + row} of all given, counted from 0). Leave that text out, or run the model in "
                "float32."
            )

    def merge(self, other: SecondMoments) -> None:
        """Add everything that ``other`` has seen, as if it had been given to this object. ``other`` is not modified.

        Raises:
            TypeError: If ``other`` is not a SecondMoments.
            ValueError: If the embedding dimensions differ.
        """
        if not isinstance(other, SecondMoments):
            raise TypeError(f"other must be a SecondMoments, got {type(other).__name__}.")
        if other.embedding_dimension != self.embedding_dimension:
            raise ValueError(
                f"other must have embedding_dimension {self.embedding_dimension}, got {other.embedding_dimension}. "
                "Merge moments of the same model only."
            )
        self.sum.add_(other.sum.to(self.device))
        self.second_moment.add_(other.second_moment.to(self.device))
        self.count += other.count

    @property
    def mean(self) -> Tensor:
        """Mean embedding, shape ``(embedding_dimension,)``, float64.

        Raises:
            ValueError: If no embedding was seen.
        """
        self._check_not_empty()
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Population covariance (divided by the count), shape ``(d, d)``, float64; all zero for a single embedding.

        Raises:
            ValueError: If no embedding was seen.
        """
        mean = self.mean
        return self.second_moment / self.count - torch.outer(mean, mean)

    def first_component(self) -> FirstComponent:
        """First right singular vector of all embeddings seen.

        Defined for any rank: one text, identical texts and fewer texts than dimensions have one as well.

        Raises:
            ValueError: If no embedding was seen, or all were zero vectors.
        """
        mean = self.mean.cpu().numpy()
        if not self.second_moment.any():
            raise ValueError(
                f"embeddings must not all be zero, got {self.count} zero vectors: they have no first component. "
                "Check the model's pooling."
            )
        return FirstComponent.from_moments(self.second_moment.cpu().numpy(), mean, self.count)

    def _check_not_empty(self) -> None:
        if self.count == 0:
            raise ValueError("SecondMoments must hold at least one embedding, got none. Call update() first.")

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as CPU tensors ``count`` (int64 scalar), ``sum`` and ``second_moment``, for safetensors."""
        return {
            "count": torch.tensor(self.count, dtype=torch.int64),
            "sum": self.sum.detach().cpu().clone(),
            "second_moment": self.second_moment.detach().cpu().clone(),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, device: str | torch.device = "cpu") -> SecondMoments:
        """Restore what :meth:`to_tensors` gave, bit for bit.

        Raises:
            ValueError: If a tensor is missing or of the wrong shape or dtype.
        """
        missing = {"count", "sum", "second_moment"} - set(tensors)
        if missing:
            raise ValueError(f"tensors must hold count, sum and second_moment, got none named {sorted(missing)}.")
        total, second = tensors["sum"], tensors["second_moment"]
        if (
            total.ndim != 1
            or second.shape != (len(total), len(total))
            or {total.dtype, second.dtype} != {torch.float64}
        ):
            raise ValueError(
                "tensors must hold float64 sum (d,) and second_moment (d, d), got "
                f"{total.dtype} {tuple(total.shape)} and {second.dtype} {tuple(second.shape)}."
            )
        moments = cls(len(total), device=device)
        moments.count = int(tensors["count"])
        moments.sum.copy_(total)
        moments.second_moment.copy_(second)
        return moments


Statistics = tuple[NDArray[np.float32], NDArray[np.float32]]


def affine_statistics(
    moments: SecondMoments, lm_head: LMHead, transform: Callable[[Tensor], Tensor], block_size: int
) -> Statistics:
    """Mean and standard deviation of all logits, exact for affine heads."""
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


def _to_tensors(name: str, values: TermValues, vocab_size: int) -> dict[str, Tensor]:
    if vocab_size <= DENSE:
        return {name: torch.from_numpy(values.dense(vocab_size))}
    ids = {f"{name}_ids": torch.from_numpy(values.ids.copy()), "vocab_size": torch.tensor(vocab_size)}
    return {name: torch.from_numpy(values.values.copy()), **ids}


def _from_tensors(name: str, tensors: Mapping[str, Tensor]) -> tuple[TermValues, int]:
    values = tensors[name].numpy()
    if f"{name}_ids" in tensors:
        return TermValues(tensors[f"{name}_ids"].numpy(), values.copy()), int(tensors["vocab_size"])
    ids = np.flatnonzero(values)
    return TermValues(ids, values[ids]), len(values)


class TermCounts:
    """Document frequencies of literal terms, and how many terms there were. Memory grows with the terms that occur.

    Args:
        vocab_size: Size ``V`` of the vocabulary, at least 1.

    Attributes:
        vocab_size: As given.
        frequencies: Number of documents that hold each term that occurs, int64.
        total: Number of terms in all documents, with repetition.

    Raises:
        TypeError: If ``vocab_size`` is not an integer.
        ValueError: If ``vocab_size`` is below 1.

    Example:
        >>> terms = TermCounts(4)
        >>> terms.update(count_matrix([np.array([1, 1, 2]), np.array([2])], 4))
        >>> terms.document_frequencies.tolist(), terms.total
        ([0, 1, 2, 0], 4)
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = checked_int("vocab_size", vocab_size, minimum=1)
        self.frequencies = TermValues(np.zeros(0, np.int64), np.zeros(0, np.int64))
        self.total = 0

    @property
    def document_frequencies(self) -> NDArray[np.int64] | TermValues:
        """Number of documents that hold each term, int64, shape ``(V,)``, or by term in a large vocabulary."""
        return self.frequencies if self.vocab_size > DENSE else self.frequencies.dense(self.vocab_size)

    def update(self, counts: scipy.sparse.csr_array) -> None:
        """Add documents, as :func:`count_matrix` gives them, shape ``(batch_size, V)``. Not modified."""
        self.frequencies = self.frequencies.plus(*np.unique(counts.indices, return_counts=True))
        self.total += int(counts.data.sum())

    def merge(self, other: TermCounts) -> None:
        """Add everything that ``other``, of the same vocabulary, has seen. ``other`` is not modified."""
        self.frequencies = self.frequencies.plus(other.frequencies.ids, other.frequencies.values)
        self.total += other.total

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as CPU tensors ``document_frequencies`` and ``total`` (int64 scalar)."""
        return {
            **_to_tensors("document_frequencies", self.frequencies, self.vocab_size),
            "total": torch.tensor(self.total, dtype=torch.int64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TermCounts:
        """Restore what :meth:`to_tensors` gave.

        Raises:
            KeyError: If a tensor is missing.
        """
        frequencies, vocab_size = _from_tensors("document_frequencies", tensors)
        terms = cls(vocab_size)
        terms.frequencies, terms.total = frequencies, int(tensors["total"])
        return terms


def count_matrix(term_ids: Sequence[NDArray[Any]], vocab_size: int) -> scipy.sparse.csr_array:
    """Count the terms of each document.

    Args:
        term_ids: Terms of each document, with repetition, integers in ``[0, vocab_size)``.
        vocab_size: Size of the vocabulary.

    Returns:
        Counts of the terms that occur, int64, shape ``(len(term_ids), vocab_size)``; ids of a row ascending.

    Raises:
        TypeError: If term ids are not integers.
        ValueError: If a term id is out of range.

    Example:
        >>> count_matrix([np.array([3, 1, 3]), np.array([], dtype=int)], 4).toarray().tolist()
        [[0, 1, 0, 2], [0, 0, 0, 0]]
    """
    rows = [np.asarray(terms) for terms in term_ids]
    for terms in rows:
        if len(terms) and not np.issubdtype(terms.dtype, np.integer):
            raise TypeError(f"term_ids must be integers, got {terms.dtype}.")
    lengths = np.array([len(terms) for terms in rows], dtype=np.int64)
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *rows], dtype=np.int64, casting="unsafe")
    documents = np.repeat(np.arange(len(rows)), lengths)
    is_wrong = (ids < 0) | (ids >= vocab_size)
    if is_wrong.any():
        wrong = int(np.argmax(is_wrong))
        raise ValueError(
            f"term_ids must be in [0, {vocab_size}), got {ids[wrong]} in document {documents[wrong]} of this batch. "
            "Use the vocabulary of this model."
        )
    pairs, counts = np.unique(documents * vocab_size + ids, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(len(rows) + 1) * vocab_size)
    return scipy.sparse.csr_array((counts, pairs % vocab_size, starts), shape=(len(rows), vocab_size))


_BLOCK_DOCUMENTS = 2048  # bounds the products that are added at once
_BLOCK_TERMS = 8192
_GROWTH = 1.5


class TermCrossMoments:
    """Sums ``TᵀX`` over documents, for embeddings ``X`` and saturated frequencies ``T`` of literal terms.

    A term that occurs ``tf`` times in a document counts ``tf (k1 + 1) / (tf + k1)`` there, as in BM25 without
    normalisation by length, with ``k1 = 1.2``. Sums are float32, and only terms that occur have any: memory is
    ``4 d`` bytes a term, at most half as much again while they grow, and as much as all of them for a moment then.

    Args:
        embedding_dimension: Width ``d`` of the embeddings, at least 1.
        vocab_size: Size ``V`` of the vocabulary, at least 1.

    Attributes:
        weights: Sum of each term's saturated frequencies, float64; 0 for a term that does not occur.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If one is below 1.

    Example:
        >>> cross_moments = TermCrossMoments(2, vocab_size=4)
        >>> counts = scipy.sparse.csr_array([[0, 1, 0, 0], [0, 1, 0, 1]])
        >>> cross_moments.update(np.array([[1.0, 0.0], [3.0, 2.0]]), counts)
        >>> cross_moments.term_ids.tolist(), cross_moments.rows(cross_moments.term_ids).tolist()
        ([1, 3], [[4.0, 2.0], [3.0, 2.0]])
    """

    def __init__(self, embedding_dimension: int, vocab_size: int) -> None:
        embedding_dimension = checked_int("embedding_dimension", embedding_dimension, minimum=1)
        self.vocab_size = checked_int("vocab_size", vocab_size, minimum=1)
        self.weights = TermValues(np.zeros(0, np.int64), np.zeros(0))
        self._row_numbers = TermValues(np.zeros(0, np.int64), np.zeros(0, np.int64), -1)
        self._row_count = 0
        self._rows: NDArray[np.float32] = np.zeros((0, embedding_dimension), dtype=np.float32)

    @property
    def term_ids(self) -> NDArray[np.int64]:
        """Terms that occur, ascending."""
        return self._row_numbers.ids

    def rows(self, term_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """A copy of the sums of terms that occur, shape ``(len(term_ids), d)``."""
        rows: NDArray[np.float32] = self._rows[self._row_numbers[term_ids]]
        return rows

    def update(self, embeddings: Dense, counts: scipy.sparse.csr_array) -> None:
        """Add documents.

        Args:
            embeddings: Shape ``(batch_size, d)``, any float dtype and device. Not modified.
            counts: Their terms, as :func:`count_matrix` gives them, shape ``(batch_size, V)``. Not modified.
        """
        for start in range(0, len(embeddings), _BLOCK_DOCUMENTS):
            block = counts[start : start + _BLOCK_DOCUMENTS]
            frequencies = block.data * (K1 + 1) / (block.data + K1)
            term_ids, columns = np.unique(block.indices, return_inverse=True)
            narrow = scipy.sparse.csr_array(
                (frequencies.astype(np.float32), columns, block.indptr), shape=(block.shape[0], len(term_ids))
            )
            self._add(term_ids, narrow.T @ float32_rows(embeddings[start : start + _BLOCK_DOCUMENTS]))
            sums = np.bincount(columns, weights=frequencies, minlength=len(term_ids))
            self.weights = self.weights.plus(term_ids, sums)

    def merge(self, other: TermCrossMoments) -> None:
        """Add everything that ``other``, of the same sizes, has seen. ``other`` is not modified."""
        term_ids = other.term_ids
        for start in range(0, len(term_ids), _BLOCK_TERMS):
            block = term_ids[start : start + _BLOCK_TERMS]
            self._add(block, other.rows(block))
        self.weights = self.weights.plus(other.weights.ids, other.weights.values)

    def _add(self, term_ids: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        new = term_ids[self._row_numbers[term_ids] < 0]
        needed = self._row_count + len(new)
        if needed > len(self._rows):
            capacity = max(needed, min(self.vocab_size, int(_GROWTH * needed)))
            grown = np.zeros((capacity, self._rows.shape[1]), dtype=np.float32)
            grown[: self._row_count] = self._rows[: self._row_count]
            self._rows = grown
        if len(new):
            every = np.union1d(self._row_numbers.ids, new)
            numbers = self._row_numbers[every]
            numbers[np.searchsorted(every, new)] = np.arange(self._row_count, needed)
            self._row_numbers = TermValues(every, numbers, -1)
            self._row_count = needed
        self._rows[self._row_numbers[term_ids]] += rows

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as tensors ``weights`` and ``rows``, those of terms that occur, by ascending term."""
        return {
            **_to_tensors("weights", self.weights, self.vocab_size),
            "rows": torch.from_numpy(self.rows(self.term_ids)),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TermCrossMoments:
        """Restore what :meth:`to_tensors` gave.

        Raises:
            KeyError: If a tensor is missing.
            ValueError: If the tensors do not fit together.
        """
        rows: NDArray[Any] = tensors["rows"].numpy()
        weights, vocab_size = _from_tensors("weights", tensors)
        if len(rows) != len(weights.ids):
            raise ValueError(f"tensors must hold a row for each weight that is not 0, got {len(rows)} rows.")
        cross_moments = cls(rows.shape[1], vocab_size)
        cross_moments.weights, cross_moments._rows, cross_moments._row_count = weights, rows, len(rows)
        cross_moments._row_numbers = TermValues(weights.ids, np.arange(len(rows)), -1)
        return cross_moments


class EmbeddingSample:
    """A uniform sample of a stream of embeddings that does not depend on batches, order or merging.

    The ``size`` embeddings with the smallest keyed hash of their float32 values are kept. Embeddings with equal values
    have equal hashes and enter or stay out together.

    Args:
        embedding_dimension: Width of the embeddings.
        size: Most embeddings kept.

    Attributes:
        embeddings: The sample, float32, shape ``(n, embedding_dimension)``, ascending by hash.
        priorities: Their hashes, uint64, shape ``(n,)``.

    Example:
        >>> sample = EmbeddingSample(2, size=1)
        >>> sample.update(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
        >>> sample.embeddings.shape
        (1, 2)
    """

    def __init__(self, embedding_dimension: int, size: int = 1024) -> None:
        self.size = size
        self.embeddings: NDArray[np.float32] = np.zeros((0, embedding_dimension), dtype=np.float32)
        self.priorities: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)

    def update(self, embeddings: Dense) -> None:
        """Consider a batch, shape ``(batch_size, embedding_dimension)``, any float dtype and device. Not modified."""
        rows = float32_rows(embeddings)
        digests = (hashlib.blake2b(row, digest_size=8, key=b"st-keytokens").digest() for row in rows)
        self._keep(rows, np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64))

    def merge(self, other: EmbeddingSample) -> None:
        """Consider everything that ``other`` has seen. ``other`` is not modified."""
        self._keep(other.embeddings, other.priorities)

    def _keep(self, embeddings: NDArray[np.float32], priorities: NDArray[np.uint64]) -> None:
        if len(self.priorities) == self.size:
            is_candidate = priorities < self.priorities[-1]
            embeddings, priorities = embeddings[is_candidate], priorities[is_candidate]
        if len(priorities) == 0:
            return
        merged = np.concatenate([self.priorities, priorities])
        order = np.argsort(merged, kind="stable")[: self.size]
        self.embeddings = np.concatenate([self.embeddings, embeddings])[order]
        self.priorities = merged[order]

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as tensors ``embeddings`` and ``priorities`` (their bits as int64), for safetensors."""
        return {
            "embeddings": torch.from_numpy(self.embeddings),
            "priorities": torch.from_numpy(self.priorities.view(np.int64)),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EmbeddingSample:
        """Restore what :meth:`to_tensors` gave, of a sample of the usual size.

        Raises:
            KeyError: If a tensor is missing.
        """
        sample = cls(tensors["embeddings"].shape[1])
        sample.embeddings = tensors["embeddings"].numpy()
        sample.priorities = tensors["priorities"].numpy().view(np.uint64)
        return sample


def float32_rows(embeddings: Dense) -> NDArray[np.float32]:
    """Embeddings as a C-contiguous array on the CPU."""
    rows: NDArray[np.float32] = as_tensor(embeddings).to("cpu", torch.float32).contiguous().numpy()
    return rows
