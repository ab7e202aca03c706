from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from st_keytokens.evaluation import read_collection

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "benchmarks" / "prepare_collections.py"
SHARED = ROOT.parent / "shared" / "data" / "collections"
DOCUMENTS = (
    "doc_id,title,abstract,structured\n"
    '7,Mice  and men,"[\'Mice are small.\'\n ""A man isn\'t.""]",False\n'
    "9,Stars,['Stars shine.'],False\n"
)


def script():
    spec = importlib.util.spec_from_file_location("prepare_collections", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


preparing = script()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def archive():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as files:
        files.writestr("corpus_train.csv", DOCUMENTS)
    return content.getvalue()


@pytest.fixture
def files():
    return {
        "data/sci fact.zip": archive(),
        "topics.tsv.gz": gzip.compress(b"1\tWhich animals are small?\n"),
        "qrels.txt": b"1 0 7 1\n1 0 9 0\n",
    }


@pytest.fixture
def server(tmp_path, files):
    for name, content in files.items():
        path = tmp_path / "served" / "owner" / "name" / "0123abc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def collection(files):
    rows = preparing.Content(
        [("7", "Mice and men", "Mice are small. A man isn't."), ("9", "Stars", "Stars shine.")],
        [("1", "Which animals are small?")],
        [("1", "7", "1"), ("1", "9", "0")],
    )
    sources = [
        preparing.Source("owner/name", "0123abc", name, hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    ]
    checksums = {name: preparing.checksum(part) for name, part in rows._asdict().items()}
    return preparing.Collection(checksums, tuple(sources), preparing.scifact)


class TestPreparing:
    def test_download_to_the_layout_that_evaluation_reads(self, server, collection, tmp_path):
        preparing.prepare("tiny", collection, tmp_path / "made", server)
        found = read_collection(tmp_path / "made" / "tiny")
        assert found.doc_ids == ["7", "9"]
        assert found.queries == ["Which animals are small?"]
        assert found.qrels == {"1": {"7": 1, "9": 0}}
        assert preparing.differences(preparing.read(tmp_path / "made" / "tiny"), collection.checksums) == []

    def test_a_source_that_changed(self, server, collection, tmp_path):
        (tmp_path / "served" / "owner" / "name" / "0123abc" / "qrels.txt").write_bytes(b"1 0 9 1\n")
        with pytest.raises(ValueError, match=r"qrels\.txt must have the SHA-256 [0-9a-f]{64}, got"):
            preparing.prepare("tiny", collection, tmp_path / "made", server)
        assert not (tmp_path / "made").exists()

    def test_a_source_that_is_gone(self, server, collection, tmp_path):
        (tmp_path / "served" / "owner" / "name" / "0123abc" / "topics.tsv.gz").unlink()
        with pytest.raises(OSError, match="404"):
            preparing.prepare("tiny", collection, tmp_path / "made", server)

    def test_a_conversion_that_gives_something_else(self, server, collection, tmp_path):
        other = collection._replace(checksums=collection.checksums | {"queries": "0" * 64})
        with pytest.raises(ValueError, match="tiny must have the content that was measured, got another queries"):
            preparing.prepare("tiny", other, tmp_path / "made", server)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("name", ["arxiv-heldout", "squad-dev"])
    def test_what_has_no_recorded_cut_says_so(self, name, tmp_path):
        with pytest.raises(ValueError, match=f"{name} must come from a copy, got none to convert: .* is not recorded"):
            preparing.prepare(name, preparing.COLLECTIONS[name], tmp_path)


class TestConversions:
    def test_cranfield(self):
        content = preparing.cranfield(
            b"<doc>\n<docno>1</docno>\n<title>a\nwing .</title>\n<text>a\nwing .\n  lift  is\nlarge .</text>\n</doc>",
            b"<top><num> 1</num>\n<title>\nwhat lifts\n</title></top><top><num> 4</num><title>why</title></top>",
            b"1 0 1 3\n2 0 1 0\n",
        )
        assert content.corpus == [("1", "a wing .", "lift is large .")]
        assert content.queries == [("1", "what lifts"), ("2", "why")]
        assert content.judgements == [("1", "1", "1"), ("2", "1", "0")]

    def test_dbpedia_leaves_out_what_has_no_answer(self):
        content = preparing.dbpedia(
            json.dumps({"_id": "a", "title": "A", "text": "x  y"}).encode(),
            b'{"_id": "q", "text": "x"}\n{"_id": "r", "text": "z"}\n',
            b"query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t1\nr\ta\t0\n",
        )
        assert content == ([("a", "A", "x y")], [("q", "x")], [("q", "a", "2")])


class TestVerifying:
    def test_normal_form(self):
        assert preparing.checksum([("b", "x"), ("a", "é  y\n")]) == preparing.checksum(
            [("a", "e\u0301 y"), ("b", "x")]
        )
        assert preparing.checksum([("a", "x y")]) != preparing.checksum([("a", "xy")])
        assert preparing.checksum([("a", "x")]) != preparing.checksum([("a", "x"), ("a", "x")])

    def test_command(self, tmp_path):
        for name in ("cranfield", "squad-dev"):
            preparing.write(tmp_path / name, preparing.Content([("1", "t", "x")], [("1", "q")], [("1", "1", "1")]))
        command = [sys.executable, str(SCRIPT), "--verify", str(tmp_path), "--only", "cranfield", "--only", "scifact"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        first, second = done.stdout.splitlines()
        assert first == "cranfield: another corpus, queries, judgements"
        assert second.startswith("scifact: failed: [Errno 2] No such file")

    @pytest.mark.skipif(not SHARED.is_dir(), reason="the collections are not here")
    @pytest.mark.parametrize("name", list(preparing.COLLECTIONS))
    def test_the_measured_ones(self, name):
        found = preparing.read(SHARED / name)
        assert preparing.differences(found, preparing.COLLECTIONS[name].checksums) == []
