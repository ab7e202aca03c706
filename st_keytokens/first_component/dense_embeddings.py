"""Dense embeddings as they are given: arrays or tensors, of any float dtype, on any device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    """Embeddings as a tensor.

    Args:
        block: Array or tensor of floating-point numbers, any shape. Not modified.

    Returns:
        A detached tensor: a copy of an array, in float32 or, if it is wider, in float64; a tensor itself.
    """
    if isinstance(block, Tensor):
        return block.detach()
    # A copy: a memory-mapped block may be read-only, and every byte order becomes the machine's own.
    return torch.from_numpy(np.array(block, dtype=np.float64 if block.dtype.itemsize >= 8 else np.float32))
