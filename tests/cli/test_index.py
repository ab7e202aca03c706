from __future__ import annotations

import hashlib
import shutil
from argparse import Namespace

import numpy as np
import pytest
from cli_samples import WHEAT, set_stdin, texts, write_jsonl

from st_keytokens import HybridEmbeddings, HybridIndex, KeyTokenEncoder, SparseEmbeddings
from st_keytokens.cli import index as adding
from st_keytokens.cli import main
from st_keytokens.cli.console import Console
from st_keytokens.cli.index import COMMIT_SIZE, add_documents
from st_keytokens.cli.inputs import InputCorpus
from st_keytokens.encoder.pooled_vectors import pooled_vectors

READING = Namespace(text_field=None, id_field=None, file_format=None)


class TestIndex:
    def test_holds_what_the_library_would_index(self, index, calibrated, sentences):
        with HybridIndex(index, encoder=calibrated, read_only=True) as opened, HybridIndex(encoder=calibrated) as own:
            own.add([f"s{i}" for i in range(50)], sentences, metadata=[{"number": i} for i in range(50)])
            assert len(opened) == 50
            assert opened.get(["s7"]) == own.get(["s7"])
            for mode in ("sparse", "dense", "hybrid"):
                found, expected = (x.search("galaxies and stars", mode=mode, top_k=5) for x in (opened, own))
                assert [hit.id for hit in found] == [hit.id for hit in expected]
                assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], rel=1e-4)

    def test_running_again_adds_what_is_missing(self, rows, model, corpus, tmp_path):
        part = tmp_path / "part.jsonl"
        part.write_text("".join(corpus.read_text().splitlines(keepends=True)[:30]))
        code = main(["index", str(model), str(part), str(tmp_path / "index"), "--quiet"])
        assert code == 0
        (found,) = rows("index", model, corpus, tmp_path / "index")
        assert (found["added"], found["present"], found["documents"]) == (20, 30, 50)
        (found,) = rows("index", model, corpus, tmp_path / "index")
        assert (found["added"], found["present"], found["documents"]) == (0, 50, 50)
        assert rows("info", tmp_path / "index")[0]["calibration"]["documents"] == 30

    def test_one_pass_serves_the_calibration_and_the_index(self, model, corpus, passes, calibrated, tmp_path):
        code = main(["index", str(model), str(corpus), str(tmp_path / "index"), "--quiet"])
        assert (code, sum(passes)) == (0, 50)
        assert not (tmp_path / "index" / "encoder" / "vectors").exists()
        expected = calibrated.encode_document(texts(corpus))  # calibrated in a pass of its own before
        with HybridIndex(tmp_path / "index", read_only=True) as opened, HybridIndex() as own:
            own.add([f"s{i}" for i in range(50)], texts(corpus), embeddings=expected)
            for mode in ("dense", "sparse"):
                found, wanted = (index.search(expected, mode=mode, top_k=50) for index in (opened, own))
                for hits, others in zip(found, wanted, strict=True):
                    assert {hit.id: hit.score for hit in hits} == {
                        hit.id: pytest.approx(hit.score, rel=1e-5, abs=1e-6) for hit in others
                    }

    def test_interrupted_embedding_is_taken_up_where_it_stopped(self, model, corpus, passes, calibrated, tmp_path):
        with HybridIndex(tmp_path / "index"):
            folder = tmp_path / "index" / "encoder" / "vectors"
        pooled_vectors(calibrated, texts(corpus)[:20], path=folder)
        passes.clear()
        code = main(["index", str(model), str(corpus), str(tmp_path / "index"), "--quiet"])
        assert (code, sum(passes), folder.exists()) == (0, 30, False)
        with HybridIndex(tmp_path / "index", read_only=True) as opened:
            assert len(opened) == 50

    def test_interrupted_indexing_embeds_nothing_again(self, model, corpus, passes, monkeypatch, tmp_path):
        def interrupt(*arguments, **options):
            raise KeyboardInterrupt

        command = ["index", str(model), str(corpus), str(tmp_path / "index"), "--quiet"]
        with monkeypatch.context() as context:
            context.setattr(HybridIndex, "add", interrupt)
            assert main(command) == 130
        assert sum(passes) == 50
        assert (main(command), sum(passes)) == (0, 50)
        with HybridIndex(tmp_path / "index", read_only=True) as opened:
            assert len(opened) == 50

    def test_vectors_of_another_model(self, fails, model, corpus, other_model, tmp_path):
        with HybridIndex(tmp_path / "index"):
            folder = tmp_path / "index" / "encoder" / "vectors"
        pooled_vectors(KeyTokenEncoder(str(other_model)), texts(corpus)[:3], path=folder)
        message = fails("index", model, corpus, tmp_path / "index")
        assert message.startswith(f"{folder} must hold vectors of this model, its settings and prompts, got those of")

    def test_a_models_own_calibration_is_used(self, rows, corpus, calibrated, tmp_path):
        calibrated.save_pretrained(tmp_path / "model")
        part = tmp_path / "part.jsonl"
        part.write_text("".join(corpus.read_text().splitlines(keepends=True)[:2]))
        (found,) = rows("index", tmp_path / "model", part, tmp_path / "index")
        assert found["documents"] == 2
        assert rows("info", tmp_path / "index")[0]["fingerprint"] == calibrated.fingerprint
        main(["index", str(tmp_path / "model"), str(part), str(tmp_path / "new"), "--calibrate", "--quiet"])
        assert rows("info", tmp_path / "new")[0]["calibration"]["documents"] == 2

    def test_no_calibration(self, rows, model, corpus, tmp_path):
        assert rows("index", model, corpus, tmp_path / "index", "--no-calibrate")[0]["added"] == 50
        (found,) = rows("info", tmp_path / "index")
        assert found["calibration"] is None
        assert found["fingerprint"] == KeyTokenEncoder(str(model)).fingerprint

    def test_method_is_remembered(self, rows, fails, model, corpus, tmp_path):
        rows("index", model, corpus, tmp_path / "index", "--no-calibrate", "--method", "literal")
        encoder = KeyTokenEncoder(str(model), method="literal")
        assert rows("info", tmp_path / "index")[0]["fingerprint"] == encoder.fingerprint
        (found,) = rows("search", tmp_path / "index", WHEAT, "--mode", "sparse")
        assert found["hits"][0]["id"] == "s38"
        message = fails("index", model, corpus, tmp_path / "index", "--no-calibrate")
        assert message.startswith("--method must be as it was when ") and "literal, got none" in message

    def test_duplicates_and_empty_texts_are_reported(self, run, model, tmp_path):
        objects = [{"id": 1, "text": "a"}, {"id": 2, "text": " "}, {"id": 1, "text": "b"}, {"id": "1", "text": "c"}]
        path = write_jsonl(tmp_path / "a.jsonl", objects)
        code, out, err = run("index", model, path, tmp_path / "index", "--no-calibrate")
        assert (code, out) == (0, "Added 2 documents. The index holds 2 documents.\n")
        assert err.splitlines() == [
            "2 documents left out, having an id that came before: 1, 1",
            "1 document added without a text.",
        ]
        with HybridIndex(tmp_path / "index", read_only=True) as opened:
            assert [document.text for document in opened.get(["1", "2"])] == ["a", " "]

    def test_texts_without_ids(self, rows, monkeypatch, model, tmp_path):
        set_stdin(monkeypatch, b"one\ntwo\none\n")
        (found,) = rows("index", model, "-", tmp_path / "index", "--no-calibrate", "--quiet")
        expected = hashlib.sha256(b'["one", {}]').hexdigest()[:16]
        assert (found["added"], found["duplicates"], found["duplicate_ids"]) == (2, 1, [expected])
        set_stdin(monkeypatch, b"three\none\n")
        (found,) = rows("add", tmp_path / "index", "-")
        assert (found["added"], found["present"], found["documents"]) == (1, 1, 3)

    def test_standard_input_is_read_twice_for_the_calibration(self, run, monkeypatch, model, tmp_path):
        set_stdin(monkeypatch, b"one\ntwo\n")
        code, out, err = run("index", model, "-", tmp_path / "index")
        assert (code, err) == (0, "Calibrated on 2 documents.\n")
        assert out == "Added 2 documents. The index holds 2 documents.\n"

    def test_wrong_line_is_found_before_anything_is_made(self, fails, model, corpus, tmp_path):
        path = tmp_path / "wrong.jsonl"
        path.write_text(corpus.read_text() + '{"text": \n')
        assert fails("index", model, path, tmp_path / "index").startswith(f"{path}:51: must be one JSON object a line")
        assert not (tmp_path / "index").exists()

    def test_reading_options(self, rows, fails, model, tmp_path):
        path = tmp_path / "a.data"
        path.write_text("key,body\n1,Stars\n")
        assert "Name its format with --file-format" in fails("index", model, path, tmp_path / "i", "--no-calibrate")
        options = ["--no-calibrate", "--file-format", "csv", "--id-field", "key"]
        message = fails("index", model, path, tmp_path / "i", *options)
        assert (
            message
            == f"{path}:2: must have the field 'text', got 'key', 'body'. Name the field of the text: --text-field."
        )
        assert rows("index", model, path, tmp_path / "i", *options, "--text-field", "body")[0]["added"] == 1

    def test_metadata_that_cannot_be_kept(self, fails, model, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", [{"id": "x", "text": "a", "note": "\ud800"}])
        assert fails("index", model, path, tmp_path / "i").startswith(f"{path}: document 'x': metadata must be")

    def test_another_models_index(self, fails, other_model, corpus, index):
        message = fails("index", other_model, corpus, index)
        assert message == (
            f"model must be the one that {index} was made with, got {str(other_model)!r} with other weights."
        )

    def test_another_calibration(self, fails, model, corpus, calibrated, index_copy, tmp_path):
        calibrated.save_pretrained(tmp_path / "calibrated")
        shutil.rmtree(index_copy / "encoder")
        assert "fingerprint" in fails("index", model, corpus, index_copy)
        assert "--calibrate must be left out" in fails("index", model, corpus, index_copy, "--calibrate")

    def test_directory_of_something_else(self, fails, model, corpus, tmp_path):
        (tmp_path / "file").touch()
        assert "an index or an empty directory" in fails("index", model, corpus, tmp_path)


class TestAddDocuments:
    class Encoder:
        """Gives every document one term, and stops after so many calls."""

        def __init__(self, calls: int | None = None) -> None:
            self.calls = calls

        def encode_document(self, texts, batch_size):
            if self.calls == 0:
                raise KeyboardInterrupt
            self.calls = None if self.calls is None else self.calls - 1
            sparse = SparseEmbeddings.from_dicts([{int(text) % 7: 1.0} for text in texts], vocab_size=7)
            return HybridEmbeddings(np.array([[int(text), 1] for text in texts], np.float32), sparse)

    def test_interruption_keeps_what_is_committed(self, tmp_path):
        source = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "text": str(i)} for i in range(2500)])
        corpus, quiet = InputCorpus(str(source), READING), Console(is_quiet=True)
        with HybridIndex(tmp_path / "index") as index:
            with pytest.raises(KeyboardInterrupt):
                add_documents(index, self.Encoder(calls=18), corpus, quiet, batch_size=32)
            assert len(index) == COMMIT_SIZE
            counts = add_documents(index, self.Encoder(), corpus, quiet, batch_size=32)
            assert (counts.present, counts.added, len(index)) == (COMMIT_SIZE, 2500 - COMMIT_SIZE, 2500)
            query = SparseEmbeddings.from_dicts([{3: 1.0}], vocab_size=7)
            (hits,) = index.search(query, top_k=2500)
            assert sorted(int(hit.id) for hit in hits) == list(range(3, 2500, 7))

    def test_slow_documents_are_committed_by_the_clock(self, monkeypatch, tmp_path):
        monkeypatch.setattr(adding, "COMMIT_SECONDS", 0.0)
        source = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "text": str(i)} for i in range(100)])
        with HybridIndex(tmp_path / "index") as index:
            with pytest.raises(KeyboardInterrupt):
                add_documents(
                    index,
                    self.Encoder(calls=2),
                    InputCorpus(str(source), READING),
                    Console(is_quiet=True),
                    batch_size=8,
                )
            assert len(index) == 64


class TestAdd:
    def test_adds_keeps_and_replaces(self, run, rows, index_copy, tmp_path):
        objects = [
            {
                "id": "s0",
                "text": "Genes encode proteins, and mutations in genes change the proteins that a cell makes.",
            },
            {"id": "s1", "text": "Changed.", "number": 1},
            {"id": "new", "text": "Volcanoes erupt.", "number": 99},
        ]
        path = write_jsonl(tmp_path / "more.jsonl", objects)
        code, out, err = run("add", index_copy, path)
        assert (code, out) == (0, "Added 1 document, left 2 as before. The index holds 51 documents.\n")
        assert err.startswith("2 documents left although text or metadata has changed: ")
        (found,) = rows("add", index_copy, path, "--replace")
        assert (found["added"], found["replaced"], found["present"], found["changed"]) == (0, 2, 1, 0)
        with HybridIndex(index_copy, read_only=True) as opened:
            documents = opened.get(["s0", "s1", "new"])
        assert [document.metadata for document in documents] == [{}, {"number": 1}, {"number": 99}]
        assert documents[1].text == "Changed."

    def test_many_duplicates_are_cut_short(self, run, index_copy, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", [{"id": i // 2, "text": "a"} for i in range(24)])
        assert run("add", index_copy, path)[2] == (
            "12 documents left out, having an id that came before: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …\n"
        )

    def test_nothing_to_add(self, rows, index_copy, tmp_path):
        (tmp_path / "empty.txt").touch()
        assert rows("add", index_copy, tmp_path / "empty.txt")[0]["added"] == 0

    def test_no_index(self, fails, corpus, tmp_path):
        assert fails("add", tmp_path / "none", corpus).startswith("INDEX_DIR must be the directory of an index")
        assert not (tmp_path / "none").exists()
