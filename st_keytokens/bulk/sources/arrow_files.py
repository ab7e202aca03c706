"""Tables in files: Parquet and Arrow IPC (also called Feather), one file or a directory of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_keytokens.bulk.arrow_tables import open_parquet
from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch
from st_keytokens.optional import imported

PARQUET, IPC = (".parquet",), (".arrow", ".feather", ".ipc")


class ArrowSource:
    """Columns of ids, vectors and maybe texts in Parquet or Arrow IPC files, read batch by batch.

    Args:
        path: A file, or a directory with ``.parquet``, ``.arrow``, ``.feather`` or ``.ipc`` files, read by name.
        id_column: Of strings or integers.
        vector_column: Of lists, or fixed-size lists, of floats.
        text_column: Of strings. None: no texts are read.

    Raises:
        FileNotFoundError: If a directory holds no such file.
        ImportError: If pyarrow is not installed.
        ValueError: If a file is damaged, or has no such columns.
    """

    has_ids = True

    def __init__(
        self, path: Path, *, id_column: str = "id", vector_column: str = "embedding", text_column: str | None = None
    ) -> None:
        self.name = str(path)
        self._columns = [id_column, vector_column, *([] if text_column is None else [text_column])]
        files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in (*PARQUET, *IPC))
        if not files:
            raise FileNotFoundError(f"{path} must hold {', '.join((*PARQUET, *IPC))} files, got none.")
        self._files = [(_ParquetFile if file.suffix in PARQUET else _IPCFile)(file) for file in files]
        for file in self._files:
            if lacking := [name for name in self._columns if name not in file.names]:
                raise ValueError(
                    f"{file.path} must have the column {lacking[0]!r}, got {', '.join(file.names)}. Name the columns: "
                    "id_column, vector_column, text_column."
                )
        self.rows = sum(file.rows for file in self._files)
        self.identity: dict[str, Any] = {
            "kind": "arrow",
            "columns": self._columns,
            "files": [[file.path.name, file.rows] for file in self._files],
        }

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """See :class:`~st_keytokens.bulk.sources.embedding_source.EmbeddingSource`; a position is a row."""
        row = start = position or 0
        first = 0
        for file in self._files:
            skipped, first = max(0, start - first), first + file.rows
            if skipped >= file.rows:
                continue
            for part in file.batches(self._columns, batch_size, skipped):
                row += part.num_rows
                ids, vectors, *texts = (part.column(name) for name in self._columns)
                yield EmbeddingBatch(
                    strings(ids, str(file.path)),
                    vector_matrix(vectors, str(file.path)),
                    row,
                    strings(texts[0], str(file.path)) if texts else None,
                )


class _ParquetFile:
    """A Parquet file, whose row groups are passed over without being read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        parquet = imported("pyarrow.parquet")
        try:
            metadata = parquet.read_metadata(path)
        except imported("pyarrow").ArrowException as err:
            raise ValueError(f"{path} must be a whole Parquet file, got an error: {err}.") from err
        self.names, self.rows = metadata.schema.to_arrow_schema().names, metadata.num_rows
        self._groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def batches(self, columns: list[str], batch_size: int, skipped: int) -> Iterator[Any]:
        group = 0
        while group < len(self._groups) and skipped >= self._groups[group]:
            skipped, group = skipped - self._groups[group], group + 1
        with open_parquet(self.path) as file:
            groups = list(range(group, len(self._groups)))
            for part in file.iter_batches(batch_size, row_groups=groups, columns=columns):
                passed = min(skipped, part.num_rows)
                skipped -= passed
                if passed < part.num_rows:
                    yield part.slice(passed)


class _IPCFile:
    """An Arrow IPC file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self.names = file.schema.names
            self._counts = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
        self.rows = sum(self._counts)

    def batches(self, columns: list[str], batch_size: int, skipped: int) -> Iterator[Any]:
        with self._open() as file:
            for number, count in enumerate(self._counts):
                passed = min(skipped, count)
                skipped -= passed
                if passed < count:
                    part = file.get_batch(number).select(columns)
                    for start in range(passed, count, batch_size):
                        yield part.slice(start, batch_size)

    def _open(self) -> Any:
        arrow, ipc = imported("pyarrow"), imported("pyarrow.ipc")
        try:
            return ipc.open_file(arrow.memory_map(str(self.path)))
        except arrow.ArrowException as err:
            raise ValueError(f"{self.path} must be a whole Arrow IPC file, got an error: {err}.") from err


def vector_matrix(column: Any, place: str) -> NDArray[np.float32]:
    """A column of lists of floats as a matrix.

    Args:
        column: A ``pyarrow`` array of lists, large lists or fixed-size lists.
        place: What errors call its table.

    Returns:
        float32 ``(rows, width)``.

    Raises:
        ValueError: If it is no such column, has nulls, or lists of several lengths.
    """
    types = imported("pyarrow").types
    kind = column.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not types.is_floating(kind.value_type):
        raise ValueError(
            f"{place} must hold vectors as lists of floats, got {kind}. Name their column: vector_column."
        )
    flat = column.flatten()
    width = len(flat) // max(1, len(column))
    lengths = column.value_lengths() if not types.is_fixed_size_list(kind) else None
    is_even = lengths is None or bool((lengths.to_numpy(zero_copy_only=False) == width).all())
    if column.null_count or flat.null_count or not is_even:
        raise ValueError(
            f"{place} must have a vector of one width in every row, got another. Leave out the rows without one."
        )
    return np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float32).reshape(len(column), width)


def strings(column: Any, place: str) -> list[str]:
    """A column of strings or numbers as strings.

    Args:
        column: A ``pyarrow`` array.
        place: What errors call its table.

    Raises:
        ValueError: If there are nulls.
    """
    values = column.to_pylist()
    if column.null_count:
        raise ValueError(f"{place} must have no nulls among ids and texts, got {column.null_count}.")
    return [value if isinstance(value, str) else str(value) for value in values]
