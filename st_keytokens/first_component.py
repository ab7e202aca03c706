"""The first component of a set of embeddings: fitted by streaming, then removed, shifted along or centred away.

The first component is the first right singular vector of the *uncentred* matrix of pooled embeddings. It is close to
their mean direction and feeds frequent words to the LM head; without it the key tokens surface. :class:`SecondMoments`
streams the ``d × d`` matrix that determines it, so that any number of texts fits in ``O(d²)`` memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Correction", "FirstComponent", "SecondMoments", "center", "correct", "remove", "shift"]

Correction = Literal["none", "remove", "shift", "center"]

_BLOCK_ROWS = 8192  # rows upcast to float64 at a time
_ZERO_COEFFICIENT = 1e-9  # a mean projection below this share of the root mean square projection counts as zero


@dataclass(frozen=True, eq=False)
class FirstComponent:
    """First right singular vector of uncentred embeddings.

    Its sign is fixed: the mean of the embeddings projects positively on it. Where the mean projection is zero (below
    1e-9 of the root mean square projection), the entry of largest magnitude is positive, the first of equals. If the
    largest singular value is repeated, every unit vector of its space is a first component and one of them is taken.

    Attributes:
        direction: Unit vector, shape ``(embedding_dimension,)``, float32, on the CPU.
        coefficient: Mean projection of the embeddings on it, in embedding units, zero or positive.
        singular_value: Largest singular value of the uncentred matrix of embeddings; it grows with their number.
    """

    direction: Tensor
    coefficient: float
    singular_value: float


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
        if embedding_dimension < 1:
            raise ValueError(f"embedding_dimension must be at least 1, got {embedding_dimension}.")
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

    def update(self, embeddings: Tensor | NDArray[Any]) -> None:
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

    def _check_finite(self, block: Tensor | NDArray[Any], start: int) -> None:
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
        """First right singular vector of all embeddings seen, from the top eigenpair of the second-moment matrix.

        Defined for any rank: one text, identical texts and fewer texts than dimensions have one as well.

        Raises:
            ValueError: If no embedding was seen, or all were zero vectors.

        Source:
            Nie et al. 2025 (arXiv 2406.17378): singular value decomposition of the uncentred embeddings. Differs from
            it in working from the streamed second moments and in fixing the sign.
        """
        self._check_not_empty()
        matrix, last = self.second_moment.cpu().numpy(), self.embedding_dimension - 1
        if not matrix.any():
            raise ValueError(
                f"embeddings must not all be zero, got {self.count} zero vectors: they have no first component. "
                "Check the model's pooling."
            )
        values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[last, last])
        vector = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
        singular_value = float(np.sqrt(values[0]))
        coefficient = float(vector @ self.mean.cpu().numpy())
        if abs(coefficient) <= _ZERO_COEFFICIENT * singular_value / self.count**0.5:
            coefficient = 0.0
            largest = int(np.argmax(np.abs(vector) >= (1 - 1e-6) * np.abs(vector).max()))
            sign = np.copysign(1.0, vector[largest])
        else:
            sign = np.copysign(1.0, coefficient)
        direction = torch.from_numpy((sign * vector).astype(np.float32) + np.float32(0))  # + 0: no negative zeros
        return FirstComponent(direction=direction, coefficient=abs(coefficient), singular_value=singular_value)

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


def check_embeddings(embeddings: Tensor | NDArray[Any], embedding_dimension: int | None = None) -> None:
    """Check that ``embeddings`` is a floating-point matrix, of ``embedding_dimension`` columns if given.

    Raises:
        TypeError: If it is neither a tensor nor an array, or holds no floating-point numbers.
        ValueError: If its shape is wrong.
    """
    if not isinstance(embeddings, Tensor | np.ndarray):
        raise TypeError(f"embeddings must be a torch tensor or a numpy array, got {type(embeddings).__name__}.")
    is_floating = (
        embeddings.is_floating_point()
        if isinstance(embeddings, Tensor)
        else np.issubdtype(embeddings.dtype, np.floating)
    )
    if not is_floating:
        raise TypeError(
            f"embeddings must be floating-point numbers, got {embeddings.dtype}. Quantised embeddings must be "
            "converted back first."
        )
    width = "embedding_dimension" if embedding_dimension is None else embedding_dimension
    if embeddings.ndim != 2 or (embedding_dimension is not None and embeddings.shape[1] != embedding_dimension):
        raise ValueError(
            f"embeddings must have shape (batch_size, {width}), got {tuple(embeddings.shape)}. Pass the pooled "
            "embeddings of one model, one row a text."
        )


def as_tensor(block: Tensor | NDArray[Any]) -> Tensor:
    """A detached tensor of at least float32 precision from an array, or the detached tensor itself."""
    if isinstance(block, Tensor):
        return block.detach()
    # A copy: a memory-mapped block may be read-only, and every byte order becomes the machine's own.
    return torch.from_numpy(np.array(block, dtype=np.float64 if block.dtype.itemsize >= 8 else np.float32))


def remove(embeddings: Tensor, direction: Tensor) -> Tensor:
    """Project a direction out of embeddings: ``x − (x·u) u``.

    Args:
        embeddings: Shape ``(..., embedding_dimension)``, float, any device. Not modified.
        direction: Unit vector ``u``, shape ``(embedding_dimension,)``, any float dtype and device.

    Returns:
        Tensor of the same shape, dtype and device, computed in float32 (float64 for float64 input).

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the last dimensions differ, or ``direction`` is not of length 1.

    Source:
        Nie et al. 2025 (arXiv 2406.17378), contribution of the first component.

    Example:
        >>> remove(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 0.0])).tolist()
        [[0.0, 4.0]]
    """
    x, u = _operands(embeddings, direction, "direction", is_unit=True)
    return (x - (x * u).sum(dim=-1, keepdim=True) * u).to(embeddings.dtype)


def shift(embeddings: Tensor, direction: Tensor, amount: float) -> Tensor:
    """Move embeddings along a direction: ``x + amount · u``.

    Args:
        embeddings: Shape ``(..., embedding_dimension)``, float, any device. Not modified.
        direction: Unit vector ``u``, shape ``(embedding_dimension,)``, any float dtype and device.
        amount: Signed distance in embedding units; negative values surface key tokens. It means something only beside
            the stored sign of ``direction``.

    Returns:
        Tensor of the same shape, dtype and device, computed in float32 (float64 for float64 input).

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the last dimensions differ, ``direction`` is not of length 1, or ``amount`` is not finite.

    Source:
        Nie et al. 2025 (arXiv 2406.17378), where the amount is called λ.

    Example:
        >>> shift(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 0.0]), -2.0).tolist()
        [[1.0, 4.0]]
    """
    if not np.isfinite(amount):
        raise ValueError(f"amount must be finite, got {amount}.")
    x, u = _operands(embeddings, direction, "direction", is_unit=True)
    return (x + amount * u).to(embeddings.dtype)


def center(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Subtract a mean embedding: ``x − mean``.

    Args:
        embeddings: Shape ``(..., embedding_dimension)``, float, any device. Not modified.
        mean: Shape ``(embedding_dimension,)``, any float dtype and device.

    Returns:
        Tensor of the same shape, dtype and device, computed in float32 (float64 for float64 input).

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the last dimensions differ.

    Example:
        >>> center(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 1.0])).tolist()
        [[2.0, 3.0]]
    """
    x, m = _operands(embeddings, mean, "mean", is_unit=False)
    return (x - m).to(embeddings.dtype)


def correct(
    embeddings: Tensor,
    correction: Correction,
    *,
    direction: Tensor | None = None,
    mean: Tensor | None = None,
    amount: float | None = None,
) -> Tensor:
    """Apply a correction by name: :func:`remove`, :func:`shift`, :func:`center`, or ``"none"`` (the input itself).

    Args:
        embeddings: Shape ``(..., embedding_dimension)``, float, any device. Not modified.
        correction: Which one.
        direction: First component, wanted by ``"remove"`` and ``"shift"``.
        mean: Mean embedding, wanted by ``"center"``.
        amount: Signed distance in embedding units, wanted by ``"shift"``.

    Returns:
        Tensor of the same shape, dtype and device.

    Raises:
        ValueError: If ``correction`` is unknown, or an argument that it wants is missing.

    Example:
        >>> correct(torch.tensor([[3.0, 4.0]]), "center", mean=torch.tensor([1.0, 1.0])).tolist()
        [[2.0, 3.0]]
    """
    if correction == "none":
        return embeddings
    if correction == "remove" and direction is not None:
        return remove(embeddings, direction)
    if correction == "shift" and direction is not None and amount is not None:
        return shift(embeddings, direction, amount)
    if correction == "center" and mean is not None:
        return center(embeddings, mean)
    if correction not in get_args(Correction):
        raise ValueError(f"correction must be one of {get_args(Correction)}, got {correction!r}.")
    wanted = {"remove": "direction", "shift": "direction and amount", "center": "mean"}[correction]
    raise ValueError(f"{wanted} must be given for correction={correction!r}, got None.")


def _operands(embeddings: Tensor, vector: Tensor, name: str, *, is_unit: bool) -> tuple[Tensor, Tensor]:
    for label, value in (("embeddings", embeddings), (name, vector)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{label} must be a floating-point tensor, got {kind}.")
    if vector.ndim != 1 or embeddings.ndim == 0 or embeddings.shape[-1] != len(vector):
        raise ValueError(
            f"{name} must have shape ({embeddings.shape[-1] if embeddings.ndim else 'embedding_dimension'},) to fit "
            f"embeddings of shape {tuple(embeddings.shape)}, got {tuple(vector.shape)}. Use one fitted for this model."
        )
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    vector = vector.to(embeddings.device, dtype)
    if is_unit and not abs((length := float(torch.linalg.vector_norm(vector))) - 1) < 1e-2:
        raise ValueError(f"{name} must be of length 1, got length {length:.6g}. Divide it by its norm.")
    return embeddings.to(dtype), vector
