"""The examples on Ray and Spark, with a worker and then the whole program killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from encoder_checks import assert_close

from st_keytokens import KeyTokenEncoder, SparseEmbeddings
from st_keytokens.bulk import read_batches, verify
from st_keytokens.shared.document_files import read_documents

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROWS, FILE_ROWS = 3000, 500
WORKERS = {"ray": b"ray::MapWorker", "spark": b"pyspark.daemon"}  # in the command line of a process that encodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="workers are found in /proc"),
]


def started(kind, output):
    environment = {**os.environ, "RAY_worker_niceness": "0", "HF_HUB_OFFLINE": "1", "BULK_TEST": str(output)}
    command = [sys.executable, str(EXAMPLES / "distributed" / f"{kind}_encode.py"), "--output", str(output)]
    with open(f"{output}.log", "ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def workers(kind, output):
    """Processes of this test that encode, known by the environment that they were started with."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = str(output).encode() in (process / "environ").read_bytes()
            if is_ours and WORKERS[kind] in (process / "cmdline").read_bytes().replace(b"\0", b" "):
                found.append(int(process.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def rows_there(kind, output):
    if kind == "spark":
        return FILE_ROWS * len(list(output.glob("*/_SUCCESS")))
    manifest = output / "manifest.json"
    return json.loads(manifest.read_text())["rows"] if manifest.exists() else 0


def wait(run, kind, output, rows):
    while rows_there(kind, output) < rows and run.poll() is None:
        time.sleep(0.2)
    assert run.poll() is None, Path(f"{output}.log").read_text()[-3000:]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", ["ray", "spark"])
def test_killed_worker_and_killed_run(kind, tmp_path):
    pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")
    pytest.importorskip({"ray": "ray", "spark": "pyspark"}[kind], reason="the example needs it")
    output = tmp_path / "out"
    run = started(kind, output)
    wait(run, kind, output, FILE_ROWS)
    killed = workers(kind, output)
    assert killed
    for process in killed:
        os.kill(process, signal.SIGKILL)
    wait(run, kind, output, 3 * FILE_ROWS)  # it goes on without being told
    assert not set(killed) & set(workers(kind, output))
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    there = rows_there(kind, output)
    assert FILE_ROWS <= there < ROWS
    time.sleep(10)  # in which the dead program's own processes end
    assert started(kind, output).wait() == 0, Path(f"{output}.log").read_text()[-3000:]
    records = list(read_documents(EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl"))
    assert verify(output).rows == ROWS
    ids, parts = zip(*read_batches(output), strict=True)
    names = [identifier for part in ids for identifier in part]
    assert sorted(names) == sorted(record.id for record in records)
    if kind == "ray":
        assert names == [record.id for record in records]
    encoder = KeyTokenEncoder.from_pretrained(
        EXAMPLES / "tiny-embedder" / "embedder", model_arguments={"device": "cpu"}, cache_size=0
    )
    some = np.random.default_rng(0).choice(ROWS, 100, replace=False)
    expected = encoder.encode([records[i].text for i in some]).sparse
    found = SparseEmbeddings.concatenate(parts)[[names.index(records[i].id) for i in some]]
    assert_close(found, expected, rtol=1e-2, atol=1e-2)
