"""Segments: immutable directories of ``.npy`` files that are opened by mmap, and how they are written and merged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import scipy.sparse

from st_keytokens.index.directory import check_regular
from st_keytokens.index.segment_columns import SegmentColumns
from st_keytokens.shared.files import read_npy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.index.columns import Column
    from st_keytokens.sparse_embeddings import SparseEmbeddings

__all__ = [
    "MAX_MERGED_ROWS",
    "SEGMENT_FILES",
    "Postings",
    "Segment",
    "segment_files_of",
    "sync_directory",
    "verify_segment",
    "write_segment",
]


_LARGEST_GAP = 65_535
_BLOCK_BYTES = 1 << 24
BLOCK = 256  # rows whose best score is found together; a score buffer is a whole number of blocks


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Dense embeddings of consecutive rows.

    Attributes:
        rows: As they were given, float32 or float16, shape ``(num_rows, embedding_dimension)``.
        norms: Their Euclidean norms, 1 for a row of zeros, float32, shape ``(num_rows,)``.
    """

    rows: NDArray[Any]
    norms: NDArray[np.float32]

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Consecutive blocks in float32, each with its place."""
        step = max(1, _BLOCK_BYTES // (4 * max(1, self.rows.shape[1])))
        for start in range(0, len(self.rows), step):
            block = self.rows[start : start + step].astype(np.float32, copy=False)
            yield slice(start, start + len(block)), block


@dataclass(frozen=True, eq=False)
class Postings:
    """Sparse embeddings by term, for the terms that occur.

    A posting holds how many rows further it is than the one before it, as 16 bits. A greater distance is covered in
    steps of 65,535 by postings of weight 0, which add nothing to a score.

    Attributes:
        num_rows: Number of rows that the postings are about.
        terms: Term ids, ascending, int32, shape ``(num_terms,)``.
        indptr: Boundaries, int64, shape ``(num_terms + 1,)``: term ``t`` has the postings ``indptr[t]:indptr[t + 1]``.
        gaps: Distance of each posting's row from that of the one before it, from row 0 for the first of a term,
            uint16, shape ``(num_postings,)``.
        weights: Weight of each posting, float32, same shape.
    """

    num_rows: int
    terms: NDArray[np.int32]
    indptr: NDArray[np.int64]
    gaps: NDArray[np.uint16]
    weights: NDArray[np.float32]

    @classmethod
    def from_sparse(cls, embeddings: SparseEmbeddings) -> Postings:
        """Turn rows of terms into terms of rows.

        >>> from st_keytokens.sparse_embeddings import SparseEmbeddings
        >>> rows = SparseEmbeddings.from_dicts([{}, {7: 0.5}, {}, {2: 1.0, 7: 2.0}], vocab_size=9)
        >>> postings = Postings.from_sparse(rows)
        >>> [array.tolist() for array in (postings.terms, postings.indptr, postings.gaps, postings.weights)]
        [[2, 7], [0, 1, 3], [3, 1, 2], [1.0, 0.5, 2.0]]
        """
        terms, places = np.unique(embeddings.indices, return_inverse=True)
        parts = (embeddings.values, places, embeddings.indptr)
        columns = scipy.sparse.csr_matrix(parts, shape=(len(embeddings), len(terms))).tocsc()
        return cls._made(len(embeddings), terms, columns)

    @classmethod
    def _made(cls, num_rows: int, terms: NDArray[Any], compressed: Any) -> Postings:
        """Keep the terms that have postings, in the dtypes of the format, and turn their rows into gaps."""
        is_used = np.diff(compressed.indptr) > 0
        indptr = np.append(compressed.indptr[:-1][is_used], compressed.indptr[-1]).astype(np.int64)
        rows, weights = compressed.indices, compressed.data
        distances = np.diff(rows, prepend=rows[:1])
        distances[indptr[:-1]] = rows[indptr[:-1]]
        is_far = np.flatnonzero(distances > _LARGEST_GAP)
        num_steps = (distances[is_far] - 1) // _LARGEST_GAP
        distances[is_far] -= num_steps * _LARGEST_GAP
        gaps = distances.astype(np.uint16)
        if len(is_far):
            steps = np.repeat(is_far, num_steps)
            gaps, weights = np.insert(gaps, steps, _LARGEST_GAP), np.insert(weights, steps, 0)
            indptr += np.searchsorted(steps, indptr)
        return cls(num_rows, terms[is_used].astype(np.int32), indptr, gaps, weights)

    @classmethod
    def merged(cls, parts: Sequence[Postings]) -> Postings:
        """Put the rows of several postings under one another."""
        terms = np.unique(np.concatenate([part.terms for part in parts]))
        widened = []
        for part in parts:
            indptr, rows, weights = part.unpacked()
            counts = np.zeros(len(terms) + 1, np.int64)
            counts[1 + np.searchsorted(terms, part.terms)] = np.diff(indptr)
            arrays = (weights, rows, np.cumsum(counts))
            widened.append(scipy.sparse.csr_matrix(arrays, shape=(len(terms), part.num_rows)))
        return cls._made(sum(part.num_rows for part in parts), terms, scipy.sparse.hstack(widened, format="csr"))

    def kept(self, is_kept: NDArray[np.bool_]) -> Postings:
        """Keep some rows, given as a mask, and number them anew."""
        indptr, rows, weights = self.unpacked()
        has_posting = is_kept[rows]
        numbers = np.cumsum(is_kept, dtype=np.int32) - 1
        arrays = (weights[has_posting], numbers[rows[has_posting]], _boundaries(has_posting, indptr))
        num_rows = int(np.count_nonzero(is_kept))
        return self._made(num_rows, self.terms, scipy.sparse.csr_matrix(arrays, shape=(len(self.terms), num_rows)))

    def unpacked(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """Boundaries, row and weight of each posting, without those of weight 0."""
        ends = np.cumsum(self.gaps, dtype=np.uint32)  # modulo 2 ** 32, as is the difference
        before = np.append(ends[:1] - ends[:1], ends)[self.indptr[:-1]]
        rows = (ends - np.repeat(before, np.diff(self.indptr))).view(np.int32)
        is_posting = self.weights > 0
        if is_posting.all():
            return self.indptr, rows, self.weights
        return _boundaries(is_posting, self.indptr), rows[is_posting], self.weights[is_posting]

    def shared(
        self, terms: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Positions among these terms of those that occur here, and their weights."""
        positions = np.searchsorted(self.terms, terms)
        is_shared = positions < len(self.terms)
        is_shared[is_shared] = self.terms[positions[is_shared]] == terms[is_shared]
        return positions[is_shared], weights[is_shared]

    def of_term(self, position: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows, ascending, and weights of the term at a position, with those of weight 0."""
        span = slice(self.indptr[position], self.indptr[position + 1])
        return np.cumsum(self.gaps[span], dtype=np.int64), self.weights[span]

    def weight(self, term: int | np.int32, row: int) -> float:
        """Weight of a term in a row; 0 where the row does not hold it."""
        position = int(np.searchsorted(self.terms, term))
        if position == len(self.terms) or self.terms[position] != term:
            return 0.0
        rows, weights = self.of_term(position)
        place = int(np.searchsorted(rows, row))
        return float(weights[place]) if place < len(rows) and rows[place] == row else 0.0

    @cached_property
    def matrix(self) -> Any:
        """A scipy CSR matrix of shape ``(num_terms, num_rows)``, in memory.

        Raises:
            ValueError: If a posting names a row that does not exist.
        """
        indptr, rows, weights = self.unpacked()
        matrix = scipy.sparse.csr_matrix((weights, rows, indptr), shape=(len(self.terms), self.num_rows))
        matrix.check_format(full_check=True)
        return matrix


def _boundaries(is_kept: NDArray[np.bool_], indptr: NDArray[np.int64]) -> NDArray[np.int64]:
    """Boundaries between the kept ones."""
    num_before = np.zeros(len(is_kept) + 1, np.int64)
    np.cumsum(is_kept, out=num_before[1:])
    return num_before[indptr]


MAX_MERGED_ROWS = 1 << 20  # bounds the memory and the time of one merge
Files = dict[str, tuple[int, str]]
_DTYPES = {
    "keys.npy": "int64",
    "terms.npy": "int32",
    "indptr.npy": "int64",
    "gaps.npy": "uint16",
    "weights.npy": "float32",
}
_DENSE_FILES, _COLUMNS_FILE = ("dense.npy", "norms.npy"), "columns.npy"
SEGMENT_FILES = (*_DTYPES, *_DENSE_FILES, _COLUMNS_FILE)


def segment_files_of(text: object) -> Files | None:
    """Sizes and SHA-256 sums of a segment's files from JSON; None where they are not those of a segment."""
    try:
        entries = dict(json.loads(text))  # type: ignore[arg-type]
        files = {name: (int(size), str(checksum)) for name, (size, checksum) in entries.items()}
    except (TypeError, ValueError, RecursionError):
        return None
    others = set(files) - set(_DTYPES) - {_COLUMNS_FILE}  # the latter is not in an index of an older format
    return files if set(_DTYPES) <= set(files) and others in (set(), set(_DENSE_FILES)) else None


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive rows of an index, in memory or memory-mapped.

    Attributes:
        name: Its directory's name; empty before it is written.
        keys: Key of each row's document, int64, ascending.
        postings: The sparse rows by term.
        dense: The dense rows, or None where the index has none.
        columns: What filters compare; None where it was not kept.
    """

    name: str
    keys: NDArray[np.int64]
    postings: Postings
    dense: DenseRows | None
    columns: SegmentColumns | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, key: str) -> Column | None:
        """What filters compare of a key of the metadata; None where it is not kept.

        Raises:
            ValueError: If the file is damaged.
        """
        if self.columns is None or '"' in key:
            return None
        try:
            return self.columns.column(key)
        except ValueError as err:
            raise _damaged(Path(self.name) / _COLUMNS_FILE, str(err)) from err

    @classmethod
    def open(cls, directory: Path, files: Files) -> Segment:
        """Map a segment's files.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file has another size or form than was written.
        """
        arrays = {}
        check_regular(directory, is_directory=True)
        for name, (size, _) in files.items():
            file = directory / name
            if (found := check_regular(file).st_size) != size:
                raise _damaged(file, f"it must have {size} bytes and has {found}")
            try:
                arrays[name] = np.asarray(read_npy(file))
            except ValueError as err:
                raise _damaged(file, f"it must hold one array: {err}") from err
            if name in _DTYPES and (arrays[name].ndim != 1 or arrays[name].dtype != _DTYPES[name]):
                raise _damaged(file, f"it must hold one-dimensional {_DTYPES[name]}")
        keys, terms, indptr, gaps, weights = (arrays[name] for name in _DTYPES)
        if not len(keys):
            raise _damaged(directory / "keys.npy", "it must hold a key")
        is_whole = len(indptr) == len(terms) + 1 and len(weights) == len(gaps)
        if not is_whole or indptr[0] != 0 or indptr[-1] != len(gaps) or (indptr[1:] < indptr[:-1]).any():
            raise _damaged(directory / "indptr.npy", f"it must rise from 0 to {len(gaps)}, term by term")
        dense = DenseRows(arrays["dense.npy"], arrays["norms.npy"]) if "dense.npy" in arrays else None
        columns = None
        if _COLUMNS_FILE in arrays:
            file = directory / _COLUMNS_FILE
            try:
                columns = SegmentColumns.unpacked(arrays[_COLUMNS_FILE], len(keys))
            except ValueError as err:
                raise _damaged(file, str(err)) from err
        return cls(directory.name, keys, Postings(len(keys), terms, indptr, gaps, weights), dense, columns)


def write_segment(
    directory: Path, parts: Sequence[tuple[Segment, NDArray[np.bool_] | None]], *, is_durable: bool
) -> Files:
    """Write the kept rows of some segments as one, and return its files' sizes and SHA-256 sums.

    Whether the segment exists is for the database to say. Dense rows pass through block by block.

    Args:
        directory: Where to, not existing.
        parts: Segments in order, each with the mask of the rows to keep, None for all.
        is_durable: Whether to wait until the disk has everything.

    Raises:
        OSError: If it cannot be written, for example because the disk is full.
    """
    directory.mkdir()
    masks = [slice(None) if mask is None else mask for _, mask in parts]
    segments = [part for part, _ in parts]
    kept = [part.postings if mask is None else part.postings.kept(mask) for part, mask in parts]
    postings = kept[0] if len(kept) == 1 else Postings.merged(kept)
    keys = np.concatenate([part.keys[mask] for part, mask in zip(segments, masks, strict=True)])
    columns: tuple[NDArray[Any], ...] = (keys, postings.terms, postings.indptr, postings.gaps, postings.weights)
    arrays: dict[str, NDArray[Any]] = dict(zip(_DTYPES, columns, strict=True))
    of_metadata = [(part.columns, mask) for part, mask in parts if part.columns is not None]
    if len(of_metadata) == len(parts):
        arrays[_COLUMNS_FILE] = SegmentColumns.joined(of_metadata).packed()
    dense = [part.dense for part in segments if part.dense is not None]
    if dense:
        arrays["norms.npy"] = np.concatenate([part.norms[mask] for part, mask in zip(dense, masks, strict=True)])
    files = {
        name: _write_array(directory / name, array.shape, array.dtype, [array], is_durable)
        for name, array in arrays.items()
    }
    if dense:
        shape, dtype = (postings.num_rows, dense[0].rows.shape[1]), dense[0].rows.dtype
        blocks = (
            part.rows[place] if isinstance(mask, slice) else part.rows[place][mask[place]]
            for part, mask in zip(dense, masks, strict=True)
            for place, _ in part.blocks()
        )
        files["dense.npy"] = _write_array(directory / "dense.npy", shape, dtype, blocks, is_durable)
    if is_durable:
        sync_directory(directory)
        sync_directory(directory.parent)
    return files


def verify_segment(directory: Path, files: Files) -> None:
    """Compare every file with its SHA-256 sum.

    Raises:
        FileNotFoundError: If a file is missing, as when a writer has removed it since.
        ValueError: If a file differs.
    """
    for name, (_, expected) in files.items():
        file = directory / name
        check_regular(file)
        with file.open("rb") as stream:
            actual = _sha256(stream)
        if actual != expected:
            raise _damaged(file, f"its SHA-256 must be {expected} and is {actual}")


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable, where the system can."""
    if os.name == "nt":  # Windows cannot open a directory
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_array(
    file: Path, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[NDArray[Any]], is_durable: bool
) -> tuple[int, str]:
    """Write an array that comes in consecutive parts; its size in bytes and SHA-256 sum."""
    with file.open("w+b") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(part).data.cast("B") if part.size else b"")
        stream.flush()
        if is_durable:
            os.fsync(stream.fileno())
        stream.seek(0)
        return os.fstat(stream.fileno()).st_size, _sha256(stream)


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _damaged(file: Path, reason: str) -> ValueError:
    return ValueError(f"{file} is damaged: {reason}. Restore the index from a copy, or build it again.")
