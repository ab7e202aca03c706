"""Readers beside one writer, and two writers."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from index_processes import CONTEXT, in_process
from index_samples import hybrid_rows, sparse_rows

from st_keytokens.index import HybridIndex
from st_keytokens.index.segments import Segment
from st_keytokens.sparse_embeddings import SparseEmbeddings

QUERY = SparseEmbeddings.from_dicts([{0: 1.0}], 5)
PAIR = QUERY[[0, 0]]


def write_versions(path, count):
    """Replace two documents together, again and again, with other changes between."""
    with HybridIndex(path) as index:
        for version in range(1, count + 1):
            texts = [f"version {version}"] * 2
            index.add(["one", "two"], texts, embeddings=PAIR, metadata=[{"v": version}] * 2, on_conflict="replace")
            if version % 5 == 0:
                index.compact()
            if version % 7 == 0:
                index.delete(index.add(embeddings=SparseEmbeddings.empty(4, 5)))


def read_versions(path, enough, read_only):
    """Search until the last version is there; every search must see both documents of one version."""
    seen = set()
    with HybridIndex(path, read_only=read_only) as index:
        deadline = time.monotonic() + 120
        while enough not in seen and time.monotonic() < deadline:
            (hits,) = index.search(QUERY)
            if [hit.id for hit in hits] != ["one", "two"] or len({hit.text for hit in hits}) != 1:
                return f"saw {hits}"
            version = hits[0].metadata["v"]
            if seen and version < max(seen):
                return f"version {version} came back after {max(seen)}"
            seen.add(version)
            (filtered,) = index.search(QUERY, filter={"v": {"$gte": version}})
            if len(filtered) != 2:
                return f"filter saw {filtered}"
    return len(seen)


@pytest.fixture
def path(tmp_path):
    with HybridIndex(tmp_path / "index") as index:
        index.add(["one", "two"], ["version 0"] * 2, embeddings=PAIR, metadata=[{"v": 0}] * 2)
    return tmp_path / "index"


class TestReaders:
    def test_processes_see_whole_commits_and_the_newest(self, path):
        writer = CONTEXT.Process(target=write_versions, args=(path, 40))
        results = CONTEXT.Queue()

        def read(read_only):
            results.put(read_versions(path, 40, read_only))

        readers = [CONTEXT.Process(target=read, args=(read_only,)) for read_only in (True, False)]
        for process in (writer, *readers):
            process.start()
        counts = [results.get(timeout=150) for _ in readers]
        for process in (writer, *readers):
            process.join()
            assert process.exitcode == 0
        assert all(isinstance(count, int) and count > 1 for count in counts), counts

    def test_threads_share_one_index_with_the_writer(self, path):
        results = []
        with HybridIndex(path) as index:

            def read():
                seen = [0]
                while seen[-1] < 20:
                    (hits,) = index.search(QUERY)
                    versions = {hit.metadata["v"] for hit in hits}
                    if len(hits) != 2 or len(versions) != 1 or min(versions) < seen[-1]:
                        results.append(hits)
                        return
                    seen.append(versions.pop())
                results.append("done")

            threads = [threading.Thread(target=read) for _ in range(3)]
            for thread in threads:
                thread.start()
            for version in range(1, 21):
                index.add(["one", "two"], embeddings=PAIR, metadata=[{"v": version}] * 2, on_conflict="replace")
            for thread in threads:
                thread.join()
            assert results == ["done"] * 3

    def test_threads_do_not_share_scores(self):
        rng = np.random.default_rng(0)
        rows = sparse_rows(2000, rng)
        with HybridIndex() as index:
            index.add(embeddings=rows)
            alone = index.search(rows[:40])
            results = {}

            def read(number):
                results[number] = [index.search(rows[row])[0] for row in range(40)]

            threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert all(results[number] == alone for number in range(4))

    def test_an_open_reader_sees_a_commit_on_its_next_search(self, path):
        with HybridIndex(path, read_only=True) as reader, HybridIndex(path) as writer:
            assert len(reader.search(QUERY)[0]) == 2
            writer.add(["three"], embeddings=QUERY)
            assert [hit.id for hit in reader.search(QUERY)[0]] == ["one", "two", "three"]
            writer.delete(["one"])
            writer.compact()
            assert [hit.id for hit in reader.search(QUERY)[0]] == ["two", "three"]
            assert (len(reader), "one" in reader) == (2, False)

    def test_one_search_sees_one_commit(self, path):
        with HybridIndex(path) as reader, HybridIndex(path) as writer:

            def is_allowed(document):
                if "three" not in writer:
                    writer.add(["three"], embeddings=QUERY)
                    writer.delete(["one"])
                    writer.compact()
                return True

            assert [hit.id for hit in reader.search(QUERY, filter=is_allowed)[0]] == ["one", "two"]
            assert [hit.id for hit in reader.search(QUERY)[0]] == ["two", "three"]

    def test_a_segment_that_is_removed_before_it_can_be_opened(self, path, monkeypatch):
        with HybridIndex(path) as reader, HybridIndex(path) as writer:
            writer.add(["three"], embeddings=QUERY)
            opened, open_ = [], Segment.open

            def overtaken(directory, files):
                if not opened:  # the reader knows of the segment; the writer merges and removes it
                    opened.append(directory)
                    writer.add(["four", "five"], embeddings=PAIR)
                return open_(directory, files)

            monkeypatch.setattr(Segment, "open", overtaken)
            assert [hit.id for hit in reader.search(QUERY)[0]] == ["one", "two", "three", "four", "five"]
            assert not opened[0].exists()

    def test_closing_while_another_thread_searches(self):
        index = HybridIndex()
        index.add(["a"], embeddings=QUERY)
        entered, leave, results = threading.Event(), threading.Event(), []

        def is_allowed(document):
            entered.set()
            return leave.wait(30)

        thread = threading.Thread(target=lambda: results.append(index.search(QUERY, filter=is_allowed)))
        thread.start()
        assert entered.wait(30)
        index.close()
        leave.set()
        thread.join()
        assert [hit.id for hit in results[0][0]] == ["a"]


def hold_lock(path, held, release):
    with HybridIndex(path) as index, index._store.write():
        held.set()
        release.wait(60)


class TestTwoWriters:
    def test_the_second_is_told_who_holds_the_lock(self, path):
        held, release = CONTEXT.Event(), CONTEXT.Event()
        holder = CONTEXT.Process(target=hold_lock, args=(path, held, release))
        holder.start()
        try:
            assert held.wait(60)
            with HybridIndex(path, timeout=0.2) as index:
                start = time.monotonic()
                for write in (
                    lambda: index.add(["x"], embeddings=QUERY),
                    lambda: index.delete(["one"]),
                    index.compact,
                ):
                    with pytest.raises(
                        TimeoutError, match=rf"being written by process {holder.pid} on .*; waited 0.2 s"
                    ):
                        write()
                assert time.monotonic() - start > 0.5
                assert len(index.search(QUERY)[0]) == 2
        finally:
            release.set()
            holder.join()
        with HybridIndex(path, timeout=0.2) as index:
            index.add(["x"], embeddings=QUERY)
            assert len(index) == 3

    def test_the_second_waits_for_the_first(self, path):
        held, release = CONTEXT.Event(), CONTEXT.Event()
        holder = CONTEXT.Process(target=hold_lock, args=(path, held, release))
        holder.start()
        assert held.wait(60)
        threading.Timer(0.3, release.set).start()
        with HybridIndex(path, timeout=60) as index:
            assert index.delete(["one"]) == 1
        holder.join()

    def test_many_writers_lose_nothing(self, path):
        def add(name):
            rng = np.random.default_rng(0)
            with HybridIndex(path) as index:
                for number in range(8):
                    index.add([f"{name} {number}"], embeddings=sparse_rows(1, rng, vocab_size=5, max_terms=4))

        processes = [CONTEXT.Process(target=add, args=(name,)) for name in "abc"]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        with HybridIndex(path) as index:
            assert len(index) == 2 + 3 * 8
            index.verify()

    def test_threads_that_write_through_one_index(self):
        with HybridIndex() as index:

            def add(name):
                for number in range(10):
                    index.add([f"{name} {number}"], embeddings=QUERY)

            threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(index) == 40
            assert len(index.search(QUERY, top_k=100)[0]) == 40
            index.verify()

    def test_two_processes_may_make_one_index(self, tmp_path):
        def make(name):
            with HybridIndex(tmp_path / "new") as index:
                index.add([name], embeddings=QUERY)

        processes = [CONTEXT.Process(target=make, args=(name,)) for name in "abcd"]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        with HybridIndex(tmp_path / "new") as index:
            assert len(index) == 4


def num_open_files(path):
    rows = hybrid_rows(1, np.random.default_rng(0))
    with HybridIndex(path) as index:
        for _ in range(5):
            index.add(embeddings=rows)
            index.search(rows)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            index.add(embeddings=rows)
            index.compact()
            index.search(rows)
        return len(os.listdir("/proc/self/fd")) - before


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_files_of_old_segments_are_closed(tmp_path):
    assert in_process(num_open_files, tmp_path / "index") <= 2
