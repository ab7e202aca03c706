"""Postings in SQLite and DuckDB, as scale.py asks them: plain tables, and the SQL that a user would write."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scale_tasks import LABELS, TOP_K, Found, Where, labels_of, text_of

from st_keytokens.sparse_embeddings import SparseEmbeddings

PIECE = 100_000  # documents given to DuckDB at a time


class Postings:
    """A table of terms, documents and weights, and one of documents: the SQL that a user would write."""

    def _connection(self) -> Any:
        raise NotImplementedError

    def prepare(self, query: SparseEmbeddings) -> Any:
        terms, weights = query.row(0)
        pairs = [value for pair in zip(terms.tolist(), weights.tolist(), strict=True) for value in pair]
        return ", ".join(["(?, ?)"] * len(terms)), pairs

    def search(self, query: Any, where: Where) -> Found:
        values, parameters = query
        condition = "" if where is None else f"WHERE p.doc IN (SELECT id FROM documents WHERE {where[0]} = ?)"
        statement = f"""
            WITH query(term, weight) AS (VALUES {values}), best AS (
                SELECT p.doc, SUM(p.weight * query.weight) AS score
                FROM query JOIN postings p ON p.term = query.term {condition}
                GROUP BY p.doc ORDER BY score DESC LIMIT {TOP_K})
            SELECT d.id, best.score, d.text FROM best JOIN documents d ON d.id = best.doc ORDER BY best.score DESC"""
        rows = self._connection().execute(statement, parameters if where is None else [*parameters, where[1]])
        return [(number, score) for number, score, _ in rows.fetchall()]


def sorted_postings(documents: SparseEmbeddings, first: int) -> Iterator[tuple[NDArray[Any], ...]]:
    """Term, document and weight, by term and document, in pieces."""
    columns = documents.to_scipy().tocsc()
    terms = np.repeat(np.arange(documents.vocab_size, dtype=np.int32), np.diff(columns.indptr))
    for start in range(0, len(terms), 1 << 20):
        place = slice(start, start + (1 << 20))
        yield terms[place], columns.indices[place] + first, columns.data[place]


def document_rows(numbers: range) -> Iterator[tuple[Any, ...]]:
    return ((number, text_of(number), *labels_of(number).values()) for number in numbers)


class SQLitePostings(Postings):
    """Postings in the order of their primary key, and nothing else; labels are indexed."""

    def __init__(self, path: Path) -> None:
        self.file, self._local = path / "postings.sqlite", threading.local()

    def load(self, documents: SparseEmbeddings) -> None:
        with sqlite3.connect(self.file, isolation_level=None) as connection:
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            columns = ", ".join(f"{name} INTEGER" for name in LABELS)
            connection.execute(f"CREATE TABLE documents (id INTEGER PRIMARY KEY, text TEXT, {columns})")
            key = "PRIMARY KEY (term, doc)) WITHOUT ROWID"
            connection.execute(f"CREATE TABLE postings (term INTEGER, doc INTEGER, weight REAL, {key}")
            self._insert(connection, documents, 0)
            for name in LABELS:
                connection.execute(f"CREATE INDEX documents_{name} ON documents ({name})")
            connection.execute("ANALYZE documents")
        connection.close()

    def open(self) -> None:
        self._connection().execute("PRAGMA journal_mode = WAL")

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = sqlite3.connect(self.file, isolation_level=None)
            connection.execute("PRAGMA cache_size = -65536")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA mmap_size = {1 << 33}")
        return connection

    def _insert(self, connection: sqlite3.Connection, documents: SparseEmbeddings, first: int) -> None:
        connection.execute("BEGIN")
        numbers = range(first, first + len(documents))
        connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", document_rows(numbers))
        for piece in sorted_postings(documents, first):
            rows = zip(*(column.tolist() for column in piece), strict=True)
            connection.executemany("INSERT INTO postings VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")

    def add(self, documents: SparseEmbeddings, first: int) -> None:
        self._insert(self._connection(), documents, first)

    def delete(self, numbers: list[int]) -> None:
        connection = self._connection()
        connection.execute("BEGIN")
        listed = f"({', '.join(map(str, numbers))})"
        connection.execute(f"DELETE FROM postings WHERE doc IN {listed}")
        connection.execute(f"DELETE FROM documents WHERE id IN {listed}")
        connection.execute("COMMIT")

    def compact(self) -> None:
        self._connection().execute("VACUUM")


class DuckDBPostings(Postings):
    """Postings sorted by term, so that DuckDB passes over blocks without a query's terms; its joins use no index."""

    def __init__(self, path: Path) -> None:
        self.file, self._local = path / "postings.duckdb", threading.local()

    def _connect(self) -> None:
        import duckdb

        self._database = duckdb.connect(str(self.file), config={"threads": 1, "memory_limit": "4GB"})

    def load(self, documents: SparseEmbeddings) -> None:
        self._connect()
        columns = ", ".join(f"{name} INTEGER" for name in LABELS)
        self._database.execute(f"CREATE TABLE documents (id INTEGER, text VARCHAR, {columns})")
        self._database.execute("CREATE TABLE postings (term INTEGER, doc INTEGER, weight FLOAT)")
        self.add(documents, 0)
        self._database.close()

    def open(self) -> None:
        self._connect()

    def _connection(self) -> Any:
        if not hasattr(self._local, "cursor"):
            self._local.cursor = self._database.cursor()
        return self._local.cursor

    def add(self, documents: SparseEmbeddings, first: int) -> None:
        import pyarrow as pa

        names = ("id", "text", *LABELS)
        connection = self._connection()
        connection.execute("BEGIN")
        for start in range(first, first + len(documents), PIECE):
            numbers = range(start, min(start + PIECE, first + len(documents)))
            columns = [list(column) for column in zip(*document_rows(numbers), strict=True)]
            connection.register("piece", pa.table(dict(zip(names, columns, strict=True))))
            connection.execute("INSERT INTO documents SELECT * FROM piece")
        for terms, numbers_of, weights in sorted_postings(documents, first):
            connection.register("piece", pa.table({"term": terms, "doc": numbers_of, "weight": weights}))
            connection.execute("INSERT INTO postings SELECT * FROM piece")
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")

    def delete(self, numbers: list[int]) -> None:
        connection, listed = self._connection(), f"({', '.join(map(str, numbers))})"
        connection.execute("BEGIN")
        connection.execute(f"DELETE FROM postings WHERE doc IN {listed}")
        connection.execute(f"DELETE FROM documents WHERE id IN {listed}")
        connection.execute("COMMIT")

    def compact(self) -> None:
        self._connection().execute("CHECKPOINT")
