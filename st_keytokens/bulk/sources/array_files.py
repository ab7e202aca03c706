"""Matrices in files: ``.npy`` and ``.safetensors``. Their rows have no ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch


class NpySource:
    """The matrix of a ``.npy`` file, memory-mapped.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds something else than a matrix of floats.
    """

    has_ids = False

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as err:
            raise ValueError(f"{path} must be a .npy file of numbers, got something else.") from err
        if not isinstance(array, np.ndarray):
            raise ValueError(
                f"{path} must be a .npy file, got an .npz archive. Save the array itself with numpy.save."
            )
        _check_matrix(self.name, array.shape, array.dtype, np.issubdtype(array.dtype, np.floating))
        self._array: NDArray[Any] = array
        self.rows = len(array)
        self.identity: dict[str, Any] = {"kind": "npy", "shape": list(array.shape)}

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """See :class:`~st_keytokens.bulk.sources.embedding_source.EmbeddingSource`; a position is a row."""
        for start in range(position or 0, self.rows, batch_size):
            part = np.array(self._array[start : start + batch_size], dtype=np.float32)
            yield EmbeddingBatch(None, part, start + len(part))


class SafetensorsSource:
    """A matrix of a ``.safetensors`` file, in any floating-point type, read slice by slice.

    Args:
        path: The file.
        tensor: Its name; None where it is the only one.

    Raises:
        OSError: If it cannot be read.
        ValueError: If there is no such matrix of floats.
    """

    has_ids = False

    def __init__(self, path: Path, tensor: str | None = None) -> None:
        self.name = str(path)
        try:
            opened: Any = safe_open(path, framework="pt")
        except SafetensorError as err:
            raise ValueError(f"{path} must be a whole safetensors file, got an error: {err}.") from err
        self._file: Any = opened
        names = sorted(opened.keys())
        if tensor not in names and (tensor is not None or len(names) != 1):
            got = "more than one" if tensor is None else repr(tensor)
            raise ValueError(f"vector_column must be one of the tensors {', '.join(names)} of {path}, got {got}.")
        self._tensor = names[0] if tensor is None else tensor
        part = opened.get_slice(self._tensor)
        shape, dtype = part.get_shape(), part.get_dtype()
        _check_matrix(self.name, tuple(shape), dtype, dtype in ("F64", "F32", "F16", "BF16"))
        self.rows: int = shape[0]
        self.identity: dict[str, Any] = {"kind": "safetensors", "tensor": self._tensor, "shape": list(shape)}

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """See :class:`~st_keytokens.bulk.sources.embedding_source.EmbeddingSource`; a position is a row."""
        part = self._file.get_slice(self._tensor)
        for start in range(position or 0, self.rows, batch_size):
            rows = part[start : start + batch_size].float().numpy()
            yield EmbeddingBatch(None, rows, start + len(rows))


def _check_matrix(name: str, shape: tuple[int, ...], dtype: Any, is_floating: bool) -> None:
    if len(shape) != 2 or not is_floating:
        raise ValueError(f"{name} must hold a matrix of floats, one row a text, got {dtype} of shape {shape}.")
