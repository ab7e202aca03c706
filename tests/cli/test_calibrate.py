from __future__ import annotations

import shutil

import numpy as np
import pytest
from cli_samples import texts, write_jsonl

from st_keytokens import Calibration, KeyTokenEncoder


class TestInterrupted:
    def test_saving_leaves_nothing_in_the_way(self, run, model, corpus, tmp_path, monkeypatch):
        save = KeyTokenEncoder.save_pretrained

        def interrupt(encoder, path, *arguments, **options):
            save(encoder, path, *arguments, **options)
            (path / "key_tokens" / "calibration.json").unlink()
            raise KeyboardInterrupt

        words = ["calibrate", model, corpus, "--output", tmp_path / "new"]
        with monkeypatch.context() as context:
            context.setattr(KeyTokenEncoder, "save_pretrained", interrupt)
            assert run(*words)[0] == 130
        assert [path.name for path in tmp_path.iterdir()] == ["new"] and not any((tmp_path / "new").iterdir())
        assert run(*words)[0] == 0
        assert KeyTokenEncoder(str(tmp_path / "new")).calibration.document_count == 50


class TestCalibrate:
    def test_saves_model_and_calibration(self, rows, model, corpus, calibrated, tmp_path):
        (found,) = rows("calibrate", model, corpus, "--output", tmp_path / "out")
        saved = KeyTokenEncoder.from_pretrained(tmp_path / "out")
        assert saved.calibration.hash == calibrated.calibration.hash
        assert (found["documents"], found["output"]) == (50, str(tmp_path / "out"))
        assert found["average_length"] == pytest.approx(
            np.mean([len(t) for t in calibrated.literal_terms(texts(corpus))])
        )
        embeddings = calibrated.embed(texts(corpus))
        values = np.linalg.svd(embeddings, compute_uv=False)
        assert found["first_component_share"] == pytest.approx(values[0] ** 2 / (values**2).sum(), rel=1e-5)
        logits = calibrated.head.lm_head.logits(calibrated.calibration.first_component.direction[None])[0].float()
        logits[np.flatnonzero(calibrated.vocabulary.is_masked)] = -np.inf
        assert (
            found["first_component_tokens"][0]
            == calibrated.vocabulary.strings[int(calibrated.vocabulary.terms[int(logits.argmax())])]
        )

    def test_readable(self, run, model, corpus, tmp_path):
        code, out, err = run("calibrate", model, corpus, "--output", tmp_path / "out")
        assert (code, err) == (0, "")
        assert out.splitlines()[0].startswith("Calibrated on 50 documents of ")
        assert "% of the embeddings' squared length, and feeds: " in out.splitlines()[1]
        assert out.splitlines()[2] == f"Saved in {tmp_path / 'out'}."

    def test_in_place_adds_the_folder_only(self, rows, model, corpus, calibrated, tmp_path):
        folder = shutil.copytree(model, tmp_path / "model")
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        rows("calibrate", folder, corpus, "--output", folder)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert KeyTokenEncoder.from_pretrained(folder).calibration.hash == calibrated.calibration.hash

    def test_goes_on_from_a_state(self, rows, fails, model, corpus, calibrated, tmp_path):
        part = tmp_path / "part.jsonl"
        part.write_text("".join(corpus.read_text().splitlines(keepends=True)[:20]))
        state = tmp_path / "state"
        assert rows("calibrate", model, part, "--output", tmp_path / "a", "--state", state)[0]["documents"] == 20
        assert rows("calibrate", model, corpus, "--output", tmp_path / "a", "--state", state)[0]["documents"] == 50
        first, direct = Calibration.load(tmp_path / "a" / "key_tokens"), calibrated.calibration
        for name in ("ids", "values"):
            ours, others = (getattr(each.terms.frequencies, name) for each in (first, direct))
            assert ours.tolist() == others.tolist()
        np.testing.assert_allclose(first.first_component.direction, direct.first_component.direction, atol=1e-5)
        other = write_jsonl(tmp_path / "other.jsonl", [{"text": f"other {i}"} for i in range(60)])
        message = fails("calibrate", model, other, "--output", tmp_path / "a", "--state", state)
        assert "must belong to the corpus given" in message

    def test_errors(self, fails, model, corpus, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        message = fails("calibrate", model, corpus, "--output", tmp_path / "full")
        assert (
            message == f"--output must be a new directory or one of an earlier calibration, got {tmp_path / 'full'}."
        )
        assert "must be a directory, got the file" in fails("calibrate", model, corpus, "--output", corpus)
        (tmp_path / "empty.jsonl").touch()
        message = fails("calibrate", model, tmp_path / "empty.jsonl", "--output", tmp_path / "out")
        assert message == f"{tmp_path / 'empty.jsonl'} must hold at least one document, got none."
        assert not (tmp_path / "out").exists()
        (tmp_path / "one.txt").write_text("one")
        message = fails("calibrate", model, tmp_path / "one.txt", "--output", tmp_path / "out")
        assert message.startswith(f"{tmp_path / 'one.txt'} must hold at least two documents to calibrate on, got 1;")
