"""The guide's and the README's code runs, and prints what they say."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2]
REPOSITORY = PACKAGE.parents[1]
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


def check(page, monkeypatch, folder, before=lambda content, names: None):
    if not page.exists() or not (REPOSITORY / "examples").is_dir():
        pytest.skip("it runs in a clone of the repository only")
    (folder / "examples").symlink_to(REPOSITORY / "examples")  # what a page saves is not saved in the clone
    monkeypatch.chdir(folder)
    names, printed, compared = {}, "", 0
    for kind, content in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "text":
            assert printed == content
            compared += 1
            continue
        before(content, names)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(content, names)
        printed = output.getvalue()
    assert compared


def test_the_readme(monkeypatch, tmp_path):
    check(PACKAGE / "README.md", monkeypatch, tmp_path)


@pytest.mark.slow
def test_the_guide(monkeypatch, tmp_path, connect_milvus):
    for package in ("langchain_classic", "langchain_milvus", "langchain_qdrant", "milvus_lite"):
        pytest.importorskip(package)

    def connect(content, names):
        if "milvus.db" in content:
            connect_milvus(f"{names['folder']}/milvus.db")

    check(REPOSITORY / "docs" / "langchain.md", monkeypatch, tmp_path, connect)
