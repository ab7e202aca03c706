"""An index writes its segments anew by itself where many rows are deleted, in the writer and as part of its change."""

from __future__ import annotations

try:
    import resource
except ImportError:  # Windows
    resource = None

import numpy as np
import pytest
from index_processes import in_process
from index_samples import hybrid_rows

from st_keytokens.index import HybridIndex
from st_keytokens.sparse_embeddings import HybridEmbeddings

ROWS = hybrid_rows(6000, np.random.default_rng(13))
WIDE = HybridEmbeddings(np.repeat(ROWS.dense, 64, axis=1), ROWS.sparse)  # six megabytes


@pytest.fixture
def index(tmp_path):
    with HybridIndex(tmp_path / "index") as index:
        index.add([f"{number}" for number in range(6000)], embeddings=ROWS)
        yield index
        index.verify()


def state(index):
    """Names of the segments, and how many rows in them are deleted."""
    with index._store.read() as connection:
        return list(index._store.segment_files(connection)), len(index._store.tombstones(connection))


def found(index):
    (hits,) = index.search(ROWS[5990:5991], mode="dense", top_k=6000)
    return {hit.id: hit.score for hit in hits}


def names(start, stop):
    return [f"{number}" for number in range(start, stop)]


@pytest.mark.parametrize("way", ["delete", "replace"])
def test_a_fifth_of_the_rows(index, way):
    (before,), _ = state(index)
    scores = found(index)
    index.delete(names(0, 1199))
    assert state(index) == ([before], 1199)
    if way == "delete":
        index.delete(names(1199, 1201))
    else:
        index.add(names(1199, 1201), embeddings=ROWS[1199:1201], on_conflict="replace")
    segments, num_dead = state(index)
    assert before not in segments
    assert num_dead == 0
    assert {entry.name for entry in (index.path / "segments").iterdir()} == set(segments)
    left = 1201 if way == "delete" else 1199
    assert found(index) == {name: score for name, score in scores.items() if int(name) >= left}


def test_not_for_a_few(index):
    (before,), _ = state(index)
    index.delete(names(0, 1000))
    index.add(["new"], embeddings=ROWS[:1])
    assert (state(index)[0][0], state(index)[1]) == (before, 1000)


def test_everything(index):
    index.delete(names(0, 6000))
    assert state(index) == ([], 0)
    assert len(index) == 0
    assert list((index.path / "segments").iterdir()) == []


def test_a_reader_changes_nothing(index):
    index.delete(names(0, 1100))
    with HybridIndex(index.path, read_only=True) as reader:
        index.delete(names(1100, 1300))
        scores, segments = found(reader), state(index)
        assert scores.keys() == set(names(1300, 6000))
        reader.verify()
        assert state(index) == segments


def test_many_single_deletions_leave_few_dead_rows(index):
    for number in range(0, 6000, 100):
        index.delete(names(number, number + 100))
        dead = state(index)[1]
        assert dead < max(1024, 1 + (len(index) + dead) / 5)
    assert len(index) == 0


def scores_of(index):
    (hits,) = index.search(WIDE[5990:5991], mode="dense", top_k=6000)
    return {hit.id: hit.score for hit in hits}


def delete_without_room(path, limit):
    """Delete half of the documents where no file may grow beyond some bytes; what is there afterwards."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with HybridIndex(path) as index:
        count = index.delete(names(0, 3000))
        index.verify()
        on_disk = {entry.name for entry in (path / "segments").iterdir()}
        return count, len(index), *state(index), on_disk, scores_of(index)


@pytest.mark.skipif(resource is None, reason="needs limits of file sizes")
def test_without_room_the_rows_are_deleted_and_the_segment_stays(tmp_path):
    path, limit = tmp_path / "index", 1 << 21
    with HybridIndex(path) as index:
        index.add(names(0, 6000), embeddings=WIDE)
        (before,), _ = state(index)
        scores = scores_of(index)
    assert (path / "index.sqlite").stat().st_size < limit / 2
    assert (path / "segments" / before / "dense.npy").stat().st_size > 2 * limit  # half of it has no room
    count, left, segments, num_dead, on_disk, after = in_process(delete_without_room, path, limit)
    assert (count, left, segments, num_dead, on_disk) == (3000, 3000, [before], 3000, {before})
    assert after == {name: score for name, score in scores.items() if int(name) >= 3000}
    with HybridIndex(path) as index:
        index.delete(["3000"])  # with room again
        segments, num_dead = state(index)
        assert before not in segments
        assert num_dead == 0
