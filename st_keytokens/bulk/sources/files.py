"""Embeddings in files: numpy, safetensors, Parquet, Arrow IPC, and FAISS indexes that give their vectors back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.spawn import get_executable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from st_keytokens.bulk.shards import arrow_errors, arrow_items, open_parquet
from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch
from st_keytokens.shared.checks import checked_int
from st_keytokens.shared.files import parse_json, read_npy
from st_keytokens.shared.imports import imported

PARQUET, IPC = (".parquet",), (".arrow", ".feather", ".ipc")
_IPC = "Arrow IPC file"


class NpySource:
    """The matrix of a ``.npy`` file, memory-mapped."""

    has_ids = False

    def __init__(self, path: str) -> None:
        self.name = path
        if zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} must be a .npy file, got an .npz archive. Save the array itself with numpy.save."
            )
        array = read_npy(Path(path))
        _check_matrix(path, array.shape, array.dtype, np.issubdtype(array.dtype, np.floating))
        self._array: NDArray[Any] = array
        self.rows = len(array)
        self.identity: dict[str, Any] = {"kind": "npy", "shape": list(array.shape)}

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """A position is a row."""
        for start in range(row_of(position, self.rows), self.rows, batch_size):
            with np.errstate(over="ignore", invalid="ignore"):  # as in _matrix
                part = np.array(self._array[start : start + batch_size], dtype=np.float32)
            yield EmbeddingBatch(None, part, start + len(part))


class SafetensorsSource:
    """A matrix of a ``.safetensors`` file, in any floating-point type, read slice by slice."""

    has_ids = False

    def __init__(self, path: str, *, vector_column: str | None = None) -> None:
        self.name = path
        try:
            opened: Any = safe_open(path, framework="pt")
        except (SafetensorError, ValueError) as err:
            raise ValueError(f"{path} must be a whole safetensors file, got an error: {err}.") from err
        self._file = opened
        names = sorted(opened.keys())
        if vector_column not in names and (vector_column is not None or len(names) != 1):
            got = "more than one" if vector_column is None else repr(vector_column)
            raise ValueError(f"vector_column must be one of the tensors {', '.join(names)} of {path}, got {got}.")
        self._tensor = names[0] if vector_column is None else vector_column
        part = opened.get_slice(self._tensor)
        shape, dtype = part.get_shape(), part.get_dtype()
        _check_matrix(path, tuple(shape), dtype, dtype in ("F64", "F32", "F16", "BF16"))
        self.rows: int = shape[0]
        self.identity: dict[str, Any] = {"kind": "safetensors", "tensor": self._tensor, "shape": list(shape)}

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """A position is a row."""
        part = self._file.get_slice(self._tensor)
        for start in range(row_of(position, self.rows), self.rows, batch_size):
            rows = part[start : start + batch_size].float().numpy()
            yield EmbeddingBatch(None, rows, start + len(rows))


def row_of(position: Any, rows: int) -> int:
    """The row that a position stands for, where positions are rows."""
    return 0 if position is None else checked_int("position", position, minimum=0, maximum=rows)


def _check_matrix(name: str, shape: tuple[int, ...], dtype: Any, is_floating: bool) -> None:
    if len(shape) != 2 or not is_floating:
        raise ValueError(f"{name} must hold a matrix of floats, one row a text, got {dtype} of shape {shape}.")


class ArrowColumns:
    """The columns of ids, vectors and maybe texts of a table that pyarrow reads; ``names`` in this order."""

    def __init__(self, id_column: str, vector_column: str, text_column: str | None) -> None:
        self.names = [id_column, vector_column, *([] if text_column is None else [text_column])]

    def check(self, place: str, names: list[str]) -> None:
        """Raises ValueError if a table with these columns lacks one."""
        if lacking := [name for name in self.names if name not in names]:
            raise ValueError(
                f"{place} must have the column {lacking[0]!r}, got {', '.join(names)}. Name the columns: "
                "id_column, vector_column, text_column."
            )

    def batch(self, part: Any, place: str, position: Any) -> EmbeddingBatch:
        """The rows of a record batch."""
        with arrow_errors(place, "Arrow table"):
            part.validate(full=True)  # what a damaged file says may lie outside of it
        ids, vectors, *texts = (part.column(name) for name in self.names)
        text_list = _strings(texts[0], place) if texts else None
        return EmbeddingBatch(_strings(ids, place), _matrix(vectors, place), position, text_list)


def _matrix(column: Any, place: str) -> NDArray[np.float32]:
    """A column of lists, large lists or fixed-size lists of floats as a matrix."""
    types, kind = imported("pyarrow").types, column.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not types.is_floating(kind.value_type):
        raise ValueError(
            f"{place} must hold vectors as lists of floats, got {kind}. Name their column: vector_column."
        )
    flat = column.flatten()
    width = len(flat) // max(1, len(column))
    lengths = None if types.is_fixed_size_list(kind) else column.value_lengths()
    is_even = lengths is None or bool((lengths.to_numpy(zero_copy_only=False) == width).all())
    if column.null_count or flat.null_count or not is_even:
        raise ValueError(
            f"{place} must have a vector of one width in every row, got another. Leave out the rows without one."
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is refused where it is decoded
        return np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float32).reshape(len(column), width)


def _strings(column: Any, place: str) -> list[str]:
    """A column of strings or numbers as strings."""
    if column.null_count:
        raise ValueError(f"{place} must have no nulls among ids and texts, got {column.null_count}.")
    return [str(value) for value in column.to_pylist()]


class ArrowSource:
    """Columns of a Parquet or Arrow IPC file, or of a directory of them in the order of their names."""

    has_ids = True

    def __init__(
        self, path: str, *, id_column: str = "id", vector_column: str = "embedding", text_column: str | None = None
    ) -> None:
        self.name, place = path, Path(path)
        self._columns = ArrowColumns(id_column, vector_column, text_column)
        files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.suffix in (*PARQUET, *IPC))
        if not files:
            raise FileNotFoundError(f"{path} must hold {', '.join((*PARQUET, *IPC))} files, got none.")
        self._files = [(_ParquetFile if file.suffix in PARQUET else _IPCFile)(file) for file in files]
        for file in self._files:
            self._columns.check(str(file.path), file.names)
        self.rows = sum(file.rows for file in self._files)
        self.identity: dict[str, Any] = {
            "kind": "arrow",
            "columns": self._columns.names,
            "files": [[file.path.name, file.rows] for file in self._files],
        }

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """A position is a row."""
        row = start = row_of(position, self.rows)
        first = 0
        for file in self._files:
            skipped, first = max(0, start - first), first + file.rows
            if skipped >= file.rows:
                continue
            for part in file.batches(self._columns.names, batch_size, skipped):
                row += part.num_rows
                yield self._columns.batch(part, str(file.path), row)


class _ParquetFile:
    """A Parquet file, whose row groups are passed over without being read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with arrow_errors(path):
            metadata = imported("pyarrow.parquet").read_metadata(path)
            self.names, self.rows = metadata.schema.to_arrow_schema().names, metadata.num_rows
            self._groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if min((0, *self._groups)) < 0 or sum(self._groups) != self.rows:
            raise ValueError(f"{path} must have the {self.rows} rows that it says, got {self._groups!s:.60}.")

    def batches(self, columns: list[str], batch_size: int, skipped: int) -> Iterator[Any]:
        group = 0
        while group < len(self._groups) and skipped >= self._groups[group]:
            skipped, group = skipped - self._groups[group], group + 1
        with open_parquet(self.path) as file:
            groups = list(range(group, len(self._groups)))
            left = sum(self._groups[group:])
            for part in arrow_items(self.path, file.iter_batches(batch_size, row_groups=groups, columns=columns)):
                left -= part.num_rows
                passed = min(skipped, part.num_rows)
                skipped -= passed
                if passed < part.num_rows:
                    yield part.slice(passed)
        if left:
            raise ValueError(f"{self.path} must have the {self.rows} rows that it says, got {self.rows - left}.")


class _IPCFile:
    """An Arrow IPC file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with arrow_errors(path, _IPC), self._open() as file:
            self.names = file.schema.names
            self._counts = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
        self.rows = sum(self._counts)

    def batches(self, columns: list[str], batch_size: int, skipped: int) -> Iterator[Any]:
        with self._open() as file:
            for number, count in enumerate(self._counts):
                passed = min(skipped, count)
                skipped -= passed
                if passed < count:
                    with arrow_errors(self.path, _IPC):
                        part = file.get_batch(number).select(columns)
                    for start in range(passed, count, batch_size):
                        yield part.slice(start, batch_size)

    def _open(self) -> Any:
        with arrow_errors(self.path, _IPC):
            return imported("pyarrow.ipc").open_file(imported("pyarrow").memory_map(str(self.path)))


class FaissSource:
    """A saved FAISS index, memory-mapped where FAISS can do so, in another process, which damage may end.

    Vectors come out as the index holds them: those of a quantised one (PQ, SQ, PCA) are close to what went in. Ids are
    those of ``add_with_ids``, else numbers. An inverted file is read list by list.
    """

    def __init__(self, path: Path) -> None:
        if find_spec("faiss") is None:
            imported("faiss", "faiss-cpu")
        self.name = str(path)
        self._path = os.path.abspath(path)
        with open(self._path, "rb"):  # what cannot be read is an error of its own
            pass
        self._process: _FaissProcess | None = _FaissProcess(self._path, self.name)
        self._described = self._process.description
        self.rows: int = self._described["rows"]
        self.has_ids: bool = self._described["has_ids"]
        self.identity: dict[str, Any] = {"kind": "faiss", "type": self._described["type"], "rows": self.rows}

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """A position is a row."""
        row = row_of(position, self.rows)
        process, self._process = self._process or _FaissProcess(self._path, self.name), None
        try:
            if process.description != self._described:
                raise ValueError(f"{self.name} must stay as it is while it is read, got another index. Open it again.")
            process.order({"row": row, "batch_size": batch_size})
            while row < self.rows:
                ids, rows = process.batch(min(batch_size, self.rows - row))
                row += len(rows)
                yield EmbeddingBatch(None if ids is None else list(map(str, ids.tolist())), rows, row)
        finally:
            process.end()


class _FaissProcess:
    """A process that reads an index: some damaged files end a process within FAISS, which then is not this one."""

    def __init__(self, path: str, name: str) -> None:
        self._name = name
        self._errors: Any = TemporaryFile()  # closed by end()
        self._process = subprocess.Popen(
            [get_executable(), str(Path(__file__).with_name("faiss_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self.end = weakref.finalize(self, _end, self._process, self._errors)
        try:
            paths = [part or os.getcwd() for part in sys.path if isinstance(part, str)]
            self.order({"sys_path": paths, "path": path, "name": name})
            self.description = self._answer()
        except BaseException:
            self.end()
            raise

    def order(self, what: dict[str, Any]) -> None:
        """Sends an order; that the process is gone is told by its answer."""
        stdin: Any = self._process.stdin
        with suppress(BrokenPipeError):
            stdin.write(json.dumps(what).encode() + b"\n")
            stdin.flush()

    def batch(self, most: int) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
        """The next rows, and their ids where there are any."""
        size, dimension = self._answer()["rows"], self.description["dimension"]
        if not 0 < size <= most:
            raise self._refusal(f"{size} rows in place of {most}")
        ids = np.frombuffer(self._bytes(8 * size), np.int64) if self.description["has_ids"] else None
        return ids, np.frombuffer(self._bytes(4 * size * dimension), np.float32).reshape(size, dimension)

    def _answer(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line.endswith(b"\n"):
            raise self._refusal(self._ending())
        answer = parse_json(line, f"what FAISS said of {self._name}")
        if "refusal" in answer:
            raise ValueError(answer["refusal"])
        if "fault" in answer:
            raise self._refusal(answer["fault"])
        return answer

    def _bytes(self, count: int) -> bytearray:
        content = bytearray(count)
        if self._stdout.readinto(content) != count:
            raise self._refusal(self._ending())
        return content

    @property
    def _stdout(self) -> Any:
        return self._process.stdout

    def _ending(self) -> str:
        """How the process ended, and what it said last."""
        code = self._process.wait()
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"code {code}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        return f"one that ends FAISS by {how}" + (f": {said:.200}" if said else "")

    def _refusal(self, got: str) -> ValueError:
        return ValueError(f"{self._name} must be a FAISS index, got {got}. Save it again.")


def _end(process: subprocess.Popen[bytes], errors: Any) -> None:
    """Ends a process, whatever it is at, and closes all that leads to it."""
    process.kill()
    streams: list[Any] = [process.stdin, process.stdout, errors]
    for stream in streams:
        with suppress(OSError):
            stream.close()
    process.wait()
