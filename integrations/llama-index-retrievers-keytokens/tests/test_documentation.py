"""The guide's and the README's snippets run in their order, and print what the documentation says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

pytest.importorskip("llama_index.core")

from llama_index.retrievers.keytokens import hits

PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parents[1]
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
@pytest.mark.parametrize("file", [PACKAGE / "README.md", REPOSITORY / "docs" / "llama_index.md"], ids=lambda f: f.name)
def test_snippets(file, capsys, monkeypatch, tmp_path):
    if not file.is_file():
        pytest.skip("needs the st-keytokens repository")
    pytest.importorskip("llama_index.vector_stores.qdrant")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")  # what a page saves is not saved in the clone
    monkeypatch.chdir(tmp_path)
    names, printed, compared = {"__name__": "snippets"}, "", 0
    for kind, body in BLOCK.findall(file.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(body, file.name, "exec"), names)
            printed = capsys.readouterr().out
        else:
            assert printed == body
            compared += 1
    assert compared


def test_doctests():
    assert doctest.testmod(hits) == doctest.TestResults(failed=0, attempted=4)
