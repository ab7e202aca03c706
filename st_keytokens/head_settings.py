"""The settings of a head: their names, types and choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args

from st_keytokens.checks import check_choice, checked_float, checked_int
from st_keytokens.decoding import Activation

HeadCorrection = Literal["auto", "none", "remove", "shift", "center"]
OutputMode = Literal["pairs", "sparse"]
DecoderName = Literal["auto", "lm_head", "ridge"]
ComputeDtype = Literal["float64", "float32", "float16", "bfloat16"]


class HeadSettings(TypedDict, total=False):
    """Keyword arguments of :class:`~st_keytokens.key_token_head.KeyTokenHead`; see there."""

    max_active_dims: int
    query_max_active_dims: int
    decode_with: DecoderName
    correction: HeadCorrection
    shift: float
    standardize: bool | None
    activation: Activation
    normalize: bool | None
    fold: bool
    output_mode: OutputMode
    compute_dtype: ComputeDtype | None


def checked_settings(settings: Mapping[str, Any]) -> HeadSettings:
    """All settings, checked, with numbers as Python's own.

    Args:
        settings: A value for each name in :class:`HeadSettings`.

    Returns:
        The settings.

    Raises:
        TypeError: If a number or a flag is of another type.
        ValueError: If a number is out of range, or a value is not one of its choices.
    """
    for name in ("standardize", "normalize", "fold"):
        if not isinstance(settings[name], bool) and (settings[name] is not None or name == "fold"):
            wanted = "a bool" if name == "fold" else "a bool or None"
            raise TypeError(f"{name} must be {wanted}, got {settings[name]!r}.")
    for name, choices in (
        ("decode_with", get_args(DecoderName)),
        ("correction", get_args(HeadCorrection)),
        ("activation", get_args(Activation)),
        ("output_mode", get_args(OutputMode)),
        ("compute_dtype", (None, *get_args(ComputeDtype))),
    ):
        check_choice(name, settings[name], choices)
    counts = {n: checked_int(n, settings[n], minimum=1) for n in ("max_active_dims", "query_max_active_dims")}
    return HeadSettings(**{**settings, **counts, "shift": checked_float("shift", settings["shift"])})  # type: ignore[typeddict-item]
