from __future__ import annotations

import shutil

import pytest

from st_keytokens import KeyTokenEncoder


class TestInfo:
    def test_model(self, rows, model):
        encoder = KeyTokenEncoder(str(model))
        (found,) = rows("info", model)
        assert found["fingerprint"] == encoder.fingerprint
        assert (found["embedding_dimension"], found["vocab_size"], found["lm_head"]) == (32, 2**29, "tied")
        assert (found["calibration"], found["correction"]) == (None, "none")
        is_masked = encoder.vocabulary.is_masked
        assert found["terms"] == len({int(term) for term in encoder.vocabulary.terms[~is_masked]})

    def test_index(self, rows, index, model, calibrated):
        (found,) = rows("info", index)
        size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
        assert (found["documents"], found["bytes"], found["model"]) == (50, size, str(model))
        assert (found["vocab_size"], found["embedding_dimension"]) == (2**29, 32)
        assert found["fingerprint"] == calibrated.fingerprint
        assert found["calibration"]["documents"] == 50

    def test_readable(self, run, index, model):
        code, out, _ = run("info", index)
        lines = {line.split(":")[0]: line.split(":", 1)[1].strip() for line in out.splitlines()}
        assert code == 0
        assert (lines["documents"], lines["model"], lines["method"]) == ("50", str(model), "none")
        assert lines["  documents"] == "50"
        assert run("info", model)[1].splitlines()[1] == "embedding dimension:     32"


@pytest.mark.parametrize("command", ["info", "search"])
def test_an_index_between_two_renames_of_a_copy_that_was_killed(run, index, tmp_path, command):
    copied = tmp_path / "copied"
    shutil.copytree(index, tmp_path / ".copied.keytokens-new")
    words = [command, copied] + (["stars"] if command == "search" else [])
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    assert out == run(command, index, *words[2:], "--json")[1].replace(str(index), str(copied))
    assert [entry.name for entry in tmp_path.iterdir()] == ["copied"]
