"""Runs of the command line, and a model, a corpus and an index that the tests of its commands share."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil

import pytest
import torch
from cli_samples import write_jsonl

from st_keytokens import KeyTokenEncoder
from st_keytokens.cli import main


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


@pytest.fixture(scope="session")
def model(llama_embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    llama_embedder.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def other_model(llama_embedder, tmp_path_factory):
    """The model with other weights."""
    folder, other = tmp_path_factory.mktemp("other-model"), copy.deepcopy(llama_embedder)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    other.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def corpus(sentences, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    write_jsonl(path, [{"_id": f"s{i}", "text": text, "number": i} for i, text in enumerate(sentences)])
    return path


@pytest.fixture(scope="session")
def index(model, corpus, tmp_path_factory):
    """An index of the corpus. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("index") / "index"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["index", str(model), str(corpus), str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="session")
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
