"""LM heads in a directory: their tensors in ``lm_head.safetensors``, what they do with them in ``lm_head.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

from st_keytokens.atomic_files import read_tensors, write_atomically
from st_keytokens.lm_head.head_parts import DTYPES, HeadParts, parts_of_tensors, tensors_by_name

_SETTINGS_FILE = "lm_head.json"
_TENSORS_FILE = "lm_head.safetensors"
_FORMAT_VERSION = 1


class SavedHead(NamedTuple):
    """What makes an LM head; see `LMHead`."""

    parts: HeadParts
    scale: float
    soft_cap: float | None
    compute_dtype: torch.dtype | None


def write_head(directory: Path, head: SavedHead) -> None:
    """Write a head; each of its files is replaced atomically.

    Args:
        directory: Made if it is not there.
        head: The head.

    Raises:
        OSError: If the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    transform = head.parts.transform
    settings = {
        "format_version": _FORMAT_VERSION,
        "scale": head.scale,
        "soft_cap": head.soft_cap,
        "activation": None if transform is None else transform.activation,
        "norm_eps": None if transform is None else transform.norm_eps,
        "compute_dtype": next((name for name, dtype in DTYPES.items() if dtype == head.compute_dtype), None),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors_by_name(head.parts).items()}
    write_atomically(directory / _TENSORS_FILE, safetensors.torch.save(tensors))
    write_atomically(directory / _SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())


def read_head(directory: Path, device: str | torch.device | None = None) -> SavedHead:
    """Read what `write_head` wrote.

    Args:
        directory: Where it was written.
        device: Where to put the tensors; the CPU for None.

    Returns:
        The head; its parts own their tensors.

    Raises:
        FileNotFoundError: If there is no saved head.
        ValueError: If a file is malformed or truncated, or of another format.
    """
    try:
        settings = json.loads((directory / _SETTINGS_FILE).read_text(encoding="utf-8"))
        if settings["format_version"] == _FORMAT_VERSION:
            tensors, _ = read_tensors(directory / _TENSORS_FILE)
            placed = {name: tensor.to(device) for name, tensor in tensors.items()}
            return SavedHead(
                parts_of_tensors(placed, settings["activation"], settings["norm_eps"]),
                settings["scale"],
                settings["soft_cap"],
                None if settings["compute_dtype"] is None else DTYPES[settings["compute_dtype"]],
            )
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{directory} must hold a saved LM head, got {err!r}. Save it again.") from err
    raise ValueError(
        f"{directory} must be of format {_FORMAT_VERSION}, got {settings['format_version']!r}. Install the "
        "st-keytokens that wrote it."
    )
