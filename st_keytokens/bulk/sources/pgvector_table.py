"""Tables of PostgreSQL with a column of pgvector's ``vector`` or ``halfvec``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch, row_matrix
from st_keytokens.optional import imported

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
