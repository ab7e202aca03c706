"""An index writes its segments anew by itself where many rows are deleted, in the writer and as part of its change."""

from __future__ import annotations

import numpy as np
import pytest
from index_samples import hybrid_rows

from st_keytokens.index import HybridIndex

ROWS = hybrid_rows(6000, np.random.default_rng(13))


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
