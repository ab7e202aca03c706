"""What a measurement has to say about where it was made."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
STARTED = time.perf_counter()  # scripts import this before they measure
PACKAGES = (
    "st-keytokens",
    "sentence-transformers",
    "transformers",
    "torch",
    "numpy",
    "scipy",
    "numba",
    "bm25s",
    "matplotlib",
    "scikit-learn",
    "keybert",
    "pyarrow",
)


def environment() -> dict[str, Any]:
    """Hardware, versions, commit, date, threads, and the seconds since the script began."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), "")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "processor": processor or platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 1),
        "took_s": round(time.perf_counter() - STARTED),
        "versions": versions,
    }


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Writes ``docs/results/<name>.json`` with the environment."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"env": environment(), **results}, indent=2) + "\n", encoding="utf-8")
    return path


def made_again(command: str, env: dict[str, Any]) -> str:
    """The end of a results page: the command that makes it, and with which commit, where, and in what time it did."""
    seconds = env.get("took_s")
    took = "how long it took was not recorded" if seconds is None else f"it took {max(1, round(seconds / 60))} minutes"
    threads = env["torch_threads"]
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    return (
        f"## Made again\n\n```bash\n{command}\n```\n\nMeasured on {env['date']} at commit {env['commit']}, on "
        f"{env['cores']} cores of {env['processor']} with {threads} thread{'' if threads == 1 else 's'} (load average "
        f"{env['load_average']}); {took}. Python {env['python']}, {versions}.\n"
    )
