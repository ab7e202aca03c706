"""Where a measurement was made."""

from __future__ import annotations

import os
import platform
import subprocess
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
    "rank-bm25",
)
_PACKAGE = Path(__file__).resolve().parents[1]


def describe_environment(device: str = "cpu") -> dict[str, object]:
    """Versions, hardware and date, ready for JSON.

    Args:
        device: Where the model ran, as torch writes it.

    Returns:
        ``date`` (UTC), ``commit``, ``python``, ``platform``, ``cpu``, ``cpu_count``, ``threads``, ``device`` and
        ``packages``; a package that is not installed is None. The commit is that of the git checkout that this package
        is in, with ``+`` where its files differ from it, and None where it is in none.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(_PACKAGE),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _commit(package: Path) -> str | None:
    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # installed below somebody else's checkout, it is not in it
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


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
