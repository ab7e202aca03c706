"""Every script of the examples finds what it imports from those beside it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.rglob("*.py") if path.parent.name != "notebooks")
OURS = {path.stem for path in SCRIPTS}
OPTIONAL = {"duckdb", "keybert", "langchain_community", "llama_index", "peft", "pyspark", "qdrant_edge", "ray"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(EXAMPLES).as_posix())
def test_script_can_be_imported(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(script.parent)
    before = set(sys.modules)
    try:
        runpy.run_path(str(script), run_name="imported")
    except ModuleNotFoundError as missing:
        if str(missing.name).split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{missing.name} is not installed")
    finally:
        for name in (set(sys.modules) - before) & OURS:
            del sys.modules[name]
