"""A handle touches its own files alone, and an index of somebody else's names nothing outside of itself."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from index_processes import in_process
from index_samples import hybrid_rows

from st_keytokens.index import HybridIndex
from st_keytokens.index.store import copy_index

ROWS = hybrid_rows(6, np.random.default_rng(5))
REPLACED = r"path must lead to the index that was opened, but .* was replaced, moved or removed since"


def make(path, names="abc"):
    with HybridIndex(path) as index:
        index.add(list(names), [f"text {name}" for name in names], embeddings=ROWS[: len(names)])
        index.delete([names[0]])
    return path


def files(path):
    """Every file below a directory with its content, the log and notes of writers aside."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("writer", "index.sqlite-shm", "index.sqlite-wal")
    }


def run(path, statement, *parameters):
    with closing(sqlite3.connect(path / "index.sqlite")) as connection:
        connection.execute(statement, parameters)
        connection.commit()


def replaced_by_a_copy(path, spare):
    copy_index(make(spare, "xyz"), path)


def rebuilt(path, spare):
    shutil.rmtree(path)
    make(path, "xyz")


def renamed_and_rebuilt(path, spare):
    path.rename(spare)
    make(path, "xyz")


def replaced_by_its_own_copy(path, spare):
    shutil.copytree(path, spare)
    shutil.rmtree(path)
    shutil.copytree(spare, path)


def database_replaced(path, spare):
    make(spare, "xyz")
    for name in ("index.sqlite-wal", "index.sqlite-shm"):
        (path / name).unlink(missing_ok=True)
    os.replace(spare / "index.sqlite", path / "index.sqlite")
    shutil.rmtree(path / "segments")
    (spare / "segments").rename(path / "segments")


def linked_elsewhere(path, spare):
    path.rename(spare.with_name("away"))
    path.symlink_to(make(spare, "xyz"))


REPLACEMENTS = [
    replaced_by_a_copy,
    rebuilt,
    renamed_and_rebuilt,
    replaced_by_its_own_copy,
    database_replaced,
    linked_elsewhere,
]


@pytest.mark.parametrize("replace", REPLACEMENTS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("has_searched", [True, False])
class TestReplaced:
    def test_an_open_writer_and_reader_are_refused(self, tmp_path, replace, has_searched):
        path = make(tmp_path / "index")
        with HybridIndex(path) as writer, HybridIndex(path, read_only=True) as reader:
            if has_searched:
                assert len(writer.search(ROWS[:1], mode="dense")[0]) == len(reader.search(ROWS[:1], mode="dense")[0])
            replace(path, tmp_path / "spare")
            before = files(path)
            for use in (
                lambda: writer.delete(["nope"]),
                lambda: writer.add(["new"], embeddings=ROWS[:1]),
                writer.compact,
                lambda: writer.search(ROWS[:1]),
                lambda: reader.search(ROWS[:1]),
                lambda: reader.get(["b"]),
                reader.verify,
            ):
                with pytest.raises(ValueError, match=REPLACED):
                    use()
            assert files(path) == before
        assert files(path) == before
        with HybridIndex(path) as opened:
            opened.verify()
            assert len(opened) == 2


class TestMoved:
    def test_a_directory_that_is_away_and_back(self, tmp_path):
        path = make(tmp_path / "index")
        with HybridIndex(path) as index:
            path.rename(tmp_path / "away")
            for use in (lambda: index.delete(["b"]), lambda: index.search(ROWS[:1])):
                with pytest.raises(ValueError, match=REPLACED):
                    use()
            assert not path.exists()
            (tmp_path / "away").rename(path)
            assert index.delete(["b"]) == 1
            index.verify()

    def test_a_relative_path_stays_the_same(self, tmp_path, monkeypatch):
        other = make(tmp_path / "elsewhere" / "index") if (tmp_path / "elsewhere").mkdir() is None else None
        monkeypatch.chdir(tmp_path)
        with HybridIndex("index") as index:
            index.add(["x"], ["mine"], embeddings=ROWS[:1])
            before = files(other)
            monkeypatch.chdir(other.parent)
            index.add(["y"], embeddings=ROWS[:1])
            index.delete(["nope"])
            assert index.path == tmp_path / "index"
        assert files(other) == before
        with HybridIndex(tmp_path / "index") as index:
            assert len(index) == 2

    def test_replaced_while_a_change_is_going_on(self, tmp_path):
        path = make(tmp_path / "index")
        with HybridIndex(path) as index:
            with (
                pytest.raises(ValueError, match=REPLACED),
                index._store.write() as connection,
            ):
                index._store.save_settings(connection, {})
                renamed_and_rebuilt(path, tmp_path / "spare")
                before = files(path)
            assert files(path) == before
        with HybridIndex(tmp_path / "spare") as old:
            assert len(old) == 2
            old.verify()

    def test_a_hard_link_is_not_written_through(self, tmp_path):
        path = make(tmp_path / "index")
        shutil.copytree(path, tmp_path / "linked", copy_function=os.link)
        before = files(path)
        with HybridIndex(tmp_path / "linked") as index:
            assert len(index) == 2
            with pytest.raises(ValueError, match=r"index\.sqlite must have one name to be written, got hard links"):
                index.delete(["b"])
        assert files(path) == before


class TestEmptied:
    @pytest.mark.parametrize("read_only", [True, False])
    @pytest.mark.parametrize("content", [b"", None])
    def test_an_empty_database_beside_segments_is_damage(self, tmp_path, read_only, content):
        path = make(tmp_path / "index")
        if content is None:  # one without tables
            (path / "index.sqlite").unlink()
            run(path, "PRAGMA user_version = 0")
            run(path, "VACUUM")
        else:
            (path / "index.sqlite").write_bytes(content)
        before = files(path)
        with pytest.raises(ValueError, match=r"the index .* is damaged: .*(is empty|holds nothing).*Restore it from"):
            HybridIndex(path, read_only=read_only)
        assert files(path) == before

    def test_a_file_of_length_zero_alone_is_a_beginning(self, tmp_path):
        (tmp_path / "index.sqlite").touch()
        with HybridIndex(tmp_path) as index:
            index.add(["a"], embeddings=ROWS[:1])
            assert len(index) == 1


def opened_within(path, seconds):
    import signal

    signal.alarm(seconds)
    try:
        with HybridIndex(path) as index:
            index.search(ROWS[:1])
            index.add(["new"], embeddings=ROWS[:1])
            index.compact()
    except ValueError as err:
        return str(err)
    return None


class TestSomebodyElses:
    @pytest.mark.parametrize(
        "name", ["../../outside", "..", ".", "", "a/b", "/tmp", "0" * 31, "0" * 33, "\0", b"0" * 32, 5, None]
    )
    @pytest.mark.parametrize("has_catalog", [True, False])
    def test_names_of_segments(self, tmp_path, name, has_catalog):
        path = make(tmp_path / "index")
        outside = tmp_path / "outside"
        shutil.copytree(next((path / "segments").iterdir()), outside)
        before = files(outside)
        if not has_catalog:
            as_older_format(path)
        try:
            run(path, "UPDATE segments SET name = ?", name)
        except sqlite3.IntegrityError:  # NOT NULL holds for them as well
            return
        with pytest.raises(ValueError, match=r"the index .* is damaged"):
            HybridIndex(path)
        assert files(outside) == before

    @pytest.mark.parametrize(
        "text", ["", "[]", "5", '{"../x": [1, "a"]}', '{"keys.npy": [1, "a"]}', '{"keys.npy": 5}', "[" * 100_000]
    )
    def test_files_of_segments(self, tmp_path, text):
        path = as_older_format(make(tmp_path / "index"))
        run(path, "UPDATE segments SET files = ?", text)
        with pytest.raises(ValueError, match=r"the index .* is damaged: it names a segment"):
            HybridIndex(path)

    @pytest.mark.parametrize(
        "table", ["documents", "texts", "segments", "tombstones", "state", "catalog", "checksums"]
    )
    def test_views_in_place_of_tables(self, tmp_path, table):
        path = make(tmp_path / "index")
        run(path, f"ALTER TABLE {table} RENAME TO hidden")
        run(path, f"CREATE VIEW {table} AS SELECT * FROM hidden")
        with pytest.raises(ValueError, match="is damaged: its tables are not those of an index"):
            HybridIndex(path)

    @pytest.mark.parametrize(
        "statement",
        ["CREATE TRIGGER t AFTER DELETE ON documents BEGIN DELETE FROM texts; END", "CREATE VIEW v AS SELECT 1"],
    )
    def test_triggers_and_views_beside_tables(self, tmp_path, statement):
        path = make(tmp_path / "index")
        run(path, statement)
        with pytest.raises(ValueError, match="is damaged: it has a view or a trigger"):
            HybridIndex(path)

    @pytest.mark.parametrize("name", ["index.sqlite", "segments", "index.sqlite-wal", "index.sqlite-shm", "segment"])
    @pytest.mark.parametrize("read_only", [True, False])
    def test_symbolic_links(self, tmp_path, name, read_only):
        path = make(tmp_path / "index")
        place = next((path / "segments").iterdir()) if name == "segment" else path / name
        outside = tmp_path / "outside"
        if place.exists():
            place.rename(outside)
        else:
            outside.write_bytes(b"precious")
        place.symlink_to(outside)
        before = files(tmp_path)
        with pytest.raises(ValueError, match=r"is damaged: it must be a plain (file|directory), and is a link"):
            HybridIndex(path, read_only=read_only)
        assert files(tmp_path) == before

    @pytest.mark.parametrize("name", ["keys.npy", "terms.npy", "dense.npy"])
    @pytest.mark.parametrize("kind", ["link", "pipe"])
    def test_files_of_a_segment(self, tmp_path, name, kind):
        path = make(tmp_path / "index")
        (file,) = path.glob(f"segments/*/{name}")
        file.rename(tmp_path / name)
        file.symlink_to(tmp_path / name) if kind == "link" else os.mkfifo(file)
        assert "it must be a plain file, and is a link or something else" in in_process(opened_within, path, 20)

    @pytest.mark.parametrize("name", ["index.sqlite", "index.sqlite-wal", "index.sqlite-journal", "segments"])
    def test_pipes(self, tmp_path, name):
        path = make(tmp_path / "index")
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)
        assert "and is a link or something else" in in_process(opened_within, path, 20)

    @pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "directory"])
    def test_the_note_of_the_writer(self, tmp_path, kind):
        path = make(tmp_path / "index")
        outside = tmp_path / "outside"
        outside.write_bytes(b"precious")
        (path / "writer").unlink()
        make_note = {
            "link": lambda: (path / "writer").symlink_to(outside),
            "hard link": lambda: (path / "writer").hardlink_to(outside),
            "pipe": lambda: os.mkfifo(path / "writer"),
            "directory": lambda: (path / "writer").mkdir(),
        }
        make_note[kind]()
        assert in_process(opened_within, path, 20) is None
        assert outside.read_bytes() == b"precious"
        with HybridIndex(path) as index, index._store.write(), HybridIndex(path, timeout=0) as second:
            with pytest.raises(TimeoutError, match=r"is being written by (another writer|precious); waited 0"):
                second.delete(["b"])

    def test_a_journal_that_names_another_file(self, tmp_path):
        path = make(tmp_path / "index")
        (path / "index.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\0" * 600)
        with pytest.raises(ValueError, match=r"is damaged: index\.sqlite-journal must not be there"):
            HybridIndex(path)

    @pytest.mark.parametrize("what", ["name", "file", "database"])
    def test_copying_it(self, tmp_path, what):
        path = make(tmp_path / "index")
        if what == "name":
            run(path, "UPDATE segments SET name = '../../secret'")
        elif what == "file":
            (file,) = path.glob("segments/*/keys.npy")
            file.unlink()
            file.symlink_to("/etc/hostname")
        else:
            (path / "index.sqlite").rename(tmp_path / "outside")
            (path / "index.sqlite").symlink_to(tmp_path / "outside")
        with pytest.raises(ValueError, match="is damaged"):
            copy_index(path, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def as_older_format(path):
    """Make it what an earlier version wrote, which has no checksums of documents."""
    run(path, "DROP TABLE checksums")
    run(path, "DROP TABLE catalog")
    run(path, "PRAGMA user_version = 2")
    return path


class TestOtherFiles:
    def test_what_an_index_did_not_make_stays(self, tmp_path):
        path = make(tmp_path / "index")
        (path / "notes.txt").write_text("mine")
        (path / "segments" / "mine").mkdir()
        (path / "segments" / "mine" / "keys.npy").write_bytes(b"mine")
        (path / "segments" / "stray.npy").write_bytes(b"mine")
        with HybridIndex(path) as index:
            index.add(["d", "e", "f"], embeddings=ROWS[:3])
            index.compact()
        assert (path / "notes.txt").read_text() == "mine"
        assert (path / "segments" / "mine" / "keys.npy").read_bytes() == b"mine"
        assert (path / "segments" / "stray.npy").read_bytes() == b"mine"

    def test_a_file_that_somebody_put_into_a_segment_stays(self, tmp_path):
        path = make(tmp_path / "index")
        (segment,) = (path / "segments").iterdir()
        (segment / "notes.txt").write_text("mine")
        with HybridIndex(path) as index:
            index.compact()
        assert [file.name for file in segment.iterdir()] == ["notes.txt"]

    def test_the_copy_that_replaces_an_index_keeps_what_lies_beside_it(self, tmp_path):
        path, other = make(tmp_path / "index"), make(tmp_path / "other", "wxyz")
        (path / "notes.txt").write_text("mine")
        copy_index(other, path)
        assert (path / "notes.txt").read_text() == "mine"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["index", "other"]
        with HybridIndex(path) as index:
            assert len(index) == 3

    def test_another_database_is_not_replaced(self, tmp_path):
        (tmp_path / "target").mkdir()
        run(tmp_path / "target", "CREATE TABLE precious (x)")
        before = files(tmp_path)
        with pytest.raises(ValueError, match="with a database that is another's or damaged"):
            copy_index(make(tmp_path / "index"), tmp_path / "target")
        assert files(tmp_path / "target") == {"index.sqlite": before["target/index.sqlite"]}

    def test_a_source_that_is_none(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError):
            copy_index(tmp_path / "empty", tmp_path / "copy")
        assert list((tmp_path / "empty").iterdir()) == []
