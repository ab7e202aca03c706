"""FAISS indexes: vectors are taken back out of flat, HNSW, inverted-file and quantised ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch
from st_keytokens.optional import imported


class FaissSource:
    """A saved FAISS index, memory-mapped where FAISS can do so.

    Vectors come out as the index holds them: those of a quantised one (PQ, SQ, PCA) are close to what went in. Ids are
    those of ``add_with_ids``, else numbers. An inverted file is read list by list.

    Args:
        path: The file.

    Raises:
        ImportError: If faiss is not installed.
        ValueError: If the file is no index, or one that cannot give its vectors back.
    """

    def __init__(self, path: Path) -> None:
        faiss = imported("faiss", "faiss-cpu")
        self.name = str(path)
        flags = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)
        try:
            self._index: Any = faiss.read_index(self.name, flags)
        except RuntimeError as err:
            raise ValueError(f"{path} must be a FAISS index, got an error: {_first_line(err)}") from err
        self._ids: NDArray[np.int64] | None = None
        if hasattr(self._index, "id_map"):
            self._ids = faiss.vector_to_array(self._index.id_map)
            self._outer, self._index = self._index, faiss.downcast_index(self._index.index)
        self._lists: Any = faiss.try_extract_index_ivf(self._index)
        self.has_ids = self._ids is not None or self._lists is not None
        self.rows: int = self._index.ntotal
        self.identity: dict[str, Any] = {"kind": "faiss", "type": type(self._index).__name__, "rows": self.rows}
        self._faiss = faiss

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """See :class:`~st_keytokens.bulk.sources.embedding_source.EmbeddingSource`; a position is a row."""
        row = position or 0
        parts = self._by_number(row, batch_size) if self._lists is None else self._by_list(row, batch_size)
        for ids, rows in parts:
            row += len(rows)
            names = ids if self._ids is None else self._ids[ids]
            yield EmbeddingBatch(list(map(str, names.tolist())) if self.has_ids else None, rows, row)

    def _by_number(self, start: int, batch_size: int) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        for first in range(start, self.rows, batch_size):
            count = min(batch_size, self.rows - first)
            try:
                rows = self._index.reconstruct_n(first, count)
            except RuntimeError as err:
                raise ValueError(
                    f"{self.name} must give its vectors back, but {type(self._index).__name__} cannot: "
                    f"{_first_line(err)}"
                ) from err
            yield np.arange(first, first + count), rows

    def _by_list(self, start: int, batch_size: int) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        faiss, lists = self._faiss, self._lists.invlists
        for number in range(lists.nlist):
            size = lists.list_size(number)
            first, start = min(start, size), max(0, start - size)
            if first == size:
                continue
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
            for begin in range(first, size, batch_size):
                rows = np.empty((min(batch_size, size - begin), self._lists.d), dtype=np.float32)
                for i, row in enumerate(rows):
                    self._lists.reconstruct_from_offset(number, begin + i, faiss.swig_ptr(row))
                yield ids[begin : begin + len(rows)], self._original(rows)

    def _original(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows as they were before a transform that the index begins with, as far as it can be reversed."""
        if not hasattr(self._index, "reverse_chain"):
            return rows
        original = np.empty((len(rows), self._index.d), dtype=np.float32)
        self._index.reverse_chain(len(rows), self._faiss.swig_ptr(rows), self._faiss.swig_ptr(original))
        return original


def _first_line(err: RuntimeError) -> str:
    return str(err).strip().partition("\n")[0]
