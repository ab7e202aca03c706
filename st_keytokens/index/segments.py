"""Segments: immutable directories of ``.npy`` files that are opened by mmap, and how they are written and merged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from st_keytokens.index.dense import DenseRows
from st_keytokens.index.postings import Postings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_MERGED_ROWS", "Segment", "sync_directory", "verify_segment", "write_segment"]

MAX_MERGED_ROWS = 1 << 20  # bounds the memory and the time of one merge
Files = dict[str, tuple[int, str]]
_DTYPES = {
    "keys.npy": "int64",
    "terms.npy": "int32",
    "indptr.npy": "int64",
    "gaps.npy": "uint16",
    "weights.npy": "float32",
}


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive rows of an index, in memory or memory-mapped.

    Attributes:
        name: Its directory's name; empty before it is written.
        keys: Key of each row's document, int64, ascending.
        postings: The sparse rows by term.
        dense: The dense rows, or None where the index has none.
    """

    name: str
    keys: NDArray[np.int64]
    postings: Postings
    dense: DenseRows | None

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def open(cls, directory: Path, files: Files) -> Segment:
        """Map a segment's files.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file has another size or form than was written.
        """
        arrays = {}
        for name, (size, _) in files.items():
            file = directory / name
            if file.stat().st_size != size:
                raise _damaged(file, f"it must have {size} bytes and has {file.stat().st_size}")
            try:
                arrays[name] = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
            except ValueError as err:
                raise _damaged(file, str(err)) from err
            if name in _DTYPES and (arrays[name].ndim != 1 or arrays[name].dtype != _DTYPES[name]):
                raise _damaged(file, f"it must hold one-dimensional {_DTYPES[name]}")
        keys, terms, indptr, gaps, weights = (arrays[name] for name in _DTYPES)
        is_whole = len(indptr) == len(terms) + 1 and len(weights) == len(gaps)
        if not is_whole or indptr[0] != 0 or indptr[-1] != len(gaps) or (indptr[1:] < indptr[:-1]).any():
            raise _damaged(directory / "indptr.npy", f"it must rise from 0 to {len(gaps)}, term by term")
        dense = DenseRows(arrays["dense.npy"], arrays["norms.npy"]) if "dense.npy" in arrays else None
        return cls(directory.name, keys, Postings(len(keys), terms, indptr, gaps, weights), dense)


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
