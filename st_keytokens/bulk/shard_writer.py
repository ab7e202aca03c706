"""Writing sparse embeddings as shards, each of which is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from st_keytokens.bulk.arrow_tables import arrow_schema, to_arrow
from st_keytokens.bulk.manifest import MANIFEST, Manifest, described, read_manifest, write_manifest
from st_keytokens.checks import checked_int
from st_keytokens.optional import imported
from st_keytokens.sparse_embeddings import SparseEmbeddings

_GROUP_ROWS = 8192  # rows of a row group: what a reader holds at the least
_TEMPORARY = ".tmp"


class ShardWriter:
    """Writes rows into a directory of Parquet shards, and goes on where an earlier run was killed.

    A shard counts once the manifest names it; what a killed run left besides is written again. Rows added since the
    last whole shard are lost with the process, so a run goes on from :attr:`position`, and no row is there twice.

    Args:
        path: The directory, new, empty or begun earlier.
        vocab_size: Columns of the rows.
        fingerprint: Of the encoder that makes them.
        source: Anything that JSON can hold that says what the rows are made of; an earlier run must have said the
            same.
        shard_rows: A shard ends with the batch that fills it to so many rows.

    Attributes:
        manifest: What is on disk.

    Raises:
        ImportError: If pyarrow is not installed.
        ValueError: If the directory holds other files, or rows of another encoder or source.

    Example:
        Rows of any origin, as those of a cluster::

            with ShardWriter("sparse", vocab_size=V, fingerprint=encoder.fingerprint) as writer:
                for ids, sparse in rows_from(writer.rows):
                    writer.add(ids, sparse)
                writer.finish()
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        vocab_size: int,
        fingerprint: str,
        source: Mapping[str, Any] | None = None,
        shard_rows: int = 100_000,
    ) -> None:
        self._shard_rows = checked_int("shard_rows", shard_rows, minimum=1)
        self._parquet = imported("pyarrow.parquet")
        self._path = Path(path)
        self._path.mkdir(parents=True, exist_ok=True)
        wanted = Manifest(checked_int("vocab_size", vocab_size, minimum=1), fingerprint, source=dict(source or {}))
        self.manifest = wanted
        if (self._path / MANIFEST).is_file():
            self.manifest = read_manifest(self._path)
            self._check_same(wanted)
        elif any(self._path.iterdir()):
            raise ValueError(f"{path} must be a new directory or one of sparse embeddings, got one of other files.")
        else:
            write_manifest(self._path, wanted)
        for left in self._path.glob(f".part-*{_TEMPORARY}"):
            left.unlink()
        self._open: Any = None
        self._pending: list[Any] = []
        self._pending_rows = 0
        self._rows = self._terms = 0  # of the open shard
        self._position: Any = None

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run, or :meth:`finish`, has written the last row."""
        return self.manifest.is_complete

    @property
    def rows(self) -> int:
        """Rows that are safely on disk."""
        return self.manifest.rows

    @property
    def position(self) -> Any:
        """The position that was added with the last of them; None at the start."""
        return self.manifest.position

    def add(self, ids: Sequence[str], sparse: SparseEmbeddings, position: Any = None) -> None:
        """Adds rows.

        Args:
            ids: An id for each.
            sparse: The rows.
            position: Where the source is to be read on from after these rows: anything that JSON can hold.

        Raises:
            OSError: If the disk is full.
            TypeError: If an id is not a string.
            ValueError: If ids, rows and vocabulary do not fit, the directory is complete, or another process has
                written into it.
        """
        if self.is_complete:
            raise ValueError(f"{self._path} must not be complete to be added to, got {self.rows} rows of all.")
        if sparse.vocab_size != self.manifest.vocab_size:
            raise ValueError(f"sparse must have vocab_size {self.manifest.vocab_size}, got {sparse.vocab_size}.")
        self._pending.append(to_arrow(ids, sparse))
        self._pending_rows += len(sparse)
        self._rows += len(sparse)
        self._terms += sparse.nnz
        self._position = position
        if self._pending_rows >= _GROUP_ROWS:
            self._write_group()
        if self._rows >= self._shard_rows:
            self._commit()

    def finish(self) -> Manifest:
        """Writes what is pending, and marks the directory as complete.

        Returns:
            The manifest, as it is on disk.
        """
        if not self.is_complete:
            if self._rows:
                self._commit()
            self._save(replace(self.manifest, is_complete=True, position=None))
        return self.manifest

    def close(self) -> None:
        """Drops the rows that no shard holds yet; those on disk stay."""
        if self._open is not None:
            self._open.close()
            self._open = None
        self._temporary.unlink(missing_ok=True)
        self._pending, self._pending_rows, self._rows, self._terms = [], 0, 0, 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _name(self) -> str:
        return f"part-{len(self.manifest.shards):05d}.parquet"

    @property
    def _temporary(self) -> Path:
        return self._path / f".{self._name}.{os.getpid()}{_TEMPORARY}"

    def _write_group(self) -> None:
        if not self._pending:
            return
        if self._open is None:
            self._open = self._parquet.ParquetWriter(str(self._temporary), arrow_schema(), compression="zstd")
        table = imported("pyarrow").concat_tables(self._pending)
        self._open.write_table(table, row_group_size=max(1, len(table)))
        self._pending, self._pending_rows = [], 0

    def _commit(self) -> None:
        """Ends the open shard: file, then manifest."""
        self._write_group()
        self._open.close()
        self._open = None
        name, temporary = self._name, self._temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self._path / name)
        shard = described(self._path, name, self._rows, self._terms)
        self._save(replace(self.manifest, shards=(*self.manifest.shards, shard), position=self._position))
        self._rows = self._terms = 0

    def _save(self, manifest: Manifest) -> None:
        if read_manifest(self._path) != self.manifest:
            raise ValueError(f"{self._path} must be written by one process at a time, got another. Run again.")
        write_manifest(self._path, manifest)
        self.manifest = manifest

    def _check_same(self, wanted: Manifest) -> None:
        for name, what in (("vocab_size", "vocabulary size"), ("fingerprint", "encoder"), ("source", "source")):
            found, given = getattr(self.manifest, name), getattr(wanted, name)
            if found != given:
                raise ValueError(
                    f"{self._path} must hold rows of this {what}, {given}, got {found}. Use a new directory."
                )
