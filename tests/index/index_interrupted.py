"""Changes of an index, interrupted at any of their audit events or lines."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from index_samples import hybrid_rows
from interrupter import INTERRUPTER, evenly

from st_keytokens.index import HybridIndex
from st_keytokens.index.store import copy_index

ROWS = hybrid_rows(8, np.random.default_rng(3))


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


def fill_samples(folder):
    """An index with several segments and deleted rows, and another one that a copy replaces."""
    with HybridIndex(folder / "index") as index:
        for names in ("0123", "45", "6"):
            index.add(list(names), [f"text {name}" for name in names], embeddings=ROWS[: len(names)])
        index.delete(["2"])
        index.search(ROWS[:1])  # which loads what is loaded once only, so that no moment is in that
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
        with HybridIndex(folder / "index", timeout=0) as other, ThreadPoolExecutor(1) as thread:
            other.delete(["nope"])  # the lock is free
            assert thread.submit(len, index).result(timeout=60) == len(index)  # of threads, too
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


def interrupt_at(samples, tmp_path, kind, change, most, times=1):
    """Interrupt a change at so many of its events, evenly chosen, or at all, so many times; how often it was."""
    count = interrupted(samples, tmp_path / "whole", kind, change, None)
    numbers = times * evenly(count, most)
    results = [interrupted(samples, tmp_path / "part", kind, change, number) for number in numbers]
    return len(numbers), sum(result is None for result in results)
