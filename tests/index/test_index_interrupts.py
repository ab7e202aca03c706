"""An interrupt at any moment leaves the lock free, the handle usable, and nothing half done."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from index_samples import hybrid_rows

import st_keytokens.index
from st_keytokens.index import HybridIndex
from st_keytokens.index.store import copy_index

# What is raised while an object is freed does not reach the caller.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PACKAGE = str(Path(st_keytokens.index.__file__).parent)
ERRORS = itertools.cycle([KeyboardInterrupt, SystemExit, RuntimeError])
ROWS = hybrid_rows(8, np.random.default_rng(3))


class Interrupter:
    """Counts events, and raises once, at the one of a number. Its hook stays, as Python cannot remove one."""

    def __init__(self):
        self.left, self.count, self.is_on = None, 0, False
        self.has_hook = False

    def event(self):
        if self.is_on:
            self.count += 1
            if self.left is not None and self.count > self.left:
                self.is_on = False
                raise next(ERRORS)("interrupted by the test")

    def on_audit(self, name, arguments):
        if self.is_on and name != "sys.settrace":
            self.event()

    def on_line(self, frame, kind, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        self.event()  # calls, lines, returns and exceptions
        return self.on_line

    def run(self, kind, number, operation):
        """Whether the operation was interrupted, and how many events there were."""
        if kind == "audit" and not self.has_hook:
            sys.addaudithook(self.on_audit)
            self.has_hook = True
        self.left, self.count = number, 0
        previous = sys.gettrace()
        gc.disable()
        if kind == "lines":
            sys.settrace(self.on_line)
        self.is_on = True
        try:
            operation()
        except BaseException as err:
            if not any("interrupted by the test" in str(e) for e in (err, err.__cause__, err.__context__) if e):
                raise
            return True, self.count
        finally:
            self.is_on = False
            sys.settrace(previous)
            gc.enable()
        return False, self.count


INTERRUPTER = Interrupter()


def content(index):
    """Everything that an index answers."""
    (hits,) = index.search(ROWS[:1], mode="dense", top_k=99)
    return sorted((hit.id, hit.text, str(hit.metadata), hit.score) for hit in hits)


def add(index, target):
    index.add(["new 1", "new 2"], ["x", "y"], embeddings=ROWS[2:4], metadata=[{"a": 1}, None])


def replace(index, target):
    names = ["0", "1", "2", "3", "4"]
    index.add(names, names, embeddings=ROWS[3:8], on_conflict="replace")


def delete(index, target):
    index.delete(["1", "5"])


def compact(index, target):
    index.compact()


def copy(index, target):
    copy_index(index.path, target / "copy")


def persist(index, target):
    copy_index(index.path, target / "copy", {"retriever.json": b"{}"})


def load(index, target):
    with HybridIndex(index.path) as another:
        another.search(ROWS[:1])


def make(index, target):
    with HybridIndex(target / "made") as another:
        another.add(["a"], ["b"], embeddings=ROWS[:1])


CHANGES = [add, replace, delete, compact, load, copy, persist, make]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """An index with several segments and deleted rows, and another one that a copy replaces."""
    folder = tmp_path_factory.mktemp("samples")
    with HybridIndex(folder / "index") as index:
        for names in ("0123", "45", "6"):
            index.add(list(names), [f"text {name}" for name in names], embeddings=ROWS[: len(names)])
        index.delete(["2"])
    with HybridIndex(folder / "copy") as index:
        index.add(["old"], ["old"], embeddings=ROWS[:1])
    (folder / "copy" / "retriever.json").write_text('{"old": 1}')
    return folder


def state(folder):
    """What lies at the target of a copy."""
    with HybridIndex(folder / "copy") as index:
        index.verify()
        settings = folder / "copy" / "retriever.json"
        return content(index), settings.read_text() if settings.exists() else None


def interrupted(samples, folder, kind, change, number):
    """Interrupt a change at an event; how many events there were if it was not, else None."""
    shutil.copytree(samples, folder)
    with HybridIndex(folder / "index", timeout=0) as index:
        before, before_copy = content(index), state(folder)
        names_before = {entry.name for entry in folder.iterdir()}
        was_interrupted, count = INTERRUPTER.run(kind, number, lambda: change(index, folder))
        with HybridIndex(folder / "index", timeout=0) as other:
            other.delete(["nope"])  # the lock is free
        middle = content(index)
        copy_index(samples / "index", folder / "untouched")
        copied = state(folder)
        assert {entry.name for entry in folder.iterdir()} - names_before <= {"untouched", "made"}
        index.verify()
        with HybridIndex(folder / "untouched") as untouched:
            if change not in (make,):
                change(untouched, folder)
            after = content(untouched)
        after_copy = state(folder)
        assert middle in (before, after)
        assert copied in (before_copy, after_copy)
        index.delete(["nope"])
        live = {entry.name for entry in (folder / "index" / "segments").iterdir()}
        with index._store.read() as connection:
            assert live == set(index._store.segment_files(connection))  # nothing half written is left
        index.add(["more"], ["more"], embeddings=ROWS[:1])
        assert len(content(index)) == len(middle) + 1
        if change is make and (folder / "made").exists():
            with HybridIndex(folder / "made") as made:
                assert len(made) in (0, 1)
                made.verify()
        if not was_interrupted:
            assert middle == after
    shutil.rmtree(folder)
    return None if was_interrupted else count


def interrupt_at(samples, tmp_path, kind, change, most):
    """Interrupt a change at so many of its events, evenly chosen, or at all; how often it was."""
    count = interrupted(samples, tmp_path / "whole", kind, change, None)
    numbers = sorted(set(np.linspace(0, count - 1, min(most, count)).astype(int).tolist()))
    results = [interrupted(samples, tmp_path / "part", kind, change, number) for number in numbers]
    return len(numbers), sum(result is None for result in results)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_some_moments(samples, tmp_path, change):
    num_audits, num_raised = interrupt_at(samples, tmp_path, "audit", change, 4)
    num_lines, num_lines_raised = interrupt_at(samples, tmp_path, "lines", change, 4)
    assert num_audits == num_lines == 4
    assert num_raised + num_lines_raised >= 6


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most", "least"), [("audit", 10_000, 500), ("lines", 150, 1000)])
def test_all_moments(samples, tmp_path, kind, most, least):
    """Every audit event, and a hundred and fifty lines of each change."""
    trials = [interrupt_at(samples, tmp_path, kind, change, most) for change in CHANGES]
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
