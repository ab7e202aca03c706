from __future__ import annotations

import json
import random
import threading

import numpy as np
import pytest

from st_keytokens.index import HybridIndex, segment_columns
from st_keytokens.index.filters import FilterMasks, _by_segments, filter_sql, is_passing, parse_filter
from st_keytokens.index.metadata_columns import MetadataColumns
from st_keytokens.sparse_embeddings import SparseEmbeddings

KEYS = ["a", "b", "é.c", "d e"]
SCALARS = [
    None,
    True,
    False,
    0,
    1,
    -1,
    1.0,
    0.5,
    0.1,
    1e300,
    2**53,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**70,
    -(2**63),
    1e-320,
]
SCALARS += ["", "a", "b", "ab", "1", "Ü", "\uffff", "😀", "true", "null", "2020-01-01", "2024-02-29T10:00:00Z"]


def value(rng, depth=0):
    kind = rng.random()
    if kind < 0.55 or depth == 3:
        return (
            rng.choice(SCALARS)
            if kind < 0.35
            else rng.choice([rng.random(), rng.randrange(50), f"s{rng.randrange(50)}"])
        )
    if kind < 0.8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return mixed_entry(rng, depth + 1)


def mixed_entry(rng, depth=0):
    return {key: value(rng, depth) for key in KEYS if rng.random() < 0.6}


def scalar(rng):
    return rng.choice(SCALARS) if rng.random() < 0.6 else rng.choice([rng.randrange(50), f"s{rng.randrange(50)}"])


def condition(rng, depth=0):
    name = rng.choice("plain $eq $ne $in $nin $gt $gte $lt $lte $exists $contains $any $all $within".split())
    if name == "plain":
        return scalar(rng)
    if name in ("$eq", "$ne", "$contains"):
        return {name: scalar(rng)}
    if name in ("$in", "$nin", "$any", "$all"):
        return {name: [scalar(rng) for _ in range(rng.randrange(4))]}
    if name == "$exists":
        return {name: rng.random() < 0.5}
    if name == "$within":
        return {name: filter_of(rng, depth + 1)}
    bounds = [one for one in SCALARS if one is not None and not isinstance(one, bool)]
    return {name: rng.choice([*bounds, rng.randrange(50), f"s{rng.randrange(50)}"])}


def filter_of(rng, depth=0):
    if depth < 3 and rng.random() < 0.4:
        name = rng.choice(["$and", "$or", "$not"])
        return {name: filter_of(rng, depth + 1) if name == "$not" else [filter_of(rng, depth + 1) for _ in range(2)]}
    return {key: condition(rng, depth) for key in rng.sample(KEYS, rng.randrange(3))}


def rows(count):
    return SparseEmbeddings.from_dicts([{0: 1.0}] * count, 3)


def check_same(index, masks, filter, documents):
    """The mask by columns, by SQL and by the test of a single document are one."""
    parsed = parse_filter(filter)
    with index._store.read() as connection:
        snapshot = index._current(connection)
        mask = masks.mask(connection, snapshot, parsed)
        by_segments = _by_segments(connection, snapshot, parsed)
        masks._by_columns(connection, snapshot, parsed)  # the first filter on a key asks SQLite
        by_columns = masks._by_columns(connection, snapshot, parsed)
        sql, parameters = filter_sql(parsed)
        found = connection.execute(f"SELECT key FROM documents WHERE {sql} ORDER BY key", parameters).fetchall()
        expected = snapshot.mask(np.array(found, np.int64).reshape(-1))
        names = [fields[0] for fields in index._store.documents.get(connection, snapshot.keys(np.flatnonzero(mask)))]
    assert by_columns is not None
    if by_segments is not None:
        np.testing.assert_array_equal(by_segments, expected, err_msg=repr(filter))
    np.testing.assert_array_equal(by_columns, expected, err_msg=repr(filter))
    np.testing.assert_array_equal(mask, expected, err_msg=repr(filter))
    assert names == [one.id for one in documents if is_passing(parsed, one)], filter
    return by_segments is not None


class TestAgainstSql:
    @pytest.mark.parametrize("is_plain", [False, True])
    @pytest.mark.parametrize("seed", range(6))
    def test_all_filters_through_changes(self, seed, is_plain):
        rng = random.Random(seed)
        num_by_segments = 0

        def entry(rng):
            return {key: scalar(rng) for key in KEYS if rng.random() < 0.6} if is_plain else mixed_entry(rng)

        with HybridIndex() as index:
            masks = FilterMasks(index._store)
            for step in range(25):
                change = rng.choice(["add", "add", "replace", "delete", "compact"]) if step else "add"
                count = rng.choice([1, 3, 40])
                ids = index.ids()
                if change == "add":
                    index.add(embeddings=rows(count), metadata=[rng.choice([None, entry(rng)]) for _ in range(count)])
                elif change == "replace":
                    names = rng.sample(ids, min(count, len(ids)))
                    new = [entry(rng) for _ in names]
                    if names:
                        index.add(names, embeddings=rows(len(names)), metadata=new, on_conflict="replace")
                elif change == "delete":
                    index.delete(rng.sample(ids, min(count, len(ids))))
                else:
                    index.compact()
                documents = index.documents()
                for _ in range(12):
                    num_by_segments += check_same(index, masks, filter_of(rng), documents)
        assert num_by_segments > (200 if is_plain else 100)

    def test_where_many_rows_are_deleted_and_segments_written_anew(self):
        with HybridIndex() as index:
            index.add(
                embeddings=rows(5000), metadata=[{"a": row % 7, "b": [row % 3, f"t{row}"]} for row in range(5000)]
            )
            masks = FilterMasks(index._store)
            for first in (0, 1000, 2500):
                check_same(index, masks, {"a": {"$gte": 3}, "b": {"$any": [1, "t4000"]}}, index.documents())
                index.delete([str(row) for row in range(first, first + 1300)])
                check_same(index, masks, {"$not": {"a": 3}}, index.documents())
                index.add(embeddings=rows(2), metadata=[{"a": 3.5}, {"b": ["t4000"]}])
                check_same(
                    index, masks, {"$or": [{"a": {"$gt": 3}}, {"b": {"$contains": "t4000"}}]}, index.documents()
                )


class TestPartsOfStrings:
    @pytest.mark.parametrize("part", ["", "x1", "1y", "y1", "9", "z", "x1y7", ".*", "1|2", "yx"])
    def test_all_strings_with_a_part(self, part):
        metadata = [{"a": f"x{row}y{row * 7 % 11}"} if row % 3 else {"a": ["x1", part]} for row in range(300)]
        with HybridIndex() as index:
            index.add(embeddings=rows(300), metadata=metadata)
            masks, documents = FilterMasks(index._store), index.documents()
            check_same(index, masks, {"a": {"$contains": part}}, documents)
            check_same(index, masks, {"a": {"$any": [part, "y3", 5]}}, documents)
            check_same(index, masks, {"a": {"$all": [part, "x2"]}}, documents)


class TestWhatIsRead:
    @staticmethod
    def statements(index, act):
        with index._store.read() as connection:
            told: list[str] = []
            connection.set_trace_callback(told.append)
            act(connection, index._current(connection))
            connection.set_trace_callback(None)
        return [text for text in told if "FROM documents" in text]

    def test_the_third_filter_on_a_key_reads_no_document_and_after_a_change_the_new_ones(self, monkeypatch):
        monkeypatch.setattr(segment_columns, "_MOST_KEYS", 0)
        with HybridIndex() as index:
            index.add(embeddings=rows(50), metadata=[{"a": row} for row in range(50)])
            masks = FilterMasks(index._store)

            def ask(filter):
                return self.statements(index, lambda *where: masks.mask(*where, parse_filter(filter)))

            for first_and_second in ({"a": 1}, {"a": 0}):
                assert len(ask(first_and_second)) == 1
            assert ask({"a": {"$gte": 2}}) == ask({"$or": [{"a": 3}, {"a": "x"}]}) == []
            index.add(embeddings=rows(2), metadata=[{"a": 7}, None])
            (statement,) = ask({"a": 1})
            assert "key >= 50 " in statement
            index.delete(["3"])
            assert ask({"a": 1}) == []

    def test_no_filter_on_what_segments_keep_reads_a_document(self, tmp_path):
        def ask(index, filter, expected):
            def act(connection, snapshot):
                mask = index._filter_masks.mask(connection, snapshot, parse_filter(filter))
                found.extend(snapshot.keys(np.flatnonzero(mask)))

            found: list[int] = []
            assert self.statements(index, act) == []
            assert found == expected

        with HybridIndex(tmp_path / "index") as index:
            index.add(list("abc"), embeddings=rows(3), metadata=[{"a": 1}, None, {"a": 2.5, "b": "x"}])
            ask(index, {"a": {"$gte": 1}}, [0, 2])
            index.add(["d"], embeddings=rows(1), metadata=[{"a": True, "b": "y"}])
            ask(index, {"b": {"$in": ["x", "y"]}}, [2, 3])
            ask(index, {"never": None}, [])
            index.delete(["c"])
            ask(index, {"b": {"$exists": True}}, [3])
            index.compact()
        with HybridIndex(tmp_path / "index", read_only=True) as index:
            ask(index, {"a": {"$ne": True}}, [0, 1])

    @pytest.mark.parametrize("most_bytes", [0, 1000])
    def test_sqlite_is_asked_for_what_does_not_fit(self, most_bytes, monkeypatch):
        monkeypatch.setattr(segment_columns, "_MOST_KEYS", 0)
        with HybridIndex() as index:
            index.add(embeddings=rows(30), metadata=[{"a": f"{row:0100}"} for row in range(30)])
            masks = FilterMasks(index._store, most_column_bytes=most_bytes)
            for row in range(3):
                found: list[int] = []

                def act(connection, snapshot, row=row, found=found):
                    mask = masks.mask(connection, snapshot, parse_filter({"a": f"{row:0100}"}))
                    found += np.flatnonzero(mask).tolist()

                assert self.statements(index, act)
                assert found == [row]
            assert masks._columns._held == {}

    def test_the_columns_made_longest_ago_go_first(self):
        with HybridIndex() as index:
            index.add(embeddings=rows(100), metadata=[{"a": 1, "b": 2, "c": 3}] * 100)
            columns = MetadataColumns(most_bytes=2 * (12 * 100 + 200))
            with index._store.read() as connection:
                for key in "abc":
                    assert columns.column(connection, index._current(connection), f'$."{key}"') is not None
            assert list(columns._held) == ['$."b"', '$."c"']

    def test_an_older_snapshot_is_answered_as_it_was(self, tmp_path):
        with HybridIndex(tmp_path / "index") as index:
            index.add(embeddings=rows(3), metadata=[{"a": 1}, {"a": 2}, {"a": 1}])
            masks, parsed = FilterMasks(index._store), parse_filter({"a": 1})
            with index._store.read() as connection:
                snapshot = index._current(connection)

                def change():
                    index.delete(["0"])
                    with index._store.read() as newer:
                        assert masks.mask(newer, index._current(newer), parsed)[:3].tolist() == [False, False, True]

                thread = threading.Thread(target=change)
                thread.start()
                thread.join()
                assert masks.mask(connection, snapshot, parsed)[:3].tolist() == [True, False, True]

    def test_values_that_no_document_has_any_more_are_forgotten(self):
        with HybridIndex() as index:
            names = [str(row) for row in range(1500)]
            columns = MetadataColumns()
            for turn in range(4):
                metadata = [{"a": f"{turn} {name}"} for name in names]
                index.add(names, embeddings=rows(1500), metadata=metadata, on_conflict="replace")
                with index._store.read() as connection:
                    snapshot = index._current(connection)
                    column = columns.column(connection, snapshot, '$."a"')
                    assert len(column.values[1]) == 1500
                    is_wanted = column.compares("$gte", f"{turn} ") & column.compares("$lt", f"{turn} ~")
                    assert np.count_nonzero(is_wanted) == 1500
                    assert columns._held['$."a"'][3] < 1 << 20

    def test_what_grew_too_large_by_values_of_the_past_is_read_anew(self):
        with HybridIndex() as index:
            index.add(["0"], embeddings=rows(1), metadata=[{"a": "x" * 1000}])
            columns = MetadataColumns(most_bytes=6000)
            for turn in range(20):
                new = [{"a": f"{turn}" * 500}]
                index.add(["0"], embeddings=rows(1), metadata=new, on_conflict="replace")
                with index._store.read() as connection:
                    column = columns.column(connection, index._current(connection), '$."a"')
                    assert f"{turn}" * 500 in column.values[1]
                    assert columns._held['$."a"'][3] <= 6000

    def test_bytes_are_counted(self):
        with HybridIndex() as index:
            index.add(embeddings=rows(1000), metadata=[{"a": row % 3, "b": f"text {row}"} for row in range(1000)])
            columns = MetadataColumns()
            with index._store.read() as connection:
                for key in "ab":
                    columns.column(connection, index._current(connection), f'$."{key}"')
            few, many = (columns._held[f'$."{key}"'][3] for key in "ab")
            assert 12_000 <= few < 12_500
            assert many > 12_000 + sum(len(json.dumps(f"text {row}")) for row in range(1000))
