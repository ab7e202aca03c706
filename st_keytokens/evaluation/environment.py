"""Where a measurement was made."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["describe_environment"]

_PACKAGES = (
    "st-keytokens",
    "sentence-transformers",
    "transformers",
    "torch",
    "numpy",
    "scipy",
    "ir-measures",
    "bm25s",
)


def describe_environment(device: str = "cpu") -> dict[str, object]:
    """Versions, hardware and date, ready for JSON.

    Args:
        device: Where the model ran, as torch writes it.

    Returns:
        ``date`` (UTC), ``python``, ``platform``, ``cpu``, ``cpu_count``, ``threads``, ``device`` and ``packages``;
        a package that is not installed is None.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
