"""The guide's code runs, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[4]
GUIDE = REPOSITORY / "docs" / "langchain.md"
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_the_guide(monkeypatch):
    for package in ("langchain_classic", "langchain_milvus", "langchain_qdrant", "milvus_lite"):
        pytest.importorskip(package)
    if not GUIDE.exists():
        pytest.skip("the guide is in a clone of the repository only")
    monkeypatch.chdir(REPOSITORY)
    names, printed = {}, ""
    for kind, content in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if kind == "text":
            assert printed == content
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(content, names)
        printed = output.getvalue()
