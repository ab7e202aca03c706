"""Conversion from every kind of source, killed in the middle and run again; and what memory it takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from encoder_checks import assert_close
from stored import KINDS, WITH_TEXTS, running_postgres, store

from st_keytokens import KeyTokenEncoder, SparseEmbeddings
from st_keytokens.bulk import convert, open_source, read_batches, read_manifest, verify
from st_keytokens.shared.document_files import read_documents

pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")

BATCH, SHARD, ROWS = 8, 24, 400
QUICK = ["parquet", "pgvector"]  # the others are read by the same code, from other places: run with -m slow
EVERY_KIND = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]

CONVERTS = """
import json, os, sys
from st_keytokens import KeyTokenEncoder
from st_keytokens.bulk import convert, open_source
from st_keytokens.shared.document_files import read_documents

model, location, output, options, texts, batch, shard = json.loads(sys.argv[1])
encoder = KeyTokenEncoder.from_pretrained(model, model_arguments={"device": "cpu"}, cache_size=0)
source = open_source(location, **options)
batches = source.batches

def told(size, position=None):
    for part in batches(size, position):
        yield part
        os.write(1, b"x")
        os.read(0, 1)

source.batches = told
reader = None if texts is None else lambda: read_documents(texts)
convert(encoder, source, output, texts=reader, batch_size=batch, shard_rows=shard)
"""

MEASURES = """
import json, re, sys, threading, time, torch
from st_keytokens import KeyTokenEncoder
from st_keytokens.bulk import convert, open_source

torch.set_num_threads(1)
model, location, output, options = json.loads(sys.argv[1])
encoder = KeyTokenEncoder.from_pretrained(model, model_arguments={"device": "cpu"}, cache_size=0)
peak, is_done = 0, threading.Event()

def watch():
    global peak
    while not is_done.wait(0.01):
        found = re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())
        peak = max(peak, int(found[1]))

watcher = threading.Thread(target=watch)
watcher.start()
convert(encoder, open_source(location, **options), output, batch_size=512, shard_rows=10_000)
is_done.set()
watcher.join()
print(peak)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with running_postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
def stored(request, dense, sentences, tmp_path):
    """Vectors and texts of 400 rows, where they are, and a file of the texts where they are nowhere else."""
    kind = request.param
    rows = [number % len(sentences) for number in range(ROWS)]
    ids, texts = [str(1000 + number) for number in range(ROWS)], [sentences[row] for row in rows]
    url = request.getfixturevalue("url") if kind == "pgvector" else None
    location, options = store(kind, tmp_path, ids, np.ascontiguousarray(dense[rows]), texts, url)
    corpus = None
    if kind not in WITH_TEXTS:
        corpus = tmp_path / "texts.jsonl"
        lines = [json.dumps({"_id": name, "text": text}) for name, text in zip(ids, texts, strict=True)]
        corpus.write_text("\n".join(lines) + "\n")
    return ids, dense[rows], texts, location, options, corpus


@pytest.mark.parametrize("stored", EVERY_KIND, indirect=True)
def test_killed_and_run_again(model, stored, tmp_path):
    ids, dense, texts, location, options, corpus = stored
    output = tmp_path / "out"
    given = [str(model), location, str(output), options, None if corpus is None else str(corpus), BATCH, SHARD]
    pipes = {"bufsize": 0, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CONVERTS, json.dumps(given)], **pipes) as process:
        for _ in range(20):
            assert process.stdout.read(1) == b"x"
            process.stdin.write(b"x")
        process.kill()
        assert process.wait() == -signal.SIGKILL
    killed = read_manifest(output)
    assert not killed.is_complete
    assert 0 < killed.rows < ROWS
    encoder = KeyTokenEncoder.from_pretrained(model, model_arguments={"device": "cpu"}, cache_size=0)
    reader = None if corpus is None else lambda: read_documents(corpus)
    made = convert(encoder, open_source(location, **options), output, texts=reader, batch_size=BATCH, shard_rows=SHARD)
    assert (made.rows, verify(output).rows) == (ROWS - killed.rows, ROWS)
    assert made.manifest.shards[: len(killed.shards)] == killed.shards  # what was whole is as it was
    names, parts = zip(*read_batches(output), strict=True)
    assert [name for part in names for name in part] == ids
    found, expected = SparseEmbeddings.concatenate(parts), encoder.sparsify(dense, texts, batch_size=BATCH)
    assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qdrant"])  # its local mode holds all in memory
def test_memory_does_not_grow_with_the_source(request, model, tmp_path, kind):
    """120,000 more rows, whose vectors alone are 15 MB, take at most 8 MB more of the process's own memory."""
    url, peaks = request.getfixturevalue("url") if kind == "pgvector" else None, []
    for rows in (30_000, 150_000):
        dense = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)
        folder = tmp_path / str(rows)
        folder.mkdir()
        location, options = store(kind, folder, list(map(str, range(rows))), dense, ["text"] * rows, url)
        options.pop("text_column", None)
        given = json.dumps([str(model), location, str(folder / "out"), options])
        run = subprocess.run([sys.executable, "-c", MEASURES, given], check=True, capture_output=True, text=True)
        peaks.append(int(run.stdout) / 1024)
        assert read_manifest(folder / "out").rows == rows
    print(f"{kind}: {peaks[0]:.0f} MB, {peaks[1]:.0f} MB")  # noqa: T201  # the figures of the run
    assert peaks[1] - peaks[0] < 8
