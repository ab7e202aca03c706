"""Corrections of embeddings: a direction removed or shifted along, a mean subtracted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.shared.checks import check_choice, checked_float

Dense = Tensor | NDArray[Any]


def check_embeddings(embeddings: Dense, embedding_dimension: int | None = None) -> None:
    """Check that embeddings are a floating-point matrix.

    Args:
        embeddings: What should be one, shape ``(batch_size, embedding_dimension)``.
        embedding_dimension: The number of columns wanted; None: any.

    Raises:
        TypeError: If they are neither a tensor nor an array, or no floating-point numbers.
        ValueError: If their shape is wrong.
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


def as_tensor(block: Dense) -> Tensor:
    """Embeddings as a tensor."""
    if isinstance(block, Tensor):
        return block.detach()
    # A copy: a memory-mapped block may be read-only, and every byte order becomes the machine's own.
    return torch.from_numpy(np.array(block, dtype=np.float64 if block.dtype.itemsize >= 8 else np.float32))


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

    @classmethod
    def from_moments(cls, second_moment: NDArray[np.float64], mean: NDArray[np.float64], count: int) -> FirstComponent:
        """The top eigenpair of a second-moment matrix.

        Args:
            second_moment: ``XᵀX`` of embeddings ``X``, not all zero, shape ``(d, d)``. Not modified.
            mean: Their mean, shape ``(d,)``.
            count: Their number.

        Returns:
            The first component.

        Source:
            Nie et al. 2025 (arXiv 2406.17378): singular value decomposition of the uncentred embeddings. Differs from
            it in working from the streamed second moments and in fixing the sign.

        Example:
            >>> component = FirstComponent.from_moments(np.diag([9.0, 4.0]), np.array([-1.5, 1.0]), 2)
            >>> component.direction.tolist(), component.coefficient, component.singular_value
            ([-1.0, 0.0], 1.5, 3.0)
        """
        last = len(mean) - 1
        values, vectors = scipy.linalg.eigh(second_moment, subset_by_index=[last, last])
        vector = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
        singular_value = float(np.sqrt(values[0]))
        coefficient = float(vector @ mean)
        if abs(coefficient) <= _ZERO_COEFFICIENT * singular_value / count**0.5:
            coefficient = 0.0
            largest = int(np.argmax(np.abs(vector) >= (1 - 1e-6) * np.abs(vector).max()))
            sign = np.copysign(1.0, vector[largest])
        else:
            sign = np.copysign(1.0, coefficient)
        direction = torch.from_numpy((sign * vector).astype(np.float32) + np.float32(0))  # + 0: no negative zeros
        return cls(direction, abs(coefficient), singular_value)


Correction = Literal["none", "remove", "shift", "center"]


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
        TypeError: If a tensor is not floating-point, or ``amount`` is not a number.
        ValueError: If the last dimensions differ, ``direction`` is not of length 1, or ``amount`` is not finite.

    Source:
        Nie et al. 2025 (arXiv 2406.17378), where the amount is called λ.

    Example:
        >>> shift(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 0.0]), -2.0).tolist()
        [[1.0, 4.0]]
    """
    amount = checked_float("amount", amount)
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
        TypeError: See :func:`remove`, :func:`shift` and :func:`center`.
        ValueError: See there, or if ``correction`` is unknown, or an argument that it wants is missing.

    Example:
        >>> correct(torch.tensor([[3.0, 4.0]]), "center", mean=torch.tensor([1.0, 1.0])).tolist()
        [[2.0, 3.0]]
    """
    check_choice("correction", correction, get_args(Correction))
    if correction == "none":
        return embeddings
    if correction == "remove" and direction is not None:
        return remove(embeddings, direction)
    if correction == "shift" and direction is not None and amount is not None:
        return shift(embeddings, direction, amount)
    if correction == "center" and mean is not None:
        return center(embeddings, mean)
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
