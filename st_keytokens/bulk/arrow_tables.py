"""Sparse embeddings as Arrow tables of ``(id: string, indices: list<int32>, values: list<float32>)``, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from st_keytokens.optional import imported
from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.sparse_embeddings.sparse_rows import boundaries

COLUMNS = ("id", "indices", "values")
_READ = 1 << 20  # bytes of a column that are read at a time


def arrow_schema() -> Any:
    """The ``pyarrow.Schema`` of the contract.

    Raises:
        ImportError: If pyarrow is not installed.
    """
    arrow = imported("pyarrow")
    types = arrow.string(), arrow.list_(arrow.int32()), arrow.list_(arrow.float32())
    return arrow.schema(list(zip(COLUMNS, types, strict=True)))


def to_arrow(ids: Sequence[str], sparse: SparseEmbeddings) -> Any:
    """Sparse rows as a ``pyarrow.Table``.

    Args:
        ids: An id for each row.
        sparse: The rows.

    Returns:
        The table; its indices and values share the memory of ``sparse``.

    Raises:
        ImportError: If pyarrow is not installed.
        TypeError: If an id is not a string.
        ValueError: If ids and rows differ in number.
    """
    arrow = imported("pyarrow")
    if len(ids) != len(sparse):
        raise ValueError(f"ids must be one for each row, got {len(ids)} for {len(sparse)} rows.")
    for identifier in ids:
        if not isinstance(identifier, str):
            raise TypeError(f"ids must be strings, got {type(identifier).__name__} {identifier!r:.60}.")
    offsets = arrow.array(sparse.indptr.astype(np.int32))
    lists = (arrow.ListArray.from_arrays(offsets, arrow.array(part)) for part in (sparse.indices, sparse.values))
    return arrow.Table.from_arrays([arrow.array(ids, arrow.string()), *lists], schema=arrow_schema())


def from_arrow(batch: Any, vocab_size: int) -> tuple[list[str], SparseEmbeddings]:
    """Ids and sparse rows of a ``pyarrow`` table or record batch.

    Args:
        batch: With the columns of the contract; others are not looked at.
        vocab_size: Number of columns of the rows.

    Returns:
        The ids and as many rows.

    Raises:
        ValueError: If a column is missing, of another type or has nulls, or a row breaks a rule of
            :class:`SparseEmbeddings`.
    """
    check_columns(batch.schema)
    ids, indices, values = (_joined(batch.column(name)) for name in COLUMNS)
    nulls = [name for name, part in zip(COLUMNS, (ids, indices, values), strict=True) if part.null_count]
    if nulls:
        raise ValueError(f"{nulls[0]} must have no nulls, got {batch.column(nulls[0]).null_count}.")
    counts = indices.value_lengths().to_numpy()
    if not np.array_equal(counts, values.value_lengths().to_numpy()):
        raise ValueError("values must be as many as indices in every row, got other numbers.")
    terms, weights = (part.flatten().to_numpy(zero_copy_only=False) for part in (indices, values))
    return ids.to_pylist(), SparseEmbeddings(boundaries(counts), terms, weights, vocab_size)


def open_parquet(path: Path) -> Any:
    """A Parquet file as a ``pyarrow.parquet.ParquetFile`` whose columns are read piece by piece.

    By itself pyarrow holds all of a file's columns from the first batch on.

    Raises:
        ImportError: If pyarrow is not installed.
        pyarrow.ArrowException: If the file is damaged.
    """
    return imported("pyarrow.parquet").ParquetFile(path, pre_buffer=False, buffer_size=_READ)


def check_columns(schema: Any) -> None:
    """Check that a schema has the columns of the contract, whatever the items of its lists are called.

    Raises:
        ValueError: If a column is missing or of another type.
    """
    arrow = imported("pyarrow")
    for field in arrow_schema():
        found: Any = schema.field(field.name).type if field.name in schema.names else None
        is_list = found is not None and arrow.types.is_list(field.type) and arrow.types.is_list(found)
        if found != field.type and not (is_list and found.value_type == field.type.value_type):
            raise ValueError(
                f"column {field.name!r} must be {field.type}, got {'none' if found is None else found}. "
                "Cast it before it is written."
            )


def _joined(column: Any) -> Any:
    """A column as one array, sliced or not."""
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column
