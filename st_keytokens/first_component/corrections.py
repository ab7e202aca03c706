"""Corrections of embeddings: a direction removed or shifted along, a mean subtracted."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from st_keytokens.checks import check_choice, checked_float

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
