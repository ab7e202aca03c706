from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from contextlib import closing

import pytest

from st_keytokens import HybridIndex, SparseEmbeddings
from st_keytokens.index import store
from st_keytokens.index.store import copy_index


def rows(count):
    return SparseEmbeddings.from_dicts([{i % 5: 1.0 + i} for i in range(count)], vocab_size=5)


def fill(index, count):
    index.add([str(i) for i in range(count)], [f"text {i}" for i in range(count)], embeddings=rows(count))


@pytest.fixture
def source():
    with HybridIndex(vocab_size=5, kernel="scipy") as index:
        fill(index, 10)
        index.delete(["3"])
        yield index


def content(path):
    with HybridIndex(path, kernel="scipy") as index:
        index.verify()
        return [hit.id for hit in index.search(rows(1), top_k=99)[0]], len(index)


def test_the_copy_is_the_same(source, tmp_path):
    copy_index(source.path, tmp_path / "a" / "copy")
    assert content(tmp_path / "a" / "copy") == ([hit.id for hit in source.search(rows(1), top_k=99)[0]], 9)


def test_the_copy_is_its_own(source, tmp_path):
    copy_index(source.path, tmp_path / "copy")
    source.delete(["0"])
    assert content(tmp_path / "copy")[1] == 9
    with HybridIndex(tmp_path / "copy") as copy:
        copy.delete(["1", "2"])
    assert len(source) == 8


def test_an_older_index_is_replaced_as_a_whole(source, tmp_path):
    copy_index(source.path, tmp_path / "copy")
    source.add(["new"], ["new"], embeddings=rows(1))
    copy_index(source.path, tmp_path / "copy")
    assert content(tmp_path / "copy")[1] == 10
    assert [entry.name for entry in tmp_path.iterdir()] == ["copy"]


def test_an_empty_directory_is_taken(source, tmp_path):
    copy_index(source.path, tmp_path)
    assert content(tmp_path)[1] == 9


def test_copies_beside_a_writer_hold_one_commit(source, tmp_path):
    is_done = threading.Event()

    def write():
        for i in range(30):
            source.add([f"x{i}", f"y{i}"], ["x", "y"], embeddings=rows(2))
        is_done.set()

    writer = threading.Thread(target=write)
    writer.start()
    lengths = []
    try:
        while not is_done.is_set():
            copy_index(source.path, tmp_path / "copy")
            lengths.append(content(tmp_path / "copy")[1])
    finally:
        writer.join()
    assert lengths == sorted(lengths)
    assert all(length % 2 == 1 for length in lengths)  # nine at first, then two at a time


def test_other_files_are_left_alone(source, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "precious.txt"):
        with pytest.raises(ValueError, match=r"path must be an index, .* with other files"):
            copy_index(source.path, target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious.txt"]


def test_a_writer_that_does_not_finish(source, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_COPY_TIMEOUT", 0.01)
    copy_index(source.path, tmp_path / "copy")
    source.delete(["0"])
    with closing(sqlite3.connect(source.path / "index.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OSError, match="could not be copied: database is locked"):
            copy_index(source.path, tmp_path / "copy")
    assert content(tmp_path / "copy")[1] == 9
    assert [entry.name for entry in tmp_path.iterdir()] == ["copy"]


class TestAbandonedCopies:
    @pytest.mark.parametrize("is_old", [True, False])
    @pytest.mark.parametrize("is_running", [True, False])
    def test_removed_by_the_next_copy(self, tmp_path, is_old, is_running):
        fcntl = pytest.importorskip("fcntl")
        with HybridIndex(tmp_path / "source") as index:
            index.add(["a"], embeddings=rows(1))
        left, others = tmp_path / f".target.keytokens-{'0' * 32}", tmp_path / f".other.keytokens-{'0' * 32}"
        for folder in (left, others):
            shutil.copytree(tmp_path / "source", folder)
            if is_old:
                os.utime(folder, (0, 0))
        descriptor = os.open(left, os.O_RDONLY)
        try:
            if is_running:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            copy_index(tmp_path / "source", tmp_path / "target")
        finally:
            os.close(descriptor)
        assert left.exists() == (is_running or not is_old)
        assert others.exists()
        with HybridIndex(tmp_path / "target") as index:
            assert index.ids() == ["a"]
