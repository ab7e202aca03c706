from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="notebooks are run by nbclient, of the extra dev")
pytest.importorskip("ipykernel", reason="notebooks are run in ipykernel, of the extra dev")
pytest.importorskip("matplotlib", reason="the notebooks draw pictures")

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NEEDS = {"hybrid_rag": "langchain_keytokens"}
NUMBER = re.compile(r"-?\d+\.\d+")
LARGEST = 400 * 1024  # bytes


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def shown(notebook):
    """What each cell prints and shows as text: the text that holds no address, and the text of tables."""
    cells = []
    for cell in notebook["cells"]:
        texts = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = output.get("text", data.get("text/markdown", ""))
            texts.append("".join(text))
            texts += sorted(data)
        cells.append("".join(texts))
    return cells


def runner():
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["hybrid_rag", "reading_an_embedding"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebooks:
    def test_committed_outputs(self, path):
        notebook, text = read(path), path.read_text(encoding="utf-8")
        assert path.stat().st_size < LARGEST
        for private in ("/home/", "/root/", "/tmp/", "/Users/", "site-packages", " at 0x"):
            assert private not in text
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        assert not [
            o for cell in code for o in cell["outputs"] if o["output_type"] == "error" or "stderr" in o.values()
        ]

    def test_run_gives_what_is_committed(self, path):
        if path.stem in NEEDS:
            pytest.importorskip(NEEDS[path.stem], reason=f"{path.name} needs it")
        found = shown(runner().run(path))
        for now, before in zip(found, shown(read(path)), strict=True):
            assert NUMBER.sub("#", now) == NUMBER.sub("#", before)
            numbers = [[float(number) for number in NUMBER.findall(text)] for text in (now, before)]
            assert numbers[0] == pytest.approx(numbers[1], abs=0.011)
