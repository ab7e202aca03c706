"""Copies of an index, killed before any of their file operations."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import numpy as np
from index_processes import CONTEXT
from index_samples import hybrid_rows

from st_keytokens.index import HybridIndex
from st_keytokens.index.store import copy_index
from st_keytokens.retrieval.retriever import Retriever

ROWS = hybrid_rows(6, np.random.default_rng(7))
FILE_EVENTS = ("open", "os.", "shutil.", "sqlite3.")


def make(path, names):
    with HybridIndex(path) as index:
        index.add(list(names), list(names), embeddings=ROWS[: len(names)])
    (path / "retriever.json").write_text(json.dumps({"of": names}))


def copied_until(source, target, number):
    """Copy in this process, and be killed before the file operation of a number."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event.startswith(FILE_EVENTS) and event != "os.kill":
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(hook)
    copy_index(source, target, {"retriever.json": (source / "retriever.json").read_bytes()})


def found(target):
    """Names of the documents at the target, as a reader finds them, and the settings beside them."""
    settings = Retriever.read_settings(target)["of"]
    with HybridIndex(target, read_only=True) as index:
        index.verify()
        names = "".join(name for name in "abcwxyz" if name in index)
        assert len(index) == len(names)
        return names, settings


def killed_copy(folder, has_old, number):
    """What is at the target after a copy over it was killed before a file operation, or None and so where it ended.

    Args:
        folder: With ``source``, the index that is copied, whose settings say so.
        has_old: Whether another index is at the target.
        number: Of the file operation.

    Returns:
        ``"none"``, ``"abc"`` (the old index) or ``"wxyz"`` (the new one), and whether the copy was killed.
    """
    source, target = folder / "source", folder / "target" / "index"
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    if has_old:
        make(target, "abc")
        (target / "notes.txt").write_text("mine")
    process = CONTEXT.Process(target=copied_until, args=(source, target, number))
    process.start()
    process.join()
    state = "none"
    if has_old or target.exists():
        names, settings = found(target)
        assert names == settings  # never the index of one with the settings of the other
        state = names
        if has_old:
            notes = [file.read_text() for file in target.parent.rglob("notes.txt")]
            assert notes == ["mine"]
    copy_index(source, target, {"retriever.json": b'{"of": "wxyz"}'})  # what was left is in nobody's way
    assert found(target) == ("wxyz", "wxyz")
    assert not has_old or (target / "notes.txt").read_text() == "mine"
    beside = {entry.name.split("-")[0] for entry in target.parent.iterdir()}
    assert beside <= {"index", ".index.keytokens"}
    assert not (target.parent / ".index.keytokens-old").exists()
    assert not (target.parent / ".index.keytokens-new").exists()
    assert process.exitcode in (0, -signal.SIGKILL)
    return state, process.exitcode != 0
