"""Columns that segments keep: through the file and back, what is left out, and what a damaged one does."""

from __future__ import annotations

import json
import random
import sqlite3
from itertools import pairwise

import numpy as np
import pytest

from st_keytokens import HybridIndex, SparseEmbeddings
from st_keytokens.index import segment_columns
from st_keytokens.index.segment_columns import SegmentColumns


def read(metadata, first_key=0):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE documents (key INTEGER PRIMARY KEY, metadata TEXT)")
    rows = [(first_key + row, None if one is None else json.dumps(one)) for row, one in enumerate(metadata)]
    connection.executemany("INSERT INTO documents VALUES (?, ?)", rows)
    return SegmentColumns.read(connection, np.arange(first_key, first_key + len(rows)))


def through_a_file(columns):
    return SegmentColumns.unpacked(columns.packed(), columns.num_rows)


def content(columns):
    return {
        name: None if column is None else (column.codes.tolist(), (list(column.values[0]), list(column.values[1])))
        for name in sorted(columns.keys)
        for column in [columns.column(name)]
    }


METADATA = [
    {"year": 2024, "by": "b", "is": True},
    None,
    {"year": 2020.5, "by": "a", "is": None, "tags": ["x"]},
    {"year": -(2**63), "by": "\u00fc", "place": {"a": 1}, "is": False},
]
KNOWN = {
    "by": ([6, 0, 5, 7], ([], ["a", "b", "\u00fc"])),
    "is": ([3, 0, 1, 2], ([], [])),
    "place": ([0, 0, 0, 4], ([], [])),
    "tags": ([0, 0, 5, 0], ([], [])),
    "year": ([7, 0, 6, 5], ([-(2**63), 2020.5, 2024], [])),
}


def test_known_values():
    columns = read(METADATA, first_key=7)
    assert content(columns) == content(through_a_file(columns)) == KNOWN
    tags = through_a_file(columns).column("tags")
    assert list(tags.values[2]) == ['["x"]'] and tags.owners.tolist() == [0]
    assert list(tags.elements.values[1]) == ["x"] and tags.elements.codes.tolist() == [5]


@pytest.mark.parametrize("count", [250, 251, 65_530, 65_531, 70_000])
def test_codes_of_all_widths(count):
    columns = read([{"n": number} for number in range(count)])
    column = through_a_file(columns).column("n")
    np.testing.assert_array_equal(column.compares("$gte", count - 2), np.arange(count) >= count - 2)
    assert column.codes.tolist() == columns.column("n").codes.tolist()


def test_numbers_compare_exactly():
    columns = through_a_file(read([{"n": 2.0**53}, {"n": 0.5}]))
    assert columns.column("n").compares("$lt", 2**53 + 1).tolist() == [True, True]
    assert columns.column("n").is_among([], [2**53 + 1], []).tolist() == [False, False]


def test_a_key_that_no_row_has():
    column = through_a_file(read(METADATA)).column("other")
    assert not column.exists().any() and len(column.codes) == len(METADATA)


@pytest.mark.parametrize("seed", range(5))
def test_joined_ones_are_those_of_all(seed):
    rng = random.Random(seed)
    values = [1, 1.0, 2, 0.5, "a", "b", True, None, 10**15, "1", [], ["a", 1], ["a", [2]], ["b", None, 0.5], {"a": 1}]
    metadata = [{key: rng.choice(values) for key in "abc" if rng.random() < 0.7} for _ in range(60)]
    cuts = [0, *sorted(rng.sample(range(1, 60), 3)), 60]
    parts = [through_a_file(read(metadata[a:b])) for a, b in pairwise(cuts)]
    masks = [rng.choice([None, np.array([rng.random() < 0.5 for _ in range(part.num_rows)])]) for part in parts]
    kept = [
        one
        for (a, b), mask in zip(pairwise(cuts), masks, strict=True)
        for one, is_kept in zip(metadata[a:b], [True] * (b - a) if mask is None else mask, strict=True)
        if is_kept
    ]
    joined = through_a_file(SegmentColumns.joined(list(zip(parts, masks, strict=True))))
    expected = read(kept)
    assert joined.num_rows == len(kept)
    for key in "abc":
        ours, theirs = joined.column(key), expected.column(key)
        assert [list(values) for values in ours.values] == [list(values) for values in theirs.values]
        assert ours.codes.tolist() == theirs.codes.tolist()
        for value in ("a", "b", "1"):
            assert ours.has_element([], [], [value]).tolist() == theirs.has_element([], [], [value]).tolist()
        assert ours.has_element([None], [0.5, 1], []).tolist() == theirs.has_element([None], [0.5, 1], []).tolist()


def test_too_many_strings_and_too_many_keys(monkeypatch):
    monkeypatch.setattr(segment_columns, "_MOST_CHARACTERS", 6)
    columns = through_a_file(read([{"many": f"s{row}", "few": f"s{row % 3}"} for row in range(4)]))
    assert columns.column("many") is None and columns.column("few") is not None
    monkeypatch.setattr(segment_columns, "_MOST_KEYS", 2)
    columns = through_a_file(read([{"a": 1, "b": 2, "c": 3}, {"c": 4, "b": 5}]))
    assert columns.column("b") is not None and columns.column("c") is not None
    assert columns.column("a") is None and columns.column("d") is None  # one of which some row has
    joined = SegmentColumns.joined([(columns, None), (read([{"e": 1}]), None)])
    assert joined.column("b").codes.tolist() == [5, 6, 0]
    assert joined.column("e") is None


def test_what_one_part_leaves_out_is_left_out_of_all(monkeypatch):
    monkeypatch.setattr(segment_columns, "_MOST_CHARACTERS", 3)
    joined = SegmentColumns.joined([(read([{"a": "b"}]), None), (read([{"a": "long"}]), None), (read([None]), None)])
    assert joined.column("a") is None and joined.num_rows == 3


@pytest.fixture(scope="module")
def index_files(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "index"
    embeddings = SparseEmbeddings.from_dicts([{0: 1.0}] * 40, 3)
    with HybridIndex(path) as index:
        index.add(embeddings=embeddings, metadata=[{"n": row, "s": f"s{row}", "x": [row % 2]} for row in range(40)])
    return path


FILTERS = [{"n": {"$gte": 10}}, {"s": "s3"}, {"x": {"$contains": 1}}, {"n": {"$in": [3, 4]}, "s": {"$contains": "3"}}]


def test_damage_is_told(index_files):
    (file,) = index_files.glob("segments/*/columns.npy")
    whole = file.read_bytes()
    rng = random.Random(0)
    told = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(128, len(whole))] ^= 1 << rng.randrange(8)  # behind the header of the array
        file.write_bytes(damaged)
        try:
            with HybridIndex(index_files, read_only=True) as index:
                for filter in FILTERS:
                    index.search(SparseEmbeddings.from_dicts([{0: 1.0}], 3), filter=filter)
        except ValueError as err:
            assert "is damaged" in str(err) and "columns.npy" in str(err)
            told += 1
        with pytest.raises(ValueError, match=r"columns\.npy"), HybridIndex(index_files, read_only=True) as index:
            index.verify()
    file.write_bytes(whole)
    assert told > 50
