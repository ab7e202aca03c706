"""Files that hold a calibration, finished or half fitted: safetensors and JSON, checked against their hash."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from st_keytokens.atomic_files import read_tensors, write_atomically

FORMAT_VERSION = 3
_TENSORS_FILE, _SETTINGS_FILE = "calibration.safetensors", "calibration.json"
_NOT_HASHED = {"model_name", "hash"}

State = tuple[dict[str, Tensor], dict[str, Any]]
"""A calibration as tensors and JSON values."""


def state_hash(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, over tensors on the CPU and settings, except a model's name."""
    hashed = {name: value for name, value in settings.items() if name not in _NOT_HASHED}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def write_directory(directory: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Write ``calibration.safetensors`` and ``calibration.json``, each atomically; see :meth:`Calibration.save`."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {**settings, "hash": state_hash(tensors, settings)}
    _write_tensors(directory / _TENSORS_FILE, tensors)
    write_atomically(directory / _SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())


def read_directory(directory: Path) -> State:
    """Read what :func:`write_directory` wrote; see :meth:`Calibration.load`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is truncated, altered, or of an unknown format version.
    """
    path = directory / _TENSORS_FILE
    for name in (_SETTINGS_FILE, _TENSORS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"directory must hold {name}, got none in {str(directory)!r}.")
    try:
        settings = json.loads((directory / _SETTINGS_FILE).read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{directory / _SETTINGS_FILE} must be JSON, got {err}. Fit the calibration again.") from err
    return _checked(path, read_tensors(path)[0], settings)


def write_progress(path: Path, tensors: dict[str, Tensor], settings: dict[str, Any], consumed: int, seen: str) -> None:
    """Write the state file of a fit, atomically.

    Args:
        path: The file.
        tensors: Of the calibration.
        settings: Of the calibration.
        consumed: Items that were added.
        seen: Hash of these items.
    """
    settings = {**settings, "consumed": consumed, "seen": seen}
    state = json.dumps({**settings, "hash": state_hash(tensors, settings)})
    _write_tensors(path, tensors, {"state": state})


def read_progress(path: Path) -> State:
    """Read what :func:`write_progress` wrote; ``consumed`` and ``seen`` are among the settings.

    Raises:
        ValueError: If the file is truncated, altered, no state file, or of an unknown format version.
    """
    tensors, metadata = read_tensors(path)
    try:
        settings = json.loads(metadata["state"])
    except (KeyError, ValueError) as err:
        raise ValueError(f"resume_from must be a calibration's state file, got {path}. Delete it.") from err
    return _checked(path, tensors, settings)


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace a safetensors file atomically, without a copy of the tensors in memory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.touch()
        safetensors.torch.save_file(tensors, temporary, metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as err:
        raise OSError(f"{path} cannot be written: {err}.") from err
    finally:
        temporary.unlink(missing_ok=True)


def _checked(path: Path, tensors: dict[str, Tensor], settings: Any) -> State:
    version = settings.get("format_version") if isinstance(settings, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} must have format_version {FORMAT_VERSION}, got {version}. Fit the calibration again, or use the "
            "version of st-keytokens that wrote it."
        )
    if (found := state_hash(tensors, settings)) != settings.get("hash"):
        raise ValueError(
            f"{path} must have the hash {settings.get('hash')} that it was written with, got {found}: it or its "
            "settings were altered. Delete it and fit the calibration again."
        )
    return tensors, settings
