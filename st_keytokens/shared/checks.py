"""Checks of single arguments: whole numbers, numbers, choices."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real

__all__ = ["check_choice", "checked_float", "checked_int"]


def checked_int(name: str, value: int, minimum: int, maximum: int | None = None) -> int:
    """A whole number within bounds, of Python's or any library's integer type.

    Args:
        name: What errors call it.
        value: The number.
        minimum: The smallest one allowed.
        maximum: The largest one allowed; None for no bound.

    Returns:
        It as Python's int.

    Raises:
        TypeError: If it is not an integer; a bool is none.
        ValueError: If it is out of bounds.

    >>> checked_int("top_k", 10, minimum=1)
    10
    """
    number: int | None = value
    if type(value) is not int:
        try:
            is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"  # numpy 1's is an index
            number = None if is_bool else operator.index(value)
        except TypeError:
            number = None
    if number is None:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {value!r:.60}.")
    if number < minimum or (maximum is not None and number > maximum):
        rule = f">= {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ValueError(f"{name} must be {rule}, got {number}.")
    return number


def checked_float(name: str, value: float, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """A finite number within bounds, of Python's or numpy's number types.

    Args:
        name: What errors call it.
        value: The number.
        minimum: The smallest one allowed.
        maximum: The largest one allowed.

    Returns:
        It as Python's float.

    Raises:
        TypeError: If it is not a number; a bool is none.
        ValueError: If it is NaN, infinite or out of bounds.

    >>> checked_float("weight", 2, minimum=0)
    2.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r:.60}.")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        number = math.inf if value > 0 else -math.inf
    if not (math.isfinite(number) and minimum <= number <= maximum):
        if math.isfinite(maximum):
            rule = f"between {minimum} and {maximum}"
        else:
            rule = "finite" if math.isinf(minimum) else f"finite and >= {minimum}"
        raise ValueError(f"{name} must be {rule}, got {value if math.isfinite(number) else number}.")
    return number


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Check that a value is one of the allowed ones.

    Args:
        name: What errors call it.
        value: The value.
        choices: The allowed ones, in the order in which errors name them.

    Raises:
        ValueError: If it is not.

    >>> check_choice("mode", "dense", ("dense", "sparse"))
    """
    allowed = tuple(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
