"""Second moments of a stream of embeddings: the ``d × d`` matrix that determines its first component."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from st_keytokens.checks import checked_int
from st_keytokens.first_component.dense_embeddings import Dense, as_tensor, check_embeddings
from st_keytokens.first_component.first_component import FirstComponent

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
        """Add a batch of embeddings; on an error nothing is added.

        Args:
            embeddings: Shape ``(batch_size, embedding_dimension)``, any float dtype and device; memory-mapped arrays
                are read in blocks. ``batch_size`` may be 0. Not modified.

        Raises:
            TypeError: If ``embeddings`` is no array or tensor of floating-point numbers.
            ValueError: If its shape is wrong, or a row holds a NaN or a value that is infinite in float32.
        """
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
