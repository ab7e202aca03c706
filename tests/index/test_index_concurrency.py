"""Readers beside one writer, and two writers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from index_processes import CONTEXT, in_process
from index_samples import hybrid_rows, sparse_rows

import st_keytokens.index.hybrid_index
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


def open_databases():
    """Names of the SQLite files that this process has open."""
    names = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return [os.path.basename(name) for name in names if "index.sqlite" in name]


def search_and_add(index, name):
    found = [hit.id for hit in index.search(QUERY)[0]]
    index.add([name], embeddings=QUERY)
    return found


def add_late(index, parent_has_closed, results):
    index.add(["early"], embeddings=QUERY)
    results.put(len(index))
    parent_has_closed.wait(60)
    index.add(["late"], embeddings=QUERY)
    results.put([hit.id for hit in index.search(QUERY)[0]])


FORGETFUL = """
import os, sys
from st_keytokens.index import HybridIndex
from st_keytokens.sparse_embeddings import SparseEmbeddings

row = SparseEmbeddings.from_dicts([{0: 1.0}], 5)
index = HybridIndex()
index.add(["a"], embeddings=row)
child = os.fork()
if child == 0:
    sys.exit(0 if index.search(row)[0][0].id == "a" else 1)
assert os.waitpid(child, 0)[1] == 0
index.add(["b"], embeddings=row)
print([hit.id for hit in index.search(row)[0]])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
class TestForks:
    def test_both_sides_go_on_with_one_index(self, path):
        with HybridIndex(path) as index:
            assert search_and_add(index, "before") == ["one", "two"]
            assert in_process(search_and_add, index, "child") == ["one", "two", "before"]
            assert search_and_add(index, "after") == ["one", "two", "before", "child"]
            index.verify()

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are listed in /proc")
    def test_no_connection_is_inherited(self, path):
        with HybridIndex(path) as index, HybridIndex(path, read_only=True) as reader:
            index.search(QUERY)
            reader.search(QUERY)
            assert open_databases()
            assert in_process(open_databases) == []

    def test_what_the_child_commits_after_the_parent_has_closed_is_kept(self, path):
        parent_has_closed, results = CONTEXT.Event(), CONTEXT.Queue()
        with HybridIndex(path) as index:
            index.search(QUERY)
            child = CONTEXT.Process(target=add_late, args=(index, parent_has_closed, results))
            child.start()
            assert results.get(timeout=60) == 3
        with HybridIndex(path) as index:
            assert len(index) == 3
        parent_has_closed.set()
        assert results.get(timeout=60) == ["one", "two", "early", "late"]
        child.join()
        with HybridIndex(path) as index:
            assert [hit.id for hit in index.search(QUERY)[0]] == ["one", "two", "early", "late"]
            index.verify()

    def test_a_child_that_ends_leaves_a_temporary_index_alone(self):
        result = subprocess.run([sys.executable, "-c", FORGETFUL], capture_output=True, text=True, timeout=120)
        assert (result.stdout.strip(), result.stderr) == ("['a', 'b']", "")

    def test_a_fork_while_another_thread_searches(self, path):
        entered, leave, results = threading.Event(), threading.Event(), []

        def is_allowed(document):
            entered.set()
            return leave.wait(60)

        with HybridIndex(path) as index:
            thread = threading.Thread(target=lambda: results.append(index.search(QUERY, filter=is_allowed)))
            thread.start()
            assert entered.wait(60)
            message = r"index must not be in use when a process is forked, but it was"
            for use in (search_and_add, lambda index, name: HybridIndex(path)):
                with pytest.raises(RuntimeError, match=message):
                    in_process(use, index, "child")
            leave.set()
            thread.join()
            assert [hit.id for hit in results[0][0]] == ["one", "two"]
            assert search_and_add(index, "after") == ["one", "two"]
            assert in_process(search_and_add, index, "child") == ["one", "two", "after"]

    def test_a_fork_within_a_search(self, path):
        with HybridIndex(path) as index:
            forked = []

            def is_allowed(document):
                if not forked:
                    forked.append(os.fork())
                return True

            try:
                found = [hit.id for hit in index.search(QUERY, filter=is_allowed)[0]]
                if forked == [0]:
                    with pytest.raises(RuntimeError, match="must not be in use when a process is forked"):
                        index.search(QUERY)
                    os._exit(7)
            finally:
                if forked == [0]:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 7
            assert found == ["one", "two"]
            assert search_and_add(index, "after") == ["one", "two"]


class TestVerifying:
    def test_segments_that_are_replaced_meanwhile(self, path, monkeypatch):
        verified, verify = [], st_keytokens.index.hybrid_index.verify_segment

        def overtaken(directory, files):
            if not verified:  # the reader has listed the segments; the writer merges and removes them
                with monkeypatch.context() as unwatched:  # what the writer verifies before it merges
                    unwatched.setattr(st_keytokens.index.hybrid_index, "verify_segment", verify)
                    writer.add(["three", "four"], embeddings=PAIR)
            verified.append(directory)
            verify(directory, files)

        with HybridIndex(path) as reader, HybridIndex(path) as writer:
            monkeypatch.setattr(st_keytokens.index.hybrid_index, "verify_segment", overtaken)
            reader.verify()
            assert len(verified) == 2
            assert not verified[0].exists()
            assert verified[1].exists()

    def test_beside_a_writer_that_compacts_all_the_time(self, path):
        rng = np.random.default_rng(0)
        with HybridIndex(path) as index:
            for _ in range(6):
                index.add(embeddings=sparse_rows(30, rng, vocab_size=5, max_terms=4))
            writer = CONTEXT.Process(target=write_versions, args=(path, 40))
        writer.start()
        with HybridIndex(path, read_only=True) as reader:
            count = 0
            while writer.is_alive():
                reader.verify()
                count += 1
        writer.join()
        assert writer.exitcode == 0
        assert count > 1

    def test_a_file_that_is_gone_is_told_from_one_that_was_replaced(self, path):
        with HybridIndex(path) as reader, HybridIndex(path) as writer:
            assert len(reader) == 2
            (file,) = path.glob("segments/*/gaps.npy")
            file.unlink()
            with pytest.raises(ValueError, match=r"the index .* is damaged: .*gaps\.npy is missing"):
                reader.verify()
            with pytest.raises(ValueError, match=r"the index .* is damaged: .*gaps\.npy is missing"):
                writer.add(["three", "four"], embeddings=PAIR)  # would be merged with it
            writer.delete(["one"])  # a new commit, with the same segment
            with pytest.raises(ValueError, match=r"the index .* is damaged: .*gaps\.npy is missing"):
                reader.verify()


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
