"""Every bad input gets a documented error, and nothing is written."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import subprocess

import numpy as np
import pytest
from index_processes import CONTEXT, in_process
from index_samples import DIMENSION, VOCAB_SIZE, hybrid_rows, sparse_rows

from st_keytokens.index import HybridIndex
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def index(rng):
    with HybridIndex() as index:
        index.add(["a", "b"], ["text a", "text b"], embeddings=hybrid_rows(2, rng))
        yield index
        assert len(index) == 2
        index.verify()


@pytest.fixture
def path(tmp_path, rng):
    with HybridIndex(tmp_path / "index") as index:
        index.add(["a", "b"], ["text a", "text b"], embeddings=hybrid_rows(2, rng))
    return tmp_path / "index"


class TestAdding:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"ids": ["x", "y", "x"]}, ValueError, r"ids must be unique, got 'x' twice\. Nothing was added"),
            ({"ids": ["x", "a", "y"]}, ValueError, r"ids must be new, got 'a', which is there.*on_conflict='replace'"),
            ({"ids": ["x"]}, ValueError, r"ids must be as many as there are documents, 3, got 1"),
            ({"ids": ["x", 5, "y"]}, TypeError, r"ids must be strings, got int 5"),
            ({"ids": "xyz"}, TypeError, r"ids must be a list of strings, got str 'xyz'"),
            ({"ids": {"x", "y", "z"}}, TypeError, r"ids must be a list of strings, got set"),
            ({"texts": ["x"] * 4}, ValueError, r"texts must be as many as there are documents, 3, got 4"),
            ({"texts": ["x", None, "y"]}, TypeError, r"texts must be strings, got NoneType None"),
            ({"texts": b"xyz"}, TypeError, r"texts must be a list of strings, got bytes"),
            ({"metadata": [{}]}, ValueError, r"metadata must be as many as there are documents, 3, got 1"),
            ({"metadata": {"a": 1}}, TypeError, r"metadata must be a list with one dictionary per document, got dict"),
            ({"metadata": [{}, 5, {}]}, TypeError, r"metadata must be dictionaries, got int at position 1"),
            ({"metadata": [{}, {}, {"a": {1}}]}, TypeError, r"metadata must be a JSON object.*set.*\(position 2\)"),
            ({"metadata": [{}, {}, {"a": float("nan")}]}, ValueError, r"metadata must be a JSON object.*position 2"),
            ({"metadata": [{}, {}, {"a": (1, 2)}]}, TypeError, r"reads back unchanged.*lists instead of tuples"),
            ({"metadata": [{}, {}, {1: 2}]}, TypeError, r"reads back unchanged.*Use strings as keys"),
            (
                {"metadata": [{}, {}, {"a": "\ud800"}]},
                ValueError,
                r"metadata must be valid Unicode, got '\\ud800' \(position 2\)",
            ),
            (
                {"metadata": [{}, {}, {"a": ["b\0"]}]},
                ValueError,
                r"metadata must not contain NUL characters \(position 2\)",
            ),
            ({"on_conflict": "ignore"}, ValueError, r"on_conflict must be one of 'error', 'replace', got 'ignore'"),
        ],
    )
    def test_bad_arguments(self, index, rng, arguments, error, message):
        with pytest.raises(error, match=message):
            index.add(**{"embeddings": hybrid_rows(3, rng), **arguments})

    def test_a_self_containing_metadata(self, index, rng):
        entry = {}
        entry["self"] = entry
        with pytest.raises(ValueError, match=r"metadata must be nested at most 100 deep \(position 0\)"):
            index.add(embeddings=hybrid_rows(1, rng), metadata=[entry])

    def test_a_backslash_u0000_that_is_no_nul_is_fine(self, rng):
        with HybridIndex() as index:
            index.add(["a"], embeddings=sparse_rows(1, rng), metadata=[{"a": "\\u0000"}])
            assert index.get(["a"])[0].metadata == {"a": "\\u0000"}

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
    def test_dense_values(self, index, rng, value):
        rows = hybrid_rows(3, rng)
        rows.dense[2, 1] = value
        with pytest.raises(
            ValueError, match=r"embeddings must have finite values and squared norms in float32, but row 2"
        ):
            index.add(embeddings=rows)

    @pytest.mark.parametrize("width", [0, 3, 5])
    def test_dense_dimension(self, index, rng, width):
        rows = HybridEmbeddings(np.ones((3, width), np.float32), sparse_rows(3, rng))
        with pytest.raises(
            ValueError, match=rf"embeddings must have dense rows of dimension {DIMENSION}, got {width}"
        ):
            index.add(embeddings=rows)

    def test_dense_rows_missing_or_not_wanted(self, index, rng):
        with pytest.raises(ValueError, match=rf"embeddings must have dense rows of dimension {DIMENSION}, got 0"):
            index.add(embeddings=sparse_rows(3, rng))
        with HybridIndex() as sparse:
            sparse.add(embeddings=sparse_rows(1, rng))
            with pytest.raises(ValueError, match=r"embeddings must have dense rows of dimension 0, got 4 \(0 stands"):
                sparse.add(embeddings=hybrid_rows(3, rng))

    def test_no_dimension_at_all(self, rng):
        with HybridIndex() as empty, pytest.raises(ValueError, match=r"embeddings must have dense rows of dimension"):
            empty.add(embeddings=HybridEmbeddings(np.ones((1, 0), np.float32), sparse_rows(1, rng)))

    def test_vocabulary(self, index):
        with pytest.raises(
            ValueError, match=rf"embeddings must have vocab_size {VOCAB_SIZE}, as the index has, got 41"
        ):
            index.add(embeddings=HybridEmbeddings(np.ones((1, DIMENSION), np.float32), SparseEmbeddings.empty(1, 41)))

    def test_something_else(self, index):
        with pytest.raises(TypeError, match=r"embeddings must be HybridEmbeddings or SparseEmbeddings, got ndarray"):
            index.add(embeddings=np.ones((1, 4)))
        with pytest.raises(ValueError, match="texts or embeddings must be given, got neither"):
            index.add(["x"])


class TestAsking:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"top_k": 0}, ValueError, r"top_k must be >= 1, got 0"),
            ({"top_k": -3}, ValueError, r"top_k must be >= 1, got -3"),
            ({"top_k": 2.0}, TypeError, r"top_k must be an integer, got float 2\.0"),
            ({"top_k": "2"}, TypeError, r"top_k must be an integer, got str '2'"),
            ({"top_k": True}, TypeError, r"top_k must be an integer, got bool True"),
            ({"top_k": None}, TypeError, r"top_k must be an integer, got NoneType None"),
            ({"depth": 0}, ValueError, r"depth must be >= 1, got 0"),
            ({"mode": "both"}, ValueError, r"mode must be one of 'hybrid', 'sparse', 'dense', got 'both'"),
            (
                {"fusion": "max"},
                ValueError,
                r"fusion must be one of 'adaptive', 'score', 'rrf' or a function",
            ),
            (
                {"weights": {"bm25": 1.0}},
                ValueError,
                r"weights must name rankings among \['dense', 'sparse'\], got 'bm25'",
            ),
            ({"weights": {"dense": -1.0}}, ValueError, r"weights must be finite and >= 0, got -1\.0 for 'dense'"),
        ],
    )
    def test_bad_arguments(self, index, rng, arguments, error, message):
        with pytest.raises(error, match=message):
            index.search(hybrid_rows(1, rng), **arguments)

    def test_top_k_above_the_corpus_gives_all(self, index, rng):
        assert len(index.search(hybrid_rows(1, rng), mode="dense", top_k=10**9)[0]) == 2
        assert len(index.search(hybrid_rows(1, rng), top_k=np.int64(7))[0]) == 2

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
    def test_dense_values(self, index, value):
        query = HybridEmbeddings(np.full((1, DIMENSION), value, np.float32), SparseEmbeddings.empty(1, VOCAB_SIZE))
        with pytest.raises(
            ValueError, match=r"queries must have finite values and squared norms in float32, but row 0"
        ):
            index.search(query, mode="dense")

    def test_dense_dimension_and_vocabulary(self, index, rng):
        query = HybridEmbeddings(np.ones((1, 3), np.float32), sparse_rows(1, rng))
        with pytest.raises(ValueError, match=rf"queries must have dense rows of dimension {DIMENSION}, got 3"):
            index.search(query)
        assert index.search(query, mode="sparse") == index.search(query.sparse, mode="sparse")
        with pytest.raises(ValueError, match=rf"queries must have dense rows of dimension {DIMENSION}, got 0"):
            index.search(query.sparse, mode="dense")
        with pytest.raises(ValueError, match=rf"queries must have vocab_size {VOCAB_SIZE}, as the index has, got 39"):
            index.search(SparseEmbeddings.empty(1, 39))
        with pytest.raises(ValueError, match=rf"query must have vocab_size {VOCAB_SIZE}"):
            index.explain(SparseEmbeddings.empty(1, 39), "a")

    @pytest.mark.parametrize("mode", ["dense", "hybrid"])
    def test_dense_search_of_a_sparse_index(self, rng, mode):
        with HybridIndex() as sparse:
            sparse.add(embeddings=sparse_rows(2, rng))
            with pytest.raises(ValueError, match=r"queries must have dense rows"):
                sparse.search(sparse_rows(1, rng), mode=mode)
            with pytest.raises(ValueError, match=r"queries must have dense rows of dimension 0, got 4"):
                sparse.search(hybrid_rows(1, rng), mode=mode)

    def test_something_else(self, index):
        with pytest.raises(TypeError, match=r"queries must be a list of strings, got int 5"):
            index.search(5)
        with pytest.raises(TypeError, match=r"queries must be strings, got int 5"):
            index.search([5])
        with pytest.raises(TypeError, match=r"ids must be a list of strings, got str 'ab'"):
            index.get("ab")
        with pytest.raises(TypeError, match=r"ids must be a list of strings, got str 'ab'"):
            index.delete("ab")
        with pytest.raises(TypeError, match=r"ids must be strings, got int 1"):
            index.delete([1])
        assert 1 not in index


class TestSettings:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"vocab_size": 0}, ValueError, r"vocab_size must be >= 1, got 0"),
            ({"vocab_size": "9"}, TypeError, r"vocab_size must be an integer, got str '9'"),
            ({"embedding_dimension": -1}, ValueError, r"embedding_dimension must be >= 0, got -1"),
            ({"similarity": "euclidean"}, ValueError, r"similarity must be one of 'cosine', 'dot', got 'euclidean'"),
            ({"dense_dtype": "int8"}, ValueError, r"dense_dtype must be one of 'float32', 'float16', got 'int8'"),
            ({"kernel": "cuda"}, ValueError, r"kernel must be one of 'auto', 'numba', 'torch', 'scipy', got 'cuda'"),
            ({"timeout": -1.0}, ValueError, r"timeout must be finite and >= 0.*, got -1\.0"),
            ({"timeout": "1"}, TypeError, r"timeout must be a number, got str '1'"),
        ],
    )
    def test_bad_settings_make_no_index(self, tmp_path, arguments, error, message):
        with pytest.raises(error, match=message):
            HybridIndex(tmp_path / "index", **arguments)
        assert not (tmp_path / "index").exists()

    @pytest.mark.parametrize(
        ("name", "saved", "given"),
        [
            ("vocab_size", VOCAB_SIZE, 41),
            ("embedding_dimension", DIMENSION, 5),
            ("similarity", "cosine", "dot"),
            ("dense_dtype", "float32", "float16"),
        ],
    )
    def test_other_settings_than_saved(self, path, name, saved, given):
        with pytest.raises(ValueError, match=rf"{name} must be {saved!r}, which the index .* has, got {given!r}"):
            HybridIndex(path, **{name: given})
        HybridIndex(path, **{name: saved}).close()


class TestPath:
    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(NotADirectoryError, match=r"path must be a directory, got the file .*file"):
            HybridIndex(tmp_path / "file")

    def test_a_missing_parent(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"path must be in an existing directory, got .*Make its parent"):
            HybridIndex(tmp_path / "missing" / "index")

    def test_a_directory_with_something_else(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(ValueError, match=r"path must be an index or an empty directory, got .* with other files"):
            HybridIndex(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]

    def test_an_empty_directory_becomes_an_index(self, tmp_path):
        HybridIndex(tmp_path).close()
        HybridIndex(tmp_path, read_only=True).close()

    def test_nothing_to_read(self, tmp_path):
        for path in (tmp_path, tmp_path / "missing"):
            with pytest.raises(FileNotFoundError, match=r"path must be an index to be read, got .*which holds none"):
                HybridIndex(path, read_only=True)
        assert list(tmp_path.iterdir()) == []

    def test_a_temporary_index_cannot_be_read_only(self):
        with pytest.raises(ValueError, match=r"path must be an index to be read, got None\. Leave out read_only"):
            HybridIndex(read_only=True)

    @pytest.mark.parametrize("read_only", [True, False])
    def test_another_database(self, tmp_path, read_only):
        connection = sqlite3.connect(tmp_path / "index.sqlite")
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
        connection.close()
        before = (tmp_path / "index.sqlite").read_bytes()
        with pytest.raises(ValueError, match=r"path must be an index of st-keytokens, got .* with another database"):
            HybridIndex(tmp_path, read_only=read_only)
        assert (tmp_path / "index.sqlite").read_bytes() == before

    @pytest.mark.parametrize("read_only", [True, False])
    def test_a_database_that_is_none(self, tmp_path, read_only):
        (tmp_path / "index.sqlite").write_bytes(b"no database" * 1000)
        with pytest.raises(ValueError, match=r"the index .* is damaged: file is not a database"):
            HybridIndex(tmp_path, read_only=read_only)

    def test_another_format(self, path):
        connection = sqlite3.connect(path / "index.sqlite")
        connection.execute("PRAGMA user_version = 7")
        connection.close()
        with pytest.raises(ValueError, match=r"the index .* has format 7, but this version reads 2"):
            HybridIndex(path)

    def test_characters_that_mean_something_in_a_uri(self, tmp_path, rng):
        path = tmp_path / "a b?mode=ro#x%20é"
        with HybridIndex(path) as index:
            index.add(["a"], embeddings=sparse_rows(1, rng))
        with HybridIndex(str(path), read_only=True) as index:
            assert "a" in index

    def test_use_after_close(self, path, rng):
        index = HybridIndex(path)
        index.close()
        uses = [
            lambda: len(index),
            lambda: "a" in index,
            lambda: index.get(["a"]),
            lambda: index.search(hybrid_rows(1, rng)),
            lambda: index.add(embeddings=hybrid_rows(1, rng)),
            lambda: index.delete(["a"]),
            index.compact,
            index.verify,
        ]
        for use in uses:
            with pytest.raises(ValueError, match=r"the index .* is closed\. Open it again"):
                use()
        index.close()


class TestDamage:
    NAMES = ("keys", "terms", "indptr", "gaps", "weights", "dense", "norms")

    @pytest.mark.parametrize("name", NAMES)
    def test_a_truncated_file(self, path, name):
        (file,) = path.glob(f"segments/*/{name}.npy")
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ValueError, match=rf"{name}\.npy is damaged: it must have \d+ bytes and has \d+.*Restore"):
            HybridIndex(path)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_missing_file(self, path, name):
        (file,) = path.glob(f"segments/*/{name}.npy")
        file.unlink()
        with pytest.raises(ValueError, match=rf"the index .* is damaged: .*{name}\.npy is missing"):
            HybridIndex(path)

    @pytest.mark.parametrize("name", NAMES)
    def test_an_altered_file(self, path, name):
        (file,) = path.glob(f"segments/*/{name}.npy")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.npy is damaged"), HybridIndex(path) as index:
            index.verify()

    @pytest.mark.parametrize("name", ["keys", "weights", "dense"])
    def test_an_altered_file_is_not_merged(self, path, name, rng):
        (file,) = path.glob(f"segments/*/{name}.npy")
        content = file.read_bytes()
        with HybridIndex(path) as index:
            index.delete(["a"])
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            for merge in (index.compact, lambda: index.add(["c", "d"], embeddings=hybrid_rows(2, rng))):
                with pytest.raises(ValueError, match=rf"{name}\.npy is damaged: its SHA-256 must be"):
                    merge()
            file.write_bytes(content)
            index.verify()
            assert ("b" in index, "c" in index, len(index)) == (True, False, 1)

    def test_an_altered_header(self, path):
        (file,) = path.glob("segments/*/weights.npy")
        file.write_bytes(b"x" * file.stat().st_size)
        with pytest.raises(ValueError, match=r"weights\.npy is damaged: .*Restore the index from a copy"):
            HybridIndex(path)

    @pytest.mark.parametrize(
        "alter", [lambda array: array.view(np.int32), lambda array: array[:-1], lambda array: array[None]]
    )
    def test_a_header_of_another_form(self, path, alter):
        (file,) = path.glob("segments/*/weights.npy")
        size = file.stat().st_size
        np.save(file, alter(np.load(file)))
        file.write_bytes(file.read_bytes().ljust(size, b"\0"))
        with pytest.raises(ValueError, match=r"(weights|indptr)\.npy is damaged: it must (hold|rise)"):
            HybridIndex(path)

    def test_altered_boundaries_do_not_reach_the_kernel(self, path):
        (file,) = path.glob("segments/*/indptr.npy")
        content = bytearray(file.read_bytes())
        content[-16 + 6] = 0x7F  # the last but one boundary, far beyond the postings
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"indptr\.npy is damaged: it must rise from 0 to \d+"):
            HybridIndex(path)

    def test_an_altered_database(self, path):
        content = bytearray((path / "index.sqlite").read_bytes())
        content[4096 : 3 * 4096] = b"\xff" * (2 * 4096)
        (path / "index.sqlite").write_bytes(content)
        with pytest.raises(ValueError, match=r"the index .* is damaged"):
            HybridIndex(path)

    def test_documents_that_are_not_those_of_the_segments(self, path):
        connection = sqlite3.connect(path / "index.sqlite")
        connection.execute("DELETE FROM documents WHERE key = 0")
        connection.commit()
        connection.close()
        with (
            HybridIndex(path) as index,
            pytest.raises(ValueError, match=r"its documents are not those of its segments"),
        ):
            index.verify()


def ask_read_only_directory(path):
    """As an ordinary user, for whom the directory is not writable."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    with HybridIndex(path, read_only=True) as index:
        found = (len(index), index.get(["a"])[0].text, len(index.search(hybrid_rows(1, np.random.default_rng(0)))[0]))
        try:
            index.delete(["a"])
        except PermissionError as err:
            found += (str(err),)
    try:
        HybridIndex(path)
    except PermissionError as err:
        return (*found, str(err))
    return found


def count_when_asked(path, connection):
    """As an ordinary user."""
    os.setgid(65534)
    os.setuid(65534)
    rows = hybrid_rows(1, np.random.default_rng(0))
    with HybridIndex(path, read_only=True) as index:
        while connection.recv():
            connection.send((len(index), len(index.search(rows, mode="dense")[0])))


def delete_and_stay_open(path, deleted, release):
    """Leave the write-ahead log beside the file."""
    with HybridIndex(path) as index:
        index.delete(["b"])
        deleted.set()
        release.wait(60)


class TestReadOnly:
    @pytest.mark.parametrize("has_log", [False, True])
    def test_a_directory_that_cannot_be_written(self, tmp_path, path, has_log):
        deleted, release = CONTEXT.Event(), CONTEXT.Event()
        holder = CONTEXT.Process(target=delete_and_stay_open, args=(path, deleted, release))
        if has_log:
            holder.start()
            assert deleted.wait(60)
        for directory in [path, *path.rglob("*/")]:
            directory.chmod(0o555)
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o755)
        try:
            num_documents, text, num_hits, *messages = in_process(ask_read_only_directory, path)
        finally:
            for directory in [path, *path.rglob("*/")]:
                directory.chmod(0o755)
        assert (num_documents, text, num_hits) == ((1, "text a", 1) if has_log else (2, "text a", 2))
        assert "was opened with read_only=True. Open it without" in messages[0]
        assert "path must be writable" in messages[1]
        assert "Open it with read_only=True" in messages[1]
        if has_log:
            release.set()
            holder.join()

    @pytest.mark.skipif(os.getuid() != 0, reason="needs a user who may write and one who may not")
    def test_commits_of_a_user_who_may_write_are_seen(self, tmp_path, path, rng):
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o755)
        receiver, sender = CONTEXT.Pipe()
        process = CONTEXT.Process(target=count_when_asked, args=(path, sender))
        process.start()
        counts = []

        def ask():
            receiver.send(True)
            assert receiver.poll(60)
            counts.append(receiver.recv())

        ask()  # nobody has the index open for writing
        with HybridIndex(path) as index:
            index.add(["c"], embeddings=hybrid_rows(1, rng))
            ask()
            index.add(["d"], embeddings=hybrid_rows(1, rng))
            index.compact()
            ask()
        ask()
        with HybridIndex(path) as index:
            index.delete(["a"])
        ask()
        receiver.send(False)
        process.join()
        assert counts == [(2, 2), (3, 3), (4, 4), (4, 4), (3, 3)]

    def test_writing_is_refused(self, path, rng):
        with HybridIndex(path, read_only=True) as index:
            for write in (
                lambda: index.add(embeddings=hybrid_rows(1, rng)),
                lambda: index.delete(["a"]),
                index.compact,
            ):
                with pytest.raises(
                    PermissionError, match=r"the index .* was opened with read_only=True\. Open it without"
                ):
                    write()


def fill(path, limit):
    """Add until a file may not grow further, then tell what failed and what is there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    rng, added = np.random.default_rng(1), 0
    with HybridIndex(path) as index:
        try:
            while True:
                index.add([f"new {added}"], ["x" * 20_000], embeddings=hybrid_rows(1, rng))
                added += 1
        except OSError as err:
            return added, len(index), index.search(hybrid_rows(1, rng), mode="dense", top_k=10**6)[0][0].text, str(err)


def fill_disk(path):
    """Add until the disk is full, then delete and add again."""
    rng, added, errors = np.random.default_rng(1), 0, []
    with HybridIndex(path) as index:
        for write in ("add", "compact", "add"):
            try:
                while write == "add":
                    index.add([f"{len(errors)} {added}"], ["x" * 20_000], embeddings=hybrid_rows(50, rng)[:1])
                    added += 1
                index.compact()
            except OSError as err:
                errors.append((err.errno, str(err)))
        index.verify()
        found = len(index), len(index.search(hybrid_rows(1, rng), mode="dense", top_k=10**6)[0])
    with HybridIndex(path, read_only=True) as index:
        return added, found, len(index), errors


class TestFullDisk:
    @pytest.mark.parametrize("limit", [60_000, 200_000])
    def test_a_file_that_may_not_grow(self, path, limit):
        added, num_documents, text, message = in_process(fill, path, limit)
        assert num_documents == 2 + added
        assert text.startswith(("text", "x"))
        assert "the index" in message or str(path) in message
        with HybridIndex(path) as index:
            assert len(index) == 2 + added
            assert [document.text for document in index.get(["a", "b"])] == ["text a", "text b"]
            index.verify()
            index.add(["more"], embeddings=hybrid_rows(1, np.random.default_rng(0)))

    def test_a_full_file_system(self, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = shutil.which("mount")
        if (
            not mount
            or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode
        ):
            pytest.skip("a file system cannot be mounted here; a file that may not grow is tested above")
        try:
            with HybridIndex(disk / "index") as index:
                index.add(["a"], ["text a"], embeddings=hybrid_rows(1, np.random.default_rng(0)))
            added, found, num_read, errors = in_process(fill_disk, disk / "index")
            assert added > 5
            assert found == (1 + added, 1 + added)
            assert num_read == 1 + added
            assert len(errors) >= 2
            for number, message in errors:
                assert number in (errno.ENOSPC, None)
                assert "othing was changed" in message
            with HybridIndex(disk / "index") as index:
                assert index.get(["a"])[0].text == "text a"
                subprocess.run([mount, "-o", "remount,size=4m", disk], check=True)
                assert index.delete([f"0 {number}" for number in range(3)]) == 3
                index.add(["b"], embeddings=hybrid_rows(1, np.random.default_rng(0)))
                assert len(index) == 1 + added - 3 + 1
                index.verify()
        finally:
            subprocess.run(["umount", disk], check=True)


class TestEmbeddingsOfNothing:
    def test_rows_without_terms(self):
        with HybridIndex() as index:
            index.add(["a", "b"], embeddings=SparseEmbeddings.empty(2, 9))
            index.add(["c"], embeddings=SparseEmbeddings.from_dicts([{3: 1.0}], 9))
            assert index.search(SparseEmbeddings.empty(1, 9)) == [[]]
            assert [hit.id for hit in index.search(SparseEmbeddings.from_dicts([{3: 1.0}], 9))[0]] == ["c"]
            index.delete(["c"])
            index.compact()
            index.verify()
            assert len(index) == 2

    def test_a_dense_row_of_zeros(self):
        rows = HybridEmbeddings(np.float32([[0, 0], [1, 0], [-1, 0]]), SparseEmbeddings.empty(3, 9))
        with HybridIndex() as index:
            index.add(["zero", "plus", "minus"], embeddings=rows)
            (hits,) = index.search(rows[1], mode="dense")
            assert [(hit.id, hit.score) for hit in hits] == [("plus", 1.0), ("zero", 0.0), ("minus", -1.0)]
            assert [hit.score for hit in index.search(rows[0], mode="dense")[0]] == [0.0, 0.0, 0.0]
