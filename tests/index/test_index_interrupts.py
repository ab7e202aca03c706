"""An interrupt at any moment leaves the lock free, the handle usable, and nothing half done."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest
from index_interrupted import CHANGES, ROWS, fill_samples, interrupt_at

from st_keytokens.index import HybridIndex

# What is raised while an object is freed does not reach the caller.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return fill_samples(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_some_moments(samples, tmp_path, change):
    num_audits, num_raised = interrupt_at(samples, tmp_path, "audit", change, 4)
    num_lines, num_lines_raised = interrupt_at(samples, tmp_path, "lines", change, 4)
    assert num_audits == num_lines == 4
    assert num_raised + num_lines_raised >= 6


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("kind", "most", "times", "least"), [("audit", 10_000, 2, 1000), ("lines", 150, 1, 1000)])
def test_all_moments(samples, tmp_path, kind, most, times, least):
    """Every audit event, twice with other errors, and a hundred and fifty lines of each change."""
    trials = [interrupt_at(samples, tmp_path, kind, change, most, times) for change in CHANGES]
    num_trials, num_raised = (sum(column) for column in zip(*trials, strict=True))
    sys.stderr.write(f"\n{kind}: {num_trials} interrupts, {num_raised} seen by the caller\n")
    assert num_raised > num_trials * 0.8
    assert num_trials >= least


class TestSignals:
    def test_while_it_waits_for_the_lock(self, tmp_path):
        with HybridIndex(tmp_path / "index") as holder, HybridIndex(tmp_path / "index", timeout=60) as index:
            with holder._store.write():
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
                start = time.monotonic()
                with pytest.raises(KeyboardInterrupt):
                    index.add(["a"], ["a"], embeddings=ROWS[:1])
                assert time.monotonic() - start < 10  # not the sixty seconds
            index.add(["a"], ["a"], embeddings=ROWS[:1])
            holder.add(["b"], ["b"], embeddings=ROWS[:1])
            assert len(index) == 2

    @pytest.mark.parametrize("delay", [0.001, 0.004, 0.01, 0.03])
    def test_while_it_writes(self, tmp_path, delay):
        with HybridIndex(tmp_path / "index") as index, HybridIndex(tmp_path / "index", timeout=0) as other:
            added = 0
            with pytest.raises(KeyboardInterrupt):
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
                while True:
                    index.add([f"{added}"], ["text"], embeddings=ROWS[:1])
                    added += 1
            assert len(other) in (added, added + 1)
            other.add(["other"], embeddings=ROWS[:1])
            index.add(["index"], embeddings=ROWS[:1])
            index.verify()
