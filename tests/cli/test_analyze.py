from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis.instructions import compare_instructions
from st_keytokens.analysis.pair import explain_pair, explain_sparse_pair

A = "Stars form when clouds of gas and dust collapse under their own gravity."
B = "The telescope measured the light of distant galaxies and of nearby stars."


@pytest.fixture
def run(run):
    """Runs an analysis; gives exit code, stdout and stderr."""
    return partial(run, "analyze")


@pytest.fixture(scope="module")
def corpus(sentences, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(sentences), encoding="utf-8")
    return path


class TestPair:
    def test_as_the_library_says(self, run, model):
        code, out, err = run("pair", model, A, B, "--top-k", 4, "--similarity", "dot", "--json")
        encoder = KeyTokenEncoder(str(model))
        assert (code, err) == (0, "")
        dense = explain_pair(encoder, A, B, top_k=4, similarity="dot").to_dict()
        assert json.loads(out) == {"dense": dense, "sparse": explain_sparse_pair(encoder, A, B).to_dict()}

    def test_for_people(self, run, model):
        code, out, err = run("pair", model, A, "text\x1b[2J")
        assert (code, err) == (0, "")
        assert out.startswith("Dense similarity\n  token ") and "\nSparse score\n" in out
        assert "\x1b" not in out

    def test_files(self, run, model, tmp_path):
        words = ["--output", tmp_path / "pair.json", "--html", tmp_path / "pair.html"]
        code, out, err = run("pair", model, A, "<script>", *words)
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == f"Saved in {tmp_path / 'pair.json'}, {tmp_path / 'pair.html'}."
        assert json.loads((tmp_path / "pair.json").read_text())["dense"]["other"] == "<script>"
        assert "<script" not in (tmp_path / "pair.html").read_text()

    def test_plot(self, run, model, tmp_path):
        pytest.importorskip("matplotlib", reason="pictures need matplotlib")
        assert run("pair", model, A, B, "--plot", tmp_path / "pair.SVG", "-q")[0] == 0
        assert "<svg" in (tmp_path / "pair.SVG").read_text()


class TestInstructions:
    def test_as_the_library_says(self, run, model):
        words = ["--instruction", "The ocean: ", "--instruction", "Bread: ", A, B, "--top-k", 5]
        code, out, err = run("instructions", model, *words, "--json", "--quiet")
        expected = compare_instructions(KeyTokenEncoder(str(model)), [A, B], ["The ocean: ", "Bread: "], top_k=5)
        assert (code, err) == (0, "")
        assert json.loads(out) == json.loads(json.dumps(expected.to_dict()))

    def test_for_people(self, run, model):
        code, out, err = run("instructions", model, A, "--instruction", "The ocean: ", "--baseline", "Bread: ")
        assert code == 0 and "own words are part of the pooled vector" in err
        headings = [line for line in out.splitlines() if line and not line.startswith(" ")]
        assert headings == ["All texts", A]
        assert [line.split("  ")[1] for line in out.splitlines()[2:3]] == ["The ocean:"]

    def test_from_a_file_with_a_page(self, run, model, corpus, tmp_path):
        pytest.importorskip("matplotlib", reason="pictures need matplotlib")
        words = ["--input", corpus, "--instruction", "x ", "--html", tmp_path / "page.html"]
        code, out, _ = run("instructions", model, *words, "--plot", tmp_path / "plot.png")
        page = (tmp_path / "page.html").read_text()
        assert code == 0 and out.endswith(f"Saved in {tmp_path / 'plot.png'}, {tmp_path / 'page.html'}.\n")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        assert page.count("<table>") == 21 and "data:image/svg+xml;base64," in page

    def test_needs_an_instruction_and_a_text(self, fails, model, tmp_path):
        assert fails("instructions", model, A).startswith("the following arguments are required: --instruction (see")
        (tmp_path / "empty.txt").write_text("")
        message = fails("instructions", model, "--instruction", "x", "--input", tmp_path / "empty.txt")
        assert message == "texts must hold at least one text, got none."
        assert "got both" in fails("instructions", model, A, "--instruction", "x", "--input", tmp_path / "empty.txt")


class TestAlignment:
    @pytest.mark.parametrize("definition", ["clean", "nie2025"])
    def test_an_embedder_and_its_backbone(self, run, model, corpus, llama_folder, definition):
        words = ["alignment", model, corpus, "--backbone", llama_folder, "--definition", definition]
        code, out, err = run(*words, "--json")
        assert (code, err) == (0, "")
        rows = json.loads(out)["rows"]
        assert any(name.startswith("backbone") for name in rows) and any(name.startswith("embedder") for name in rows)

    def test_alone_with_a_page(self, run, model, corpus, tmp_path):
        pytest.importorskip("matplotlib", reason="pictures need matplotlib")
        code, out, err = run("alignment", model, corpus, "--html", tmp_path / "a.html", "--plot", tmp_path / "a.svg")
        assert (code, err) == (0, "")
        assert out.startswith("50 texts\n") and "Hit@10" in out
        assert "Hit@10" in (tmp_path / "a.html").read_text() and (tmp_path / "a.svg").is_file()


class TestSpectrum:
    def test_an_embedder_beside_its_backbone(self, run, model, corpus, llama_folder):
        code, out, err = run("spectrum", model, llama_folder, corpus, "--json")
        found = json.loads(out)
        assert (code, err) == (0, "")
        assert list(found) == ["variation", "contribution", "shift"]
        assert max(map(abs, found["variation"]["variations"])) < 1e-4  # the backbone is the embedder's own

    def test_pictures(self, run, model, corpus, llama_folder, tmp_path):
        pytest.importorskip("matplotlib", reason="pictures need matplotlib")
        words = ["--plot", tmp_path / "s.svg", "--html", tmp_path / "s.html", "--output", tmp_path / "s.json"]
        code, out, _ = run("spectrum", model, llama_folder, corpus, *words)
        assert code == 0 and out.startswith("Variation\n")
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["s-contribution.svg", "s-shift.svg", "s.html", "s.json", "s.svg"]
        assert (tmp_path / "s.html").read_text().count("<img") == 3


class TestErrors:
    def test_arguments(self, fails, model, tmp_path):
        assert fails("pair", model, A, B, "--plot", "x.pdf").startswith(
            "argument --plot: must end in .svg or .png, got x.pdf (see st-keytokens analyze pair --help)"
        )
        missing = tmp_path / "missing" / "x.html"
        assert f"--html: must be in a directory that exists, got {missing}" in fails(
            "pair", model, A, B, "--html", missing
        )
        assert "invalid choice: 'nothing'" in fails("nothing", model)
        assert "the following arguments are required: ANALYSIS" in fails()
        assert "input must be a file or directory that exists" in fails("alignment", model, tmp_path / "no.jsonl")

    def test_models(self, fails, model, corpus, tmp_path):
        assert "model must be a directory that exists" in fails("pair", tmp_path / "no model", A, B)
        assert "could not be loaded" in fails("spectrum", model, tmp_path, corpus)

    def test_an_empty_corpus(self, fails, model, tmp_path):
        (tmp_path / "empty.jsonl").write_text("")
        assert "must hold at least one document, got none" in fails("alignment", model, tmp_path / "empty.jsonl")

    def test_nothing_heavy_is_imported_for_help(self):
        code = "import sys\nfrom st_keytokens.cli import main\nmain(['analyze', 'pair', '--help'])\n"
        code += "assert 'torch' not in sys.modules"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert found.returncode == 0 and "--similarity" in found.stdout
