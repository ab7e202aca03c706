"""Standard streams as a shell may leave them: closed, full, without a reader, in another locale. Real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from cli_samples import write_jsonl

from st_keytokens import HybridIndex

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="runs sh")

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line, *words, **environment):
    """Runs a line of sh in which ``$0`` is the command line, and ``$1`` and so on are words."""
    line = line.replace("st-keytokens", '"$0" -m st_keytokens.cli')
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [b"sh", b"-c", line.encode(), os.fsencode(sys.executable), *map(os.fsencode, map(str, words))]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=300)
    return found.returncode, found.stdout.decode(), found.stderr.decode()


@pytest.fixture
def small(tmp_path):
    return write_jsonl(tmp_path / "small.jsonl", [{"id": i, "text": f"Stars and gas {i}"} for i in range(4)])


class TestClosed:
    @pytest.mark.parametrize(
        ("line", "error"),
        [
            ("st-keytokens tokens $1 <&-", "texts must be given as arguments, with --input or on standard input, got"),
            ("st-keytokens tokens $1 - <&-", "standard input must be open to be read, got a closed one. Name a file"),
            ("st-keytokens index $1 - $2/ix <&-", "standard input must be open to be read, got a closed one."),
            ("st-keytokens tokens $1 text >&-", "standard output must be open, got a closed one. Send it to"),
            ("st-keytokens index $1 $2/small.jsonl $2/ix >&-", "standard output must be open, got a closed one."),
        ],
    )
    def test_one_line_says_so(self, model, tmp_path, small, line, error):
        code, out, err = shell(line, model, tmp_path)
        assert (code, out) == (2, "")
        assert err.startswith(f"st-keytokens: error: {error}") and err.count("\n") == 1
        assert not (tmp_path / "ix").exists()

    @pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "<&-"])
    def test_work_goes_on_and_no_file_takes_the_streams_place(self, model, tmp_path, small, closed):
        code, out, err = shell(f"st-keytokens index $1 $2 $3/ix {closed}", model, small, tmp_path)
        assert (code, out) == (0, "Added 4 documents. The index holds 4 documents.\n")
        assert err == ("" if "2>&-" in closed else "Calibrated on 4 documents.\n")
        with HybridIndex(tmp_path / "ix", read_only=True) as opened:
            opened.verify()
            assert len(opened) == 4

    def test_error_without_streams(self, model):
        assert shell("st-keytokens tokens $1 text <&- >&- 2>&-", model) == (2, "", "")


class TestReaderGone:
    def test_of_messages(self, model, tmp_path, small):
        """The reader of stderr has gone before the first message is written."""
        line = "{ st-keytokens index $1 $2 $3/ix 2>&1 >$3/out; echo $? >$3/code; } | true"
        assert shell(line, model, small, tmp_path)[1:] == ("", "")
        assert (tmp_path / "code").read_text() == "0\n"
        assert (tmp_path / "out").read_text() == "Added 4 documents. The index holds 4 documents.\n"
        assert not (tmp_path / "ix" / "encoder" / "unfinished.json").exists()

    def test_of_results_that_are_not_the_work(self, model, tmp_path, small):
        line = "{ st-keytokens index $1 $2 $3/ix; echo $? >$3/code; } | true"
        assert shell(line, model, small, tmp_path) == (0, "", "Calibrated on 4 documents.\n")
        assert (tmp_path / "code").read_text() == "0\n"
        with HybridIndex(tmp_path / "ix", read_only=True) as opened:
            assert len(opened) == 4

    @pytest.mark.parametrize("words", ["--help", "--version", "tokens --help"])
    def test_of_help(self, tmp_path, words):
        line = f"{{ st-keytokens {words}; echo $? >$1/code; }} | true"
        assert shell(line, tmp_path) == (0, "", "")
        assert (tmp_path / "code").read_text() == "0\n"

    @pytest.mark.parametrize("command", ["tokens $1 Stars", "search $2 Stars", "info $2"])
    def test_of_results(self, model, index, tmp_path, command):
        line = f"{{ st-keytokens {command}; echo $? >$3/code; }} | true"
        assert shell(line, model, index, tmp_path) == (0, "", "")
        assert (tmp_path / "code").read_text() == "0\n"

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_full_disk(self, model):
        code, out, err = shell("st-keytokens tokens $1 text >/dev/full", model)
        assert (code, out) == (2, "")
        assert err == (
            "st-keytokens: error: results must go to a standard output that takes them, got: "
            "[Errno 28] No space left on device.\n"
        )

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_help_on_a_full_disk(self):
        code, _, err = shell("st-keytokens --help >/dev/full")
        assert (code, err) == (2, "st-keytokens: error: [Errno 28] No space left on device\n")


class TestLocale:
    @pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, ASCII, {"LC_ALL": "C.UTF-8"}])
    @pytest.mark.parametrize(
        ("line", "label"),
        [
            ("tokens $1 fine $3", "texts"),
            ("search $2 $3", "texts"),
            ("explain $2 $3 s1", "QUERY"),
            ("explain $2 star $3", "DOC_ID"),
            ("search $2 star --filter $3", "--filter"),
            ("analyze pair $1 star $3", "OTHER"),
        ],
    )
    def test_undecodable_argument(self, model, index, line, label, environment):
        code, out, err = shell(f"st-keytokens {line}", model, index, "caf\udce9", **environment)
        assert (code, out) == (2, "")
        assert err == (
            f"st-keytokens: error: {label} must be UTF-8, got the byte 0xe9 in 'caf\\udce9'. Convert it to UTF-8.\n"
        )

    def test_utf_8_in_an_ascii_locale(self, model):
        code, out, err = shell("st-keytokens tokens $1 'Sterne — 星' --json --top-k 1", model, **ASCII)
        assert (code, err, json.loads(out)["text"]) == (0, "", "Sterne — 星")
        code, out, err = shell("echo 'Sterne — 星' | st-keytokens tokens $1 --top-k 1", model, **ASCII)
        assert (code, err, out.splitlines()[0]) == (0, "", "Sterne \\u2014 \\u661f")
        assert shell("st-keytokens --help", **ASCII)[0] == 0

    def test_undecodable_path_is_a_path(self, model, tmp_path):
        path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
        with open(path, "wb") as file:
            file.write(b"Stars\n")
        code, out, err = shell("st-keytokens tokens $1 --input $2 --top-k 1", model, os.fsdecode(path))
        assert (code, err, out.splitlines()[0]) == (0, "", "Stars")

    def test_undecodable_standard_input(self, model):
        code, _, err = shell("printf 'a\\351' | st-keytokens tokens $1", model)
        assert code == 2
        assert err.startswith("st-keytokens: error: standard input:1: must be UTF-8, got the byte 0xe9 at position 1 ")


class TestExitCodes:
    def test_are_in_the_help(self):
        _, out, _ = shell("st-keytokens --help")
        text = " ".join(out.split())
        for code in ("0, done", "1, a fault of the program", "2, something that you can put", "130, interrupted"):
            assert code in text
