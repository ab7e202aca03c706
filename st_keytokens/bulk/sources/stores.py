"""Collections of Qdrant: a server, or a directory that the client in this process opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch, row_matrix
from st_keytokens.bulk.sources.files import strings, vector_matrix
from st_keytokens.imports import imported


class LanceDBSource:
    """Columns of ids, vectors and maybe texts of a table, in the version that it has when it is opened.

    Args:
        location: Directory or URI of the database.
        table: The table's name.
        id_column: Of strings or integers.
        vector_column: Of lists of floats.
        text_column: Of strings. None: no texts are read.

    Raises:
        ImportError: If lancedb is not installed.
        ValueError: If there is no such table or column.
    """

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
        self._columns = [id_column, vector_column, *([] if text_column is None else [text_column])]
        names = self._table.schema.names
        if lacking := [name for name in self._columns if name not in names]:
            raise ValueError(
                f"{self.name} must have the column {lacking[0]!r}, got {', '.join(names)}. Name the columns: "
                "id_column, vector_column, text_column."
            )
        self.rows: int = self._table.count_rows()
        self.identity: dict[str, Any] = {
            "kind": "lancedb",
            "table": table,
            "version": self._table.version,
            "columns": self._columns,
        }

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """See :class:`~st_keytokens.bulk.sources.embedding_source.EmbeddingSource`; a position is a row."""
        row = position or 0
        query = self._table.search().select(self._columns).offset(row).limit(max(1, self.rows - row))
        for part in query.to_batches(batch_size=batch_size):
            for start in range(0, part.num_rows, batch_size):
                rows = part.slice(start, batch_size)
                ids, vectors, *texts = (rows.column(name) for name in self._columns)
                row += rows.num_rows
                text_list = strings(texts[0], self.name) if texts else None
                yield EmbeddingBatch(strings(ids, self.name), vector_matrix(vectors, self.name), row, text_list)


_HEADER = 4  # bytes before the floats of vector_send: width and a reserved number


class PgvectorSource:
    """Columns of ids, vectors and maybe texts of a table or view, read in the order of the ids.

    Every batch is a query of its own, ``WHERE id > last ORDER BY id LIMIT n``, so that no transaction stays open; the
    ids must be unique and should be indexed. Rows without a vector are left out.

    Args:
        url: Of the database, ``postgresql://user:password@host:port/database``, or another connection string.
        table: Its name, with the schema before it where there is one: ``public.chunks``.
        id_column: Of any type with an order.
        vector_column: Of ``vector`` or ``halfvec``.
        text_column: Of strings. None: no texts are read.

    Raises:
        ImportError: If psycopg is not installed.
        ValueError: If the database cannot be reached, or has no such columns.
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
        """See :class:`~st_keytokens.bulk.sources.embedding_source.EmbeddingSource`; a position is an id."""
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
                vectors = row_matrix([np.frombuffer(row[1], ">f4", offset=_HEADER) for row in rows], self.name)
                texts = ["" if row[2] is None else str(row[2]) for row in rows] if self._has_texts else None
                yield EmbeddingBatch([row[0] for row in rows], vectors, position, texts)

    def _connect(self) -> Any:
        return self._psycopg.connect(self._url, autocommit=True)

    def _refusal(self, err: Exception) -> ValueError:
        return ValueError(f"{self.name} must be there and readable, got an error: {' '.join(str(err).split())}")


class QdrantSource:
    """The points of a collection, scrolled through in the order of their ids.

    Collections with cosine distance hold vectors of length 1, which decode alike where the head normalises.

    Args:
        location: URL of a server, or the directory of a client in local mode.
        collection: Its name.
        vector_name: Of a named vector. None: the one that has no name.
        id_field: Field of the payload that has the ids. None: the points' own.
        text_field: Field of the payload that has the texts. None: no texts are read.
        options: More for ``QdrantClient``, such as ``api_key``, ``timeout``.

    Raises:
        ImportError: If qdrant-client is not installed.
        ValueError: If there is no such collection.
    """

    has_ids = True

    def __init__(
        self,
        location: str,
        collection: str,
        *,
        vector_name: str | None = None,
        id_field: str | None = None,
        text_field: str | None = None,
        **options: Any,
    ) -> None:
        client = imported("qdrant_client", "qdrant-client").QdrantClient
        where = {"path": location} if Path(location).is_dir() else {"url": location}
        self._client: Any = client(**where, **options)
        self.name = f"collection {collection!r}"
        if not self._client.collection_exists(collection):
            names = ", ".join(found.name for found in self._client.get_collections().collections)
            raise ValueError(f"table must be one of the collections {names or '(none)'}, got {collection!r}.")
        self._collection, self._vector, self._id, self._text = collection, vector_name, id_field, text_field
        self.rows: int = self._client.count(collection, exact=True).count
        self.identity: dict[str, Any] = {"kind": "qdrant", "collection": collection, "vector": vector_name}
        self.identity |= {"id": id_field, "text": text_field}

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """See :class:`~st_keytokens.bulk.sources.embedding_source.EmbeddingSource`; a position is the next point."""
        fields = [field for field in (self._id, self._text) if field is not None]
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
                vectors = row_matrix([self._vector_of(point) for point in points], self.name)
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
