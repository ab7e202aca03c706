"""Tables of LanceDB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from st_keytokens.bulk.sources.arrow_files import strings, vector_matrix
from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch
from st_keytokens.optional import imported


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
