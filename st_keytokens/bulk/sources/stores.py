"""Embeddings in databases: tables of LanceDB and of PostgreSQL with pgvector, collections of Qdrant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch
from st_keytokens.bulk.sources.files import ArrowColumns, row_of
from st_keytokens.shared.imports import imported

_ADVICE = "Leave out the rows without one."
_READ_AHEAD = 16  # batches that a query asks for
_HEADER = 4  # bytes before the floats of pgvector's vector_send: width and a reserved number


class LanceDBSource:
    """Columns of a table, in the version that it has when it is opened."""

    has_ids = True

    def __init__(
        self,
        location: str,
        table: str,
        *,
        id_column: str = "id",
        vector_column: str = "vector",
        text_column: str | None = None,
    ) -> None:
        lancedb = imported("lancedb", "lancedb")
        self.name = f"table {table}"
        try:
            self._table: Any = lancedb.connect(location).open_table(table)
        except (ValueError, FileNotFoundError, RuntimeError) as err:
            raise ValueError(f"table must be one of LanceDB at {location}, got {table!r}: {err}") from err
        self._columns = ArrowColumns(id_column, vector_column, text_column)
        self._columns.check(self.name, self._table.schema.names)
        self.rows: int = self._table.count_rows()
        self.identity: dict[str, Any] = {
            "kind": "lancedb",
            "table": table,
            "version": self._table.version,
            "columns": self._columns.names,
        }

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """A position is a row."""
        row = row_of(position, self.rows)
        window = _READ_AHEAD * batch_size
        for first in range(row, self.rows, window):  # LanceDB reads ahead all that a query asks for
            query = self._table.search().select(self._columns.names).offset(first).limit(window)
            for part in query.to_batches(batch_size=batch_size):
                for start in range(0, part.num_rows, batch_size):
                    rows = part.slice(start, batch_size)
                    row += rows.num_rows
                    yield self._columns.batch(rows, self.name, row)


class PgvectorSource:
    """Columns of a table or view, ``schema.table`` or ``table``, read in the order of the ids.

    Every batch is a query of its own, ``WHERE id > last ORDER BY id LIMIT n``, so that no transaction stays open; the
    ids must be unique and should be indexed. Rows without a vector are left out.
    """

    has_ids = True

    def __init__(
        self,
        url: str,
        table: str,
        *,
        id_column: str = "id",
        vector_column: str = "embedding",
        text_column: str | None = None,
    ) -> None:
        self._psycopg, sql = imported("psycopg", '"psycopg[binary]"'), imported("psycopg.sql", '"psycopg[binary]"')
        self._url = url
        self.name = f"table {table}"
        columns = [id_column, vector_column, *([] if text_column is None else [text_column])]
        self.identity: dict[str, Any] = {"kind": "pgvector", "table": table, "columns": columns}
        names = {"table": sql.Identifier(*table.split(".")), "id": sql.Identifier("source", id_column)}
        names["vector"] = sql.Identifier("source", vector_column)
        names["text"] = sql.SQL("NULL") if text_column is None else sql.Identifier("source", text_column)
        self._has_texts = text_column is not None
        # with the table's name before it, ORDER BY takes the column, and not its text, which sorts otherwise
        select = "SELECT {id}::text, vector_send({vector}::vector), {text} FROM {table} AS source "
        select += "WHERE {vector} IS NOT NULL "
        order = "ORDER BY {id} LIMIT %s"
        self._first = sql.SQL(select + order).format(**names)
        self._next = sql.SQL(select + "AND {id} > %s " + order).format(**names)
        count = sql.SQL("SELECT count({vector}) FROM {table} AS source").format(**names)
        try:
            with closing(self._connect()) as connection:
                self.rows: int = connection.execute(count).fetchone()[0]
                connection.execute(self._first, [0])
        except self._psycopg.Error as err:
            raise self._refusal(err) from err

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """A position is an id."""
        with closing(self._connect()) as connection:
            while True:
                query, values = (self._first, []) if position is None else (self._next, [position])
                try:
                    rows = connection.execute(query, [*values, batch_size]).fetchall()
                except self._psycopg.Error as err:
                    raise self._refusal(err) from err
                if not rows:
                    return
                position = rows[-1][0]
                vectors = _matrix([np.frombuffer(row[1], ">f4", offset=_HEADER) for row in rows], self.name)
                texts = ["" if row[2] is None else str(row[2]) for row in rows] if self._has_texts else None
                yield EmbeddingBatch([row[0] for row in rows], vectors, position, texts)

    def _connect(self) -> Any:
        return self._psycopg.connect(self._url, autocommit=True)

    def _refusal(self, err: Exception) -> ValueError:
        return ValueError(f"{self.name} must be there and readable, got an error: {' '.join(str(err).split())}")


class QdrantSource:
    """The points of a collection, of a server or of a directory in local mode, in the order of their ids.

    Collections with cosine distance hold vectors of length 1, which decode alike where the head normalises.
    """

    has_ids = True

    def __init__(
        self,
        location: str,
        table: str,
        *,
        id_column: str | None = None,
        vector_column: str | None = None,
        text_column: str | None = None,
    ) -> None:
        client = imported("qdrant_client", "qdrant-client").QdrantClient
        where = {"path": location} if Path(location).is_dir() else {"url": location}
        self._client: Any = client(**where)
        self.name = f"collection {table!r}"
        if not self._client.collection_exists(table):
            names = ", ".join(found.name for found in self._client.get_collections().collections)
            raise ValueError(f"table must be one of the collections {names or '(none)'}, got {table!r}.")
        self._collection, self._vector, self._id, self._text = table, vector_column, id_column, text_column
        self.rows: int = self._client.count(table, exact=True).count
        self.identity: dict[str, Any] = {"kind": "qdrant", "collection": table, "vector": vector_column}
        self.identity |= {"id": id_column, "text": text_column}

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """A position is the next point."""
        fields = [field for field in (self._id, self._text) if field is not None]
        if position is not None and not (isinstance(position, dict) and "next" in position):
            raise ValueError(f"position must be one that this source gave, got {position!r:.60}.")
        offset = None if position is None else position["next"]
        while position is None or offset is not None:
            points, offset = self._client.scroll(
                self._collection,
                limit=batch_size,
                offset=offset,
                with_payload=fields or False,
                with_vectors=True if self._vector is None else [self._vector],
            )
            position = {"next": offset}
            if points:
                vectors = _matrix([self._vector_of(point) for point in points], self.name)
                ids = [str(point.id if self._id is None else self._field(point, self._id)) for point in points]
                texts = None if self._text is None else [str(self._field(point, self._text)) for point in points]
                yield EmbeddingBatch(ids, vectors, position, texts)

    def _vector_of(self, point: Any) -> Any:
        vector = point.vector if self._vector is None else (point.vector or {}).get(self._vector)
        if isinstance(vector, dict):
            raise ValueError(
                f"vector_column must be one of the vectors {', '.join(vector)} of {self.name}, got none. Name one."
            )
        if vector is None:
            raise ValueError(
                f"{self.name} must have the vector {self._vector!r} in every point, got none in {point.id}."
            )
        return vector

    def _field(self, point: Any, name: str) -> Any:
        if name not in (point.payload or {}):
            raise ValueError(f"{self.name} must have {name!r} in every payload, got none in point {point.id}.")
        return point.payload[name]


def _matrix(rows: list[Any], place: str) -> NDArray[np.float32]:
    """Vectors of one width as a matrix."""
    try:
        matrix = np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError) as err:
        raise ValueError(f"{place} must have a vector of one width in every row, got another. {_ADVICE}") from err
    if matrix.ndim != 2:
        raise ValueError(f"{place} must have a vector of one width in every row, got none in some. {_ADVICE}")
    return matrix
