"""The script that counts what is lost, in its version of a minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEAST = {"copies": 10, "writers": 4, "interrupts": 45, "flips": 40, "operations": 50, "files": 400}

pytest.importorskip("hypothesis")


def test_quick(tmp_path):
    process = subprocess.run(
        [sys.executable, "examples/benchmarks/reliability.py", "--quick", "--output", tmp_path / "reliability.json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    parts = json.loads((tmp_path / "reliability.json").read_text())["parts"]
    assert {name for name, part in parts.items() if part.get("losses") == []} == set(LEAST)
    assert all(parts[name]["trials"] >= least for name, least in LEAST.items())
    assert [point["changes"] for point in parts["costs"]["single adds"]][-1] == 300
    page = (tmp_path / "reliability.md").read_text()
    assert page.startswith("# What an index survives\n\n**0 losses in ")


def test_a_loss_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    from reliability_page import page

    part = {"trials": 3, "losses": ["segments/x at byte 7"], "seconds": 1.0, "is_quick": True}
    env = {"date": "", "commit": "", "cores": 1, "processor": "", "load_average": 1}
    lines = page({"parts": {"flips": part}, "env": env}).splitlines()
    assert lines[2] == "**1 loss in 3 trials.**"
    assert lines[4] == "- flips: segments/x at byte 7"
    assert any(line.startswith("| One bit flipped") and "(quick) | 3 | 1 |" in line for line in lines)
