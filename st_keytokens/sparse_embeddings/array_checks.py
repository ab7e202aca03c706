"""Checks of the arrays that sparse rows are built from: TypeErrors for other kinds of number, else ValueErrors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def integer_array(name: str, value: ArrayLike, ndim: int) -> NDArray[Any]:
    """A new view of an array of integers; one without elements becomes int64."""
    array = _array(name, value, ndim, "iu", "integers")
    return array if array.size else array.astype(np.int64)


def float_array(name: str, value: ArrayLike, ndim: int) -> NDArray[np.float32]:
    """A new view of an array of numbers, or a copy where they are not float32."""
    floats, given = _floats(name, value, ndim)
    _check_finite(name, floats, given)
    return floats


def weight_array(name: str, value: ArrayLike) -> NDArray[np.float32]:
    """As :func:`float_array`, in one dimension, and all above zero."""
    floats, given = _floats(name, value, 1)
    if len(floats) and not (floats.min() > 0 and floats.max() < np.inf):  # also where one is NaN
        _check_finite(name, floats, given)
        raise ValueError(f"{name} must be > 0, got {floats[np.argmin(floats > 0)]}. Leave such terms out.")
    return floats


def check_pointers(indptr: NDArray[Any], nnz: int) -> None:
    """Check that row boundaries go from 0 to the number of indices and never back."""
    if not len(indptr) or indptr[0] != 0 or indptr[-1] != nnz:
        got = f"{indptr[0]} to {indptr[-1]}" if len(indptr) else "an empty array"
        raise ValueError(f"indptr must go from 0 to the number of indices, {nnz}, got {got}.")
    is_falling = indptr[1:] < indptr[:-1]
    if is_falling.any():
        row = int(np.argmax(is_falling))
        raise ValueError(f"indptr must not decrease, got {indptr[row]} then {indptr[row + 1]} at row {row}.")


def check_range(name: str, ids: NDArray[Any], vocab_size: int) -> None:
    """Check that token ids are in the vocabulary."""
    if len(ids) and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"{name} must be in 0..{vocab_size - 1} (vocab_size {vocab_size}), got {wrong}.")


def first_unordered(indptr: NDArray[Any], ids: NDArray[Any]) -> int | None:
    """Position of the first id that is not larger than the one before it in its row, or None."""
    if len(ids) < 2:
        return None
    is_wrong = ids[1:] <= ids[:-1]
    starts = indptr[1:-1]
    is_wrong[starts[(starts > 0) & (starts < len(ids))] - 1] = False
    position = int(np.argmax(is_wrong))
    return position + 1 if is_wrong[position] else None


def check_order(name: str, indptr: NDArray[Any], ids: NDArray[Any]) -> None:
    """Check that the ids of each row increase."""
    position = first_unordered(indptr, ids)
    if position is None:
        return
    row = int(np.searchsorted(indptr, position, side="right")) - 1
    if ids[position] == ids[position - 1]:
        raise ValueError(f"{name} must be unique in each row, got {ids[position]} twice in row {row}.")
    raise ValueError(
        f"{name} must increase in each row, got {ids[position - 1]} before {ids[position]} in row {row}. "
        "Use SparseEmbeddings.from_pairs or from_scipy, which sort."
    )


def _array(name: str, value: ArrayLike, ndim: int, kinds: str, rule: str) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(value).view()
    if array.size and array.dtype.kind not in kinds:
        raise TypeError(f"{name} must be {rule}, got dtype {array.dtype}.")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s' * (ndim > 1)}, got shape {array.shape}.")
    return array


def _floats(name: str, value: ArrayLike, ndim: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Numbers in float32, and as they were given."""
    given = _array(name, value, ndim, "fiu", "numbers")
    if given.dtype == np.float32:
        return given, given
    with np.errstate(over="ignore", under="ignore"):
        return given.astype(np.float32), given


def _check_finite(name: str, floats: NDArray[np.float32], given: NDArray[Any]) -> None:
    is_finite = np.isfinite(floats)
    if not is_finite.all():
        position = int(np.argmin(is_finite))
        raise ValueError(f"{name} must be finite in float32, got {given.flat[position]} at position {position}.")
