from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import types
from argparse import Namespace

import numpy as np
import pytest
import scipy.sparse
import torch

from st_keytokens import Calibration, HybridEmbeddings, HybridIndex, KeyTokenEncoder, SparseEmbeddings, __version__
from st_keytokens.bulk import read_batches
from st_keytokens.cli import index_commands as adding
from st_keytokens.cli import main
from st_keytokens.cli.console import Console, table
from st_keytokens.cli.index_commands import COMMIT_SIZE, add_documents
from st_keytokens.cli.inputs import Corpus
from st_keytokens.encoder.pooled_vectors import pooled_vectors

WHEAT = "Farmers plant wheat in autumn"  # sentence s38
READING = Namespace(text_field=None, id_field=None, file_format=None)


@pytest.fixture
def run(capsys):
    """Runs a command; gives exit code, stdout and stderr."""

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def fails(run):
    """Runs a command that must fail by the user's fault; gives the one line on stderr."""

    def fails(*words):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert err.startswith("st-keytokens: error: ")
        assert err.count("\n") == 1 and err.endswith("\n")
        return err.removeprefix("st-keytokens: error: ")[:-1]

    return fails


@pytest.fixture
def rows(run):
    """Runs a command with ``--json``; gives the objects."""

    def rows(*words):
        code, out, err = run(*words, "--json")
        assert (code, err) == (0, "")
        assert out.endswith("\n")
        return [json.loads(line) for line in out[:-1].split("\n")]

    return rows


@pytest.fixture(scope="module")
def model(llama_embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    llama_embedder.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def other_model(llama_embedder, tmp_path_factory):
    """The model with other weights."""
    folder, other = tmp_path_factory.mktemp("other-model"), copy.deepcopy(llama_embedder)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    other.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def corpus(sentences, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    write_jsonl(path, [{"_id": f"s{i}", "text": text, "number": i} for i, text in enumerate(sentences)])
    return path


@pytest.fixture(scope="module")
def index(model, corpus, tmp_path_factory):
    """An index of the corpus. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("index") / "index"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["index", str(model), str(corpus), str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def calibrated(model, corpus, tmp_path_factory):
    """The encoder that the index must have been made with."""
    encoder = KeyTokenEncoder(str(model))
    encoder.calibrate([json.loads(line)["text"] for line in corpus.read_text().splitlines()], show_progress_bar=False)
    return encoder


@pytest.fixture
def index_copy(index, tmp_path):
    return shutil.copytree(index, tmp_path / "copy")


@pytest.fixture
def passes():
    """Grows by the batch size of every forward pass of a language model."""
    batches: list[int] = []

    def count(module, inputs, output):
        if isinstance(module, torch.nn.Embedding):
            batches.append(len(output))

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    yield batches
    hook.remove()


def write_jsonl(path, objects):
    path.write_text("".join(json.dumps(value) + "\n" for value in objects), encoding="utf-8")
    return path


def set_stdin(monkeypatch, content: bytes, is_terminal: bool = False) -> None:
    stdin = types.SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: is_terminal)
    monkeypatch.setattr(sys, "stdin", stdin)


def start(*words, **options) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("environment", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "st_keytokens.cli", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
        **options,
    )


class TestTokens:
    def test_same_as_the_library(self, rows, model):
        (row,) = rows("tokens", model, "The genome of a mouse", "--top-k", 5)
        expected = KeyTokenEncoder(str(model)).key_tokens("The genome of a mouse", 5)[0]
        assert len(expected) == 5
        assert row["id"] is None and row["text"] == "The genome of a mouse"
        assert [(token["token"], token["weight"]) for token in row["tokens"]] == expected

    def test_table(self, run, model):
        code, out, err = run("tokens", model, "The genome\nof a mouse", "Stars", "--top-k", 2)
        pairs = KeyTokenEncoder(str(model)).key_tokens(["The genome\nof a mouse", "Stars"], 2)
        expected = [
            "The genome of a mouse",
            "  weight  token",
            *(f"  {weight:.4f}  {token}" for token, weight in pairs[0]),
            "Stars",
            "  weight  token",
            *(f"  {weight:.4f}  {token}" for token, weight in pairs[1]),
        ]
        assert (code, out.splitlines(), err) == (0, expected, "")

    def test_options_between_texts(self, rows, model):
        found = rows("tokens", model, "one", "--top-k", 1, "two", "three")
        assert [row["text"] for row in found] == ["one", "two", "three"]
        assert [len(row["tokens"]) for row in found] == [1, 1, 1]

    def test_raw_is_before_correction(self, rows, model, index, calibrated, tmp_path):
        calibrated.save_pretrained(tmp_path)
        (plain,) = rows("tokens", model, "Stars form when clouds collapse.")
        (raw,) = rows("tokens", tmp_path, "Stars form when clouds collapse.", "--raw")
        (corrected,) = rows("tokens", tmp_path, "Stars form when clouds collapse.")
        assert raw["tokens"] == plain["tokens"]
        assert [t["token"] for t in corrected["tokens"]] != [t["token"] for t in raw["tokens"]]

    def test_input_file_and_ids(self, rows, model, corpus, sentences):
        found = rows("tokens", model, "--input", corpus, "--top-k", 3)
        assert [row["id"] for row in found] == [f"s{i}" for i in range(50)]
        expected = KeyTokenEncoder(str(model)).key_tokens(sentences[40], 3)[0]
        assert [
            (token["token"], pytest.approx(token["weight"], rel=1e-4)) for token in found[40]["tokens"]
        ] == expected

    def test_standard_input(self, rows, monkeypatch, model):
        set_stdin(monkeypatch, b"one\n\ntwo\n")
        assert [row["text"] for row in rows("tokens", model)] == ["one", "two"]
        set_stdin(monkeypatch, b'{"id": 3, "text": "three"}\n')
        assert [row["id"] for row in rows("tokens", model, "-")] == ["3"]

    def test_texts_are_wanted_once(self, fails, monkeypatch, model, corpus):
        assert "got both" in fails("tokens", model, "text", "--input", corpus)
        set_stdin(monkeypatch, b"", is_terminal=True)
        assert "texts must be given as arguments, with --input or on standard input" in fails("tokens", model)

    def test_unusual_texts(self, rows, model):
        texts = ["", "   ", "a\x00b", "\ud800", "🧬", "שלום", "ge" * 5000]
        assert [row["text"] for row in rows("tokens", model, *texts, "--top-k", 1)] == texts

    def test_role_and_method(self, rows, model):
        (row,) = rows("tokens", model, "Stars", "--role", "query", "--method", "nie2025")
        expected = KeyTokenEncoder(str(model), method="nie2025").key_tokens("Stars", role="query")[0]
        assert [(token["token"], token["weight"]) for token in row["tokens"]] == expected


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
        assert first.document_frequencies.tolist() == direct.document_frequencies.tolist()
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
        corpus, quiet = Corpus(str(source), READING), Console(is_quiet=True)
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
                    index, self.Encoder(calls=2), Corpus(str(source), READING), Console(is_quiet=True), batch_size=8
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


class TestSearch:
    @pytest.mark.parametrize("mode", ["sparse", "dense", "hybrid"])
    def test_same_as_the_library(self, rows, index, calibrated, mode):
        found = rows("search", index, "distant galaxies", WHEAT, "--mode", mode, "--top-k", 3)
        with HybridIndex(index, encoder=calibrated, read_only=True) as opened:
            expected = opened.search(["distant galaxies", WHEAT], mode=mode, top_k=3)
        for row, query, hits in zip(found, ["distant galaxies", WHEAT], expected, strict=True):
            assert (row["query_id"], row["query"], len(row["hits"])) == (None, query, 3)
            for value, hit in zip(row["hits"], hits, strict=True):
                assert (value["id"], value["rank"], value["text"]) == (hit.id, hit.rank, hit.text)
                assert value["score"] == pytest.approx(hit.score, rel=1e-4)
                assert value["scores"] == pytest.approx(hit.scores, rel=1e-4)
                assert value["metadata"] == hit.metadata

    def test_hybrid_is_the_default(self, rows, index):
        assert rows("search", index, WHEAT) == rows("search", index, WHEAT, "--mode", "hybrid")

    def test_lookup_takes_the_words_of_the_query(self, rows, index, calibrated):
        (row,) = rows("search", index, WHEAT, "--lookup")
        with HybridIndex(index, encoder=calibrated, read_only=True) as opened:
            (hits,) = opened.search(calibrated.encode_query([WHEAT], query="lookup"))
        assert [(hit["id"], hit["score"]) for hit in row["hits"]] == [
            (hit.id, pytest.approx(hit.score)) for hit in hits
        ]
        assert row["hits"][0]["id"] == "s38"
        assert set(row["hits"][0]["scores"]) == {"sparse"}

    def test_filter(self, rows, index):
        (row,) = rows("search", index, "the", "--filter", '{"number": {"$lt": 3}}', "--top-k", 50)
        assert sorted(hit["id"] for hit in row["hits"]) == ["s0", "s1", "s2"]
        (row,) = rows("search", index, "the", "--filter", '{"number": 1000}')
        assert row["hits"] == []

    def test_explain_sums_to_the_score(self, rows, index):
        (row,) = rows("search", index, "the immune system", "--mode", "sparse", "--explain", "--top-k", 4)
        for hit in row["hits"]:
            assert sum(term["contribution"] for term in hit["matched_terms"]) == pytest.approx(hit["score"], rel=1e-4)
            for term in hit["matched_terms"]:
                assert term["contribution"] == pytest.approx(term["query_weight"] * term["document_weight"], rel=1e-5)

    def test_readable(self, run, rows, index):
        code, out, err = run(
            "search", index, "distant galaxies", "nothing", "--explain", "--top-k", 2, "--mode", "sparse"
        )
        (first, _) = rows(
            "search", index, "distant galaxies", "nothing", "--explain", "--top-k", 2, "--mode", "sparse"
        )
        lines = out.splitlines()
        assert (code, err, len(lines)) == (0, "", 12)
        assert (lines[0], lines[6]) == ("distant galaxies", "nothing")
        for position, hit in enumerate(first["hits"]):
            cells = lines[2 + 2 * position].split(maxsplit=3)
            assert cells == [str(position + 1), f"{hit['score']:.4f}", hit["id"], shown(hit["text"])]
            terms = hit["matched_terms"][:8]
            expected = ", ".join(f"{term['token']} {term['contribution']:.2f}" for term in terms)
            assert lines[3 + 2 * position].strip() == expected

    def test_readable_hybrid_has_both_scores(self, run, rows, index):
        _, out, _ = run("search", index, "distant galaxies", "--top-k", 1)
        ((row),) = rows("search", index, "distant galaxies", "--top-k", 1)
        scores = row["hits"][0]["scores"]
        assert out.splitlines()[1].split() == ["score", "sparse", "dense", "id", "text"]
        assert out.splitlines()[2].split()[2:4] == [f"{scores['sparse']:.4f}", f"{scores['dense']:.4f}"]

    def test_no_hits(self, run, index):
        assert run("search", index, "the", "--filter", '{"number": 1000}')[1] == "the\n  no hits\n"

    def test_queries_of_a_collection(self, rows, index, tmp_path):
        write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q1", "text": WHEAT}, {"_id": "q2", "text": "stars"}])
        found = rows("search", index, "--input", tmp_path, "--top-k", 1, "--batch-size", 1)
        assert [row["query_id"] for row in found] == ["q1", "q2"]

    def test_queries_of_standard_input(self, rows, monkeypatch, index):
        set_stdin(monkeypatch, b"wheat\nstars\n")
        assert [row["query"] for row in rows("search", index, "--top-k", 1)] == ["wheat", "stars"]

    def test_moved_model(self, rows, fails, model, corpus, tmp_path):
        folder = shutil.copytree(model, tmp_path / "model")
        rows("index", folder, corpus, tmp_path / "index", "--no-calibrate")
        before = rows("search", tmp_path / "index", WHEAT)
        folder.rename(tmp_path / "moved")
        message = fails("search", tmp_path / "index", WHEAT)
        assert message.endswith("If the model has moved, say where it is with --model.")
        assert rows("search", tmp_path / "index", WHEAT, "--model", tmp_path / "moved") == before

    def test_index_of_the_library(self, rows, fails, calibrated, sentences, tmp_path):
        calibrated.save_pretrained(tmp_path / "model")
        with HybridIndex(tmp_path / "index", encoder=calibrated) as opened:
            opened.add([f"s{i}" for i in range(50)], sentences)
        assert fails("search", tmp_path / "index", WHEAT).endswith("Say which it is with --model.")
        (row,) = rows("search", tmp_path / "index", WHEAT, "--model", tmp_path / "model", "--lookup")
        assert row["hits"][0]["id"] == "s38"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--filter", "{"], "--filter must be a JSON object such as"),
            (["--filter", "[1]"], "--filter must be a JSON object such as"),
            (["--filter", '{"number": {"$over": 1}}'], "--filter must be a JSON object such as"),
            (["--filter", '{"number": {"$lt": null}}'], "--filter must be a JSON object such as"),
            (["--lookup", "--mode", "dense"], "--mode must be sparse with --lookup"),
            (["--top-k", "0"], "argument --top-k: must be a whole number of at least 1, got 0"),
            (["--mode", "both"], "argument --mode: invalid choice: 'both'"),
            (["--input", "none.jsonl", "--top-k", "1"], "texts must be given as arguments or with --input, got both."),
        ],
    )
    def test_errors(self, fails, index, words, message):
        assert fails("search", index, WHEAT, *words).startswith(message)

    def test_wrong_model(self, fails, index, other_model):
        message = fails("search", index, WHEAT, "--model", other_model)
        assert message == (
            f"model must be the one that {index} was made with, got {str(other_model)!r} with other weights."
        )

    def test_damaged_folder(self, fails, index_copy):
        (index_copy / "encoder" / "model.json").write_text("{")
        assert "model.json must be as the command index wrote it" in fails("search", index_copy, WHEAT)

    def test_no_index(self, fails, model, tmp_path):
        for path in (model, tmp_path / "none"):
            assert fails("search", path, WHEAT).startswith(
                f"INDEX_DIR must be the directory of an index, got '{path}'"
            )


class TestExplain:
    def test_contributions_sum_to_the_score(self, rows, index):
        (found,) = rows("explain", index, "the immune system", "s4")
        (row,) = rows("search", index, "the immune system", "--mode", "sparse", "--top-k", 50)
        score = {hit["id"]: hit["score"] for hit in row["hits"]}["s4"]
        assert found["score"] == pytest.approx(score, rel=1e-4)
        assert sum(term["contribution"] for term in found["matched_terms"]) == pytest.approx(score, rel=1e-4)
        assert found["document"]["text"].startswith("Vaccines teach the immune system")
        assert found["document"]["metadata"] == {"number": 4}

    def test_readable(self, run, rows, index):
        code, out, _ = run("explain", index, "immune", "s4", "--lookup")
        (found,) = rows("explain", index, "immune", "s4", "--lookup")
        lines = out.splitlines()
        assert code == 0 and lines[0].startswith("s4  Vaccines teach the immune system")
        assert lines[1].split() == ["contribution", "query", "document", "token"]
        best = found["matched_terms"][0]
        assert lines[2].split() == [
            *(f"{best[name]:.4f}" for name in ("contribution", "query_weight", "document_weight")),
            best["token"],
        ]
        assert lines[-1] == f"  {found['score']:.4f} is the sum, the sparse score."

    def test_unknown_document(self, fails, index):
        assert fails("explain", index, "immune", "s99") == "DOC_ID must be in the index, got 's99'."


class TestSparsify:
    @pytest.mark.parametrize("has_texts", [False, True])
    @pytest.mark.parametrize("role", ["document", "query"])
    def test_same_as_the_library(self, rows, calibrated, corpus, tmp_path, has_texts, role):
        calibrated.save_pretrained(tmp_path / "model")
        dense = calibrated.model.encode(texts(corpus))
        np.save(tmp_path / "dense.npy", dense)
        words = ["--role", role, "--batch-size", 16, *(["--texts", corpus] if has_texts else [])]
        arguments = [tmp_path / "model", tmp_path / "dense.npy", "--output", tmp_path / "out.npz", *words]
        (found,) = rows("sparsify", *arguments)
        expected = calibrated.sparsify(dense, texts(corpus) if has_texts else None, role=role)
        saved = SparseEmbeddings.from_scipy(scipy.sparse.load_npz(tmp_path / "out.npz"))
        assert saved.shape == expected.shape == (50, 640)
        np.testing.assert_allclose(saved.to_scipy().toarray(), expected.to_scipy().toarray(), rtol=1e-3, atol=1e-4)
        assert (found["rows"], found["vocab_size"], found["terms"]) == (50, 640, saved.nnz)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.npy", "model", "out.npz"]

    def test_no_rows(self, run, model, tmp_path):
        np.save(tmp_path / "dense.npy", np.zeros((0, 32), np.float32))
        code, out, _ = run("sparsify", model, tmp_path / "dense.npy", "--output", tmp_path / "out.npz")
        assert (code, out) == (0, f"Saved 0 rows of 0.0 terms on average, out of 640, in {tmp_path / 'out.npz'}.\n")

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.ones((2, 3), np.float32), r"got (2, 3)"),
            (np.ones((2, 32), np.int64), "must hold a matrix of floats, one row a text, got int64 of shape (2, 32)"),
            (np.ones(32, np.float32), "must hold a matrix of floats, one row a text, got float32 of shape (32,)"),
            (np.full((2, 32), np.nan, np.float32), "embeddings must be finite"),
            (np.array([{}]), "must be a .npy file of numbers"),
        ],
        ids=["dimension", "integers", "vector", "nan", "objects"],
    )
    def test_wrong_array(self, fails, model, tmp_path, array, message):
        np.save(tmp_path / "dense.npy", array, allow_pickle=True)
        assert message in fails("sparsify", model, tmp_path / "dense.npy", "--output", tmp_path / "out.npz")
        assert not (tmp_path / "out.npz").exists()

    def test_wrong_files(self, fails, model, corpus, tmp_path):
        output = ["--output", tmp_path / "out.npz"]
        assert "must be a file or directory that exists" in fails("sparsify", model, tmp_path / "none.npy", *output)
        (tmp_path / "text.npy").write_text("text")
        assert "must be a .npy file of numbers" in fails("sparsify", model, tmp_path / "text.npy", *output)
        np.savez(tmp_path / "many.npz", np.ones(3))
        assert "must be a file that ends in .npy, " in fails("sparsify", model, tmp_path / "many.npz", *output)
        (tmp_path / "many.npz").rename(tmp_path / "many.npy")
        assert "got an .npz archive" in fails("sparsify", model, tmp_path / "many.npy", *output)
        np.save(tmp_path / "two.npy", np.ones((2, 32), np.float32))
        message = fails("sparsify", model, tmp_path / "two.npy", *output, "--texts", corpus)
        assert message == f"--texts must be one for each embedding, got 50 texts for 2 rows of {tmp_path / 'two.npy'}."
        message = fails("sparsify", model, tmp_path / "two.npy", "--output", tmp_path / "out.npy")
        assert message.startswith("--output must end in .npz, got ")
        message = fails("sparsify", model, tmp_path / "two.npy", "--output", tmp_path / "none" / "out.npz")
        assert message.startswith("--output must be in a directory that exists, got ")

    def test_shards(self, run, rows, calibrated, corpus, sentences, tmp_path):
        arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
        calibrated.save_pretrained(tmp_path / "model")
        dense = calibrated.model.encode(texts(corpus))
        names = [f"s{i}" for i in reversed(range(50))]
        table = arrow.table({"key": names, "vec": list(dense[::-1]), "body": list(reversed(sentences))})
        parquet.write_table(table, tmp_path / "dense.parquet")
        columns = ["--id-column", "key", "--vector-column", "vec", "--batch-size", 16]
        arguments = [tmp_path / "model", tmp_path / "dense.parquet", *columns, "--shard-rows", 20]
        (found,) = rows("sparsify", *arguments, "--texts", corpus, "--output", tmp_path / "joined")
        assert (found["rows"], found["new_rows"], found["shards"], found["vocab_size"]) == (50, 50, 2, 640)
        assert found["rows_per_second"] == pytest.approx(50 / found["seconds"])
        (other,) = rows("sparsify", *arguments, "--text-column", "body", "--output", tmp_path / "column")
        expected = calibrated.sparsify(np.ascontiguousarray(dense[::-1]), texts(corpus)[::-1], batch_size=16)
        for name in ("joined", "column"):
            ids, parts = zip(*read_batches(tmp_path / name), strict=True)
            assert [i for part in ids for i in part] == names
            saved = SparseEmbeddings.concatenate(parts).to_scipy().toarray()
            np.testing.assert_allclose(saved, expected.to_scipy().toarray(), rtol=1e-3, atol=1e-4)
        assert found["terms"] == other["terms"] and found["bytes"] == other["bytes"]
        code, out, _ = run("sparsify", *arguments, "--texts", corpus, "--output", tmp_path / "joined")
        first, second = out.splitlines()
        assert code == 0 and second == "50 of them were there."
        assert first.startswith("Saved 50 rows of ") and f" in {tmp_path / 'joined'}: 2 shards, 0." in first

    def test_standard_input_and_dtype(self, rows, calibrated, sentences, tmp_path, monkeypatch):
        calibrated.save_pretrained(tmp_path / "model")
        dense = calibrated.model.encode(sentences)
        np.save(tmp_path / "dense.npy", dense)
        lines = "".join(f"{text}\n" for text in sentences).encode()
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(lines)))
        arguments = [tmp_path / "model", tmp_path / "dense.npy", "--texts", "-", "--output", tmp_path / "out.npz"]
        rows("sparsify", *arguments, "--dtype", "bfloat16")
        saved = SparseEmbeddings.from_scipy(scipy.sparse.load_npz(tmp_path / "out.npz"))
        expected = calibrated.sparsify(dense, sentences)
        assert saved.shape == expected.shape and saved != expected  # other roundings
        near = np.isclose(saved.to_scipy().toarray(), expected.to_scipy().toarray(), rtol=0.05, atol=0.05)
        assert near.mean() > 0.99

    def test_wrong_sources(self, fails, model, tmp_path):
        output = ["--output", tmp_path / "out"]
        (tmp_path / "a.csv").write_text("a,b")
        assert "embeddings must be a file that ends in .npy, " in fails("sparsify", model, tmp_path / "a.csv", *output)
        np.save(tmp_path / "a.npy", np.ones((2, 32), np.float32))
        message = fails("sparsify", model, tmp_path / "a.npy", *output, "--id-column", "key")
        assert message == "--id-column must not be given for a source of kind npy, got 'key'."
        message = fails("sparsify", model, "postgresql://user:secret@host/base", *output)
        assert message == "table must be the name of one in postgresql://host/base, got none."


class TestInfo:
    def test_model(self, rows, model):
        encoder = KeyTokenEncoder(str(model))
        (found,) = rows("info", model)
        assert found["fingerprint"] == encoder.fingerprint
        assert (found["embedding_dimension"], found["vocab_size"], found["lm_head"]) == (32, 640, "tied")
        assert (found["calibration"], found["correction"]) == (None, "none")
        is_masked = encoder.vocabulary.is_masked
        assert found["terms"] == len({int(term) for term in encoder.vocabulary.terms[~is_masked]})

    def test_index(self, rows, index, model, calibrated):
        (found,) = rows("info", index)
        size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
        assert (found["documents"], found["bytes"], found["model"]) == (50, size, str(model))
        assert (found["vocab_size"], found["embedding_dimension"]) == (640, 32)
        assert found["fingerprint"] == calibrated.fingerprint
        assert found["calibration"]["documents"] == 50

    def test_readable(self, run, index, model):
        code, out, _ = run("info", index)
        lines = {line.split(":")[0]: line.split(":", 1)[1].strip() for line in out.splitlines()}
        assert code == 0
        assert (lines["documents"], lines["model"], lines["method"]) == ("50", str(model), "none")
        assert lines["  documents"] == "50"
        assert run("info", model)[1].splitlines()[1] == "embedding dimension:     32"


class TestModel:
    @pytest.mark.parametrize("name", ["/none/such/model", "./none", "a/b/c", "", "none", "none/such"])
    def test_not_found(self, fails, name):
        message = fails("tokens", name, "text")
        assert message.startswith(f"model must be a directory that exists or a name on the Hub, got {name!r}.")

    def test_not_a_model(self, fails, tmp_path):
        assert fails("tokens", tmp_path, "text").startswith(f"model {str(tmp_path)!r} could not be loaded: ")

    def test_backbone(self, rows, fails, bert_embedder, bert_folder, tmp_path):
        bert_embedder.save_pretrained(str(tmp_path / "model"))
        message = fails("tokens", tmp_path / "model", "text")
        assert "Use --backbone with the name or path" in message
        (row,) = rows("tokens", tmp_path / "model", "text", "--backbone", bert_folder)
        expected = KeyTokenEncoder(str(tmp_path / "model"), backbone=bert_folder).key_tokens("text")[0]
        assert [(token["token"], token["weight"]) for token in row["tokens"]] == expected

    def test_head_of_a_backbone_is_stored_with_the_index(self, rows, bert_embedder, bert_folder, corpus, tmp_path):
        bert_embedder.save_pretrained(str(tmp_path / "model"))
        backbone = shutil.copytree(bert_folder, tmp_path / "backbone")
        rows("index", tmp_path / "model", corpus, tmp_path / "i", "--no-calibrate", "--backbone", backbone)
        shutil.rmtree(backbone)
        (row,) = rows("search", tmp_path / "i", WHEAT, "--lookup")
        assert row["hits"][0]["id"] == "s38"

    def test_unknown_method_and_device(self, fails, model):
        message = fails("tokens", model, "text", "--method", "best")
        assert message == "method must be one of 'default', 'literal', 'decoded', 'nie2025', got 'best'."
        assert "could not be loaded" in fails("tokens", model, "text", "--device", "abacus")


class TestCommandLine:
    def test_help_of_all_commands(self, run):
        code, out, err = run("--help")
        assert (code, err) == (0, "")
        for name in ("tokens", "calibrate", "index", "add", "search", "explain", "sparsify", "info"):
            assert f"\n    {name} " in out or f"\n    {name}\n" in out
            code, command, err = run(name, "--help")
            assert (code, err) == (0, "")
            assert f"Example: st-keytokens {name} " in " ".join(command.split())

    def test_version(self, run):
        assert run("--version") == (0, f"st-keytokens {__version__}\n", "")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "the following arguments are required: COMMAND (see st-keytokens --help)"),
            (["tokens"], "the following arguments are required: MODEL"),
            (["tokens", "model", "text", "--unknown"], "unrecognized arguments: --unknown"),
            (["info", "model", "more"], "unrecognized arguments: more"),
            (["delete"], "argument COMMAND: invalid choice: 'delete'"),
        ],
    )
    def test_wrong_words(self, fails, words, message):
        assert fails(*words).startswith(message)

    def test_traceback_is_shown_when_asked_for(self, run):
        code, _, err = run("info", "/none", "--traceback")
        assert code == 2
        assert err.startswith("Traceback (most recent call last):")
        assert err.splitlines()[-1].startswith("st-keytokens: error: model must be a directory")

    def test_faults_of_the_program_are_not_hidden(self, monkeypatch, model):
        monkeypatch.setattr(KeyTokenEncoder, "key_tokens", lambda *args, **kwargs: {}["missing"])
        with pytest.raises(KeyError, match="missing"):
            main(["tokens", str(model), "text"])

    def test_table_aligns_numbers_and_keeps_the_last_column(self):
        lines = table(["", "score", "id"], [[1, "-", "a"], [10, 2.5, "bcd"]], "  ")
        assert lines == ["       score  id", "   1       -  a", "  10  2.5000  bcd"]


class TestProcess:
    """Real processes; each takes seconds to import torch."""

    def test_results_alone_are_on_stdout(self, model):
        process = start("tokens", model, "-", "--json", "--top-k", 2)
        out, err = process.communicate('{"id": 1, "text": "Sterne — 星"}\n', timeout=120)
        assert (process.returncode, err) == (0, "")
        (line,) = out.splitlines()
        assert json.loads(line)["text"] == "Sterne — 星"
        assert len(json.loads(line)["tokens"]) == 2

    def test_users_error(self, model, tmp_path):
        process = start("index", model, tmp_path / "none.jsonl", tmp_path / "index")
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (2, "")
        assert err.splitlines() == [
            f"st-keytokens: error: input must be a file or directory that exists, got '{tmp_path / 'none.jsonl'}'."
        ]

    def test_interruption(self, model):
        process = start("tokens", model, "-", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        process.stdin.write("Stars\n")
        process.stdin.flush()
        assert process.stdout.readline() == "Stars\n"  # now it waits for the next line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (130, "st-keytokens: interrupted\n")

    def test_closed_pipe(self, model, tmp_path):
        path = tmp_path / "many.txt"
        path.write_text("Stars form when clouds of gas collapse.\n" * 2000)
        process = start("tokens", model, "--input", path)
        assert process.stdout.readline().startswith("Stars form")
        process.stdout.close()
        assert process.wait(timeout=120) == 0
        assert process.stderr.read() == ""

    @pytest.mark.slow
    def test_silent_hub_is_not_waited_for(self, model, tmp_path):
        cached = tmp_path / "hub" / "models--some--model"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        shutil.copytree(model, cached / "snapshots" / ("0" * 40))
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(64)  # accepts, and never answers
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
            unknown, known = (
                start("tokens", name, "text", "--json", environment=environment)
                for name in ("none/such", "some/model")
            )
            out, err = unknown.communicate(timeout=120)
            assert (unknown.returncode, out) == (2, "")
            assert err.splitlines() == [
                "st-keytokens: error: model must be a directory that exists or a name on the Hub, got 'none/such'. "
                "The Hub does not answer, and its cache here holds no such model."
            ]
            out, err = known.communicate(timeout=120)
        assert known.returncode == 0
        assert json.loads(out)["text"] == "text"
        assert err.splitlines() == ["The Hub does not answer; some/model is used as its cache here holds it."]
        environment["HF_HUB_OFFLINE"] = "1"
        offline = start("tokens", "some/model", "text", "--json", environment=environment)
        assert offline.communicate(timeout=120) == (out, "")


def texts(corpus):
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()]


def shown(text):
    return text if len(text) <= 80 else text[:79] + "…"
