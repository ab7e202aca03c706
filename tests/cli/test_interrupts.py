"""Ctrl-C at every command, and what a command that was interrupted leaves. Real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_samples import write_jsonl

from st_keytokens import HybridIndex
from st_keytokens.cli.streams import Interrupts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")


INTERRUPTS_ITSELF = """
import os, signal, sys, threading, time
place, name = sys.argv[1:3]
main_thread = threading.main_thread().ident

def watch():
    module = "st_keytokens." + place.removesuffix(".py").replace("/", ".")
    while module not in sys.modules:
        time.sleep(0.01)
    while True:
        frame = sys._current_frames().get(main_thread)
        while frame is not None:
            code = frame.f_code
            if f"/st_keytokens/{place}" in code.co_filename and code.co_name == name:
                return os.kill(os.getpid(), signal.SIGINT)
            frame = frame.f_back
        time.sleep(0.001)

threading.Thread(target=watch, daemon=True).start()
sys.argv = ["st-keytokens", *sys.argv[3:]]
from st_keytokens.cli import main
sys.exit(main())
"""


def start(*words, cwd, at=()):
    """Run a command; it interrupts itself, where that is given, once it is within a function of a module."""
    return subprocess.Popen(
        [sys.executable, *(["-c", INTERRUPTS_ITSELF, *at] if at else ["-m", "st_keytokens.cli"]), *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a runner in the background ignores it
    )


@pytest.fixture
def words_of(model, llama_folder):
    """The words of a command."""
    places = {"MODEL": model, "BACKBONE": llama_folder}
    return lambda command: [places.get(word, word) for word in COMMANDS[command][0]]


@pytest.fixture
def folder(model, corpus, index, tmp_path):
    """A directory with what the commands work on."""
    shutil.copytree(index, tmp_path / "index")
    shutil.copy(corpus, tmp_path / "corpus.jsonl")
    write_jsonl(tmp_path / "more.jsonl", [{"id": f"new{i}", "text": f"Stars and gas {i}"} for i in range(3000)])
    np.save(tmp_path / "vectors.npy", np.eye(32, dtype=np.float32))
    collection = tmp_path / "collection"
    (collection / "qrels").mkdir(parents=True)
    shutil.copy(corpus, collection / "corpus.jsonl")
    write_jsonl(collection / "queries.jsonl", [{"_id": "q", "text": "stars"}])
    (collection / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ts1\t1\n")
    return tmp_path


COMMANDS = {
    "tokens": (["tokens", "MODEL", "--input", "more.jsonl"], ""),
    "calibrate": (
        ["calibrate", "MODEL", "more.jsonl", "--output", "calibrated"],
        "; nothing was kept without --state",
    ),
    "index": (["index", "MODEL", "more.jsonl", "new"], "; run the same command again to go on"),
    "add": (["add", "index", "more.jsonl"], "; run the same command again to go on"),
    "search": (["search", "index", "--input", "more.jsonl", "--explain"], ""),
    "explain": (["explain", "index", "stars", "s1"], ""),
    "sparsify": (["sparsify", "MODEL", "vectors.npy", "--output", "sparse"], "; run the same command again to go on"),
    "evaluate": (
        ["evaluate", "collection", "--model", "MODEL", "--output", "r.json"],
        "; without --cache, the embeddings were not kept",
    ),
    "analyze pair": (["analyze", "pair", "MODEL", "stars", "gas"], ""),
    "analyze alignment": (["analyze", "alignment", "MODEL", "more.jsonl"], ""),
    "analyze spectrum": (["analyze", "spectrum", "MODEL", "BACKBONE", "more.jsonl"], ""),
    "analyze instructions": (["analyze", "instructions", "MODEL", "stars", "--instruction", "Find: "], ""),
    "info": (["info", "index"], ""),
}
RARE, SLOW = ("analyze alignment", "analyze spectrum", "analyze instructions"), pytest.mark.slow
WORKS = {  # where each is when it does what it is for
    "tokens": ("encoder/encoder.py", "key_tokens"),
    "calibrate": ("calibration/calibration.py", "fit"),
    "index": ("index/hybrid_index.py", "add"),
    "add": ("index/hybrid_index.py", "add"),
    "search": ("index/hybrid_index.py", "search"),
    "explain": ("index/hybrid_index.py", "search"),
    "sparsify": ("bulk/conversion.py", "convert"),
    "evaluate": ("evaluation/encoded.py", "encode_collection"),
    "analyze pair": ("analysis/pair.py", "explain_pair"),
    "analyze alignment": ("analysis/alignment.py", "measure_alignment"),
    "analyze spectrum": ("analysis/spectrum.py", "measure_variation"),
    "analyze instructions": ("analysis/instructions.py", "compare_instructions"),
    "info": ("index/hybrid_index.py", "__init__"),
}


class TestInterrupts:
    @pytest.mark.parametrize("command", [pytest.param(c, marks=SLOW if c in RARE else ()) for c in COMMANDS])
    def test_while_it_works(self, words_of, folder, command):
        process = start(*words_of(command), cwd=folder, at=WORKS[command])
        _, err = process.communicate(timeout=300)
        assert process.returncode == 130, err
        assert err.splitlines()[-1] == f"st-keytokens: interrupted{COMMANDS[command][1]}"
        assert "Traceback" not in err and "Exception ignored" not in err
        with HybridIndex(folder / "index", read_only=True) as opened:
            opened.verify()
            assert {document.id for document in opened.get(["s0", "s49"])} == {"s0", "s49"}

    @pytest.mark.parametrize("command", ["tokens", pytest.param("index", marks=pytest.mark.slow)])
    def test_while_libraries_are_imported(self, words_of, folder, command):
        process = start(*words_of(command), cwd=folder)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("st-keytokens: interrupted")
        assert "Traceback" not in err and "Exception ignored" not in err

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    @pytest.mark.parametrize("command", COMMANDS)
    def test_at_many_moments(self, words_of, folder, command):
        words, began = words_of(command), time.perf_counter()
        start("--version", cwd=folder).communicate(timeout=120)
        for seconds in np.linspace(2 * (time.perf_counter() - began), 6, 20):  # Python itself starts before it listens
            process = start(*words, cwd=folder)
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
            assert process.returncode in (0, 130), (seconds, err)
            assert "Traceback" not in err, (seconds, err)

    def test_within_a_destructor(self, capfd):
        class Interrupted:
            def __del__(self):
                signal.raise_signal(signal.SIGINT)

        interrupts = Interrupts(is_last=False)
        with pytest.raises(KeyboardInterrupt), interrupts.noticed():
            Interrupted()  # Python lets no error out of a destructor
            time.sleep(10)
        assert interrupts.happened and capfd.readouterr().err == ""

    def test_twice(self, model, folder):
        process = start("tokens", model, "--input", "more.jsonl", cwd=folder)
        assert process.stdout.readline() == "Stars and gas 0\n"
        for _ in range(2):
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120)[1] == "st-keytokens: interrupted\n"
        assert process.returncode == 130


class TestUnfinishedIndex:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_says_how_to_go_on(self, fails, rows, run, model, folder, number):
        process = start("index", model, "more.jsonl", "new", cwd=folder)
        begun = folder / "new" / "encoder" / "unfinished.json"
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode == (130 if number == signal.SIGINT else -9)
        new, command = folder / "new", f"st-keytokens index {model} more.jsonl new"
        for words in (
            ["search", new, "stars"],
            ["explain", new, "stars", "new1"],
            ["add", new, folder / "more.jsonl"],
        ):
            assert fails(*words) == (
                f"INDEX_DIR must be a finished index, got '{new}', which holds no document yet: its indexing is going "
                f"on or was interrupted. To go on, run again: {command}"
            )
        assert rows("info", new)[0]["unfinished"] == {"command": command, "documents": 3000}
        assert rows("index", model, folder / "more.jsonl", new, "--quiet")[0]["documents"] == 3000
        assert not begun.exists()
        code, _, err = run("search", new, "stars")
        assert (code, err) == (0, "")

    def test_with_documents(self, run, model, folder, monkeypatch):
        add = HybridIndex.add

        def add_once(index, *arguments, **options):
            if len(index):
                raise KeyboardInterrupt
            return add(index, *arguments, **options)

        with monkeypatch.context() as context:
            context.setattr(HybridIndex, "add", add_once)
            assert run("index", model, folder / "more.jsonl", folder / "new")[0] == 130
        code, out, err = run("search", folder / "new", "stars", "--top-k", 1)
        assert (code, len(out.splitlines())) == (0, 3)
        assert err.startswith(
            f"{folder / 'new'} is not finished: its indexing of 3,000 documents is going on or was interrupted, and "
            f"it holds 2,048. To go on, run again: st-keytokens index {model} "
        )

    def test_of_an_earlier_version(self, fails, folder):
        with HybridIndex(folder / "old"):
            pass
        (folder / "old" / "encoder" / "vectors").mkdir(parents=True)
        assert fails("search", folder / "old", "stars").endswith(
            f"To go on, run again: st-keytokens index MODEL INPUT {folder / 'old'}"
        )

    def test_refused_command_leaves_a_finished_index_finished(self, fails, run, other_model, folder):
        fails("index", other_model, folder / "more.jsonl", folder / "index")
        assert run("search", folder / "index", "stars")[2] == ""
