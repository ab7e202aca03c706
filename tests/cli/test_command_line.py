from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from st_keytokens import KeyTokenEncoder, __version__
from st_keytokens.cli import main
from st_keytokens.cli.console import table


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
