"""Files that are replaced atomically, and safetensors files read back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: If the file is truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}
    except SafetensorError as err:
        raise ValueError(f"{path} must be a whole safetensors file, got an error: {err}. Delete it.") from err


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file atomically: a reader finds the old content or the new, whenever the process dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process that died, or a link
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
