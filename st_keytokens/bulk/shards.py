"""Directories of sparse rows: Parquet shards and a manifest, written so that a run can go on, read verified."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any

import numpy as np

from st_keytokens.shared.checks import checked_int
from st_keytokens.shared.files import WriterLock, file_hash, is_path, json_checksum, read_json, write_atomically
from st_keytokens.shared.imports import imported
from st_keytokens.sparse_embeddings import MAX_VOCAB_SIZE, SparseEmbeddings, boundaries

__all__ = ["Manifest", "Shard", "ShardWriter", "collect_shards", "read_batches", "read_manifest", "verify"]

_FORMAT = "st-keytokens sparse embeddings"
_FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_COLUMNS = ("id", "indices", "values")
_SUMS = ("rows", "terms", "bytes")  # of a manifest, over its shards
_TEMPORARY = ".tmp"
_LOCK = ".writer.lock"
_GROUP_ROWS = 8192  # rows of a row group: what a reader holds at the least
_BLOCK = 1 << 20  # bytes of a column read at a time


@dataclass(frozen=True)
class Shard:
    """One Parquet file.

    Attributes:
        name: Its path in the directory, with ``/``.
        rows: Rows in it.
        terms: Weights in it.
        bytes: Its size.
        sha256: Of its content, 64 hexadecimal digits.
    """

    name: str
    rows: int
    terms: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards holds.

    Attributes:
        vocab_size: Columns of the sparse vectors.
        fingerprint: Of the encoder that made them.
        shards: The files, in the order of the rows.
        is_complete: Whether all rows of the source are in.
        source: What the rows were made of, as the writer was told.
        position: Where the source is to be read on from, while it is not complete.
    """

    vocab_size: int
    fingerprint: str
    shards: tuple[Shard, ...] = ()
    is_complete: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    position: Any = None

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def terms(self) -> int:
        """Weights of all shards."""
        return sum(shard.terms for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


class ShardWriter:
    """Writes rows into a directory of Parquet shards, and goes on where an earlier run was killed.

    A shard counts once the manifest names it; what a killed run left besides is written again. Rows added since the
    last whole shard are lost with the process, so a run goes on from :attr:`position`, and no row is there twice.
    A directory has one writer at a time, which holds a lock file until it is closed, has finished, or is dead.

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
        TypeError: If source is nothing that JSON can hold, or the fingerprint no string.
        ValueError: If another writer is at work in the directory, in any process (nothing is touched then), or the
            directory holds other files, rows of another encoder or source, or shards that its manifest does not name.

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
        self._path = Path(path).absolute()
        self._lock: WriterLock | None = None
        about = _as_json(dict(source or {}))
        vocab_size = checked_int("vocab_size", vocab_size, minimum=1, maximum=MAX_VOCAB_SIZE)
        if not isinstance(fingerprint, str):
            raise TypeError(f"fingerprint must be a string, got {type(fingerprint).__name__}.")
        wanted = Manifest(vocab_size, fingerprint, source=about)
        self.manifest = self._found(wanted)
        if not self.is_complete:
            self._path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._path)
            try:
                self.manifest = self._found(wanted)  # whoever had the lock may have written it
                if not (self._path / _MANIFEST).is_file():
                    _write_manifest(self._path, wanted)
                if not self.is_complete:
                    self._remove_left()
            except BaseException:
                self._unlock()
                raise
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

    def _found(self, wanted: Manifest) -> Manifest:
        """The manifest that is there, checked, or the one that is wanted; nothing is touched."""
        if (self._path / _MANIFEST).is_file():
            found = read_manifest(self._path)
            self._check_same(found, wanted)
            _check_named(self._path, found)
            return found
        names = {file.name for file in self._path.iterdir()} if self._path.is_dir() else set()
        is_another_at_work = self._lock is None and not names.isdisjoint({_LOCK, _MANIFEST})  # the lock will tell
        if not is_another_at_work and not all(_is_left(name) for name in names):
            raise ValueError(
                f"{self._path} must be a new directory or one of sparse embeddings, got one of other files."
            )
        return wanted

    def _remove_left(self) -> None:
        """Removes what a run that was killed left: a temporary file, a shard that no manifest names."""
        for left in self._path.glob(f".part-*{_TEMPORARY}"):
            left.unlink()
        (self._path / self._name).unlink(missing_ok=True)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def add(self, ids: Sequence[str], sparse: SparseEmbeddings, position: Any = None) -> None:
        """Adds rows.

        Args:
            ids: An id for each.
            sparse: The rows.
            position: Where the source is to be read on from after these rows: anything that JSON can hold.

        Raises:
            OSError: If the disk is full.
            TypeError: If an id is not a string, or the position nothing that JSON can hold.
            ValueError: If ids, rows and vocabulary do not fit, or the directory is complete, closed, or has been
                written into by another process.
        """
        if not self.is_complete and self._lock is None:
            raise ValueError(f"{self._path} must be open to be added to, got a closed writer. Open a new one.")
        if self.is_complete:
            raise ValueError(f"{self._path} must not be complete to be added to, got {self.rows} rows of all.")
        if sparse.vocab_size != self.manifest.vocab_size:
            raise ValueError(f"sparse must have vocab_size {self.manifest.vocab_size}, got {sparse.vocab_size}.")
        self._pending.append(_to_arrow(ids, sparse))
        self._pending_rows += len(sparse)
        self._rows += len(sparse)
        self._terms += sparse.nnz
        self._position = _as_json(position)
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
            if self._lock is None:
                raise ValueError(f"{self._path} must be open to be finished, got a closed writer. Open a new one.")
            if self._rows:
                self._commit()
            self._save(replace(self.manifest, is_complete=True, position=None))
            self._unlock()
        return self.manifest

    def close(self) -> None:
        """Drops the rows that no shard holds yet, and lets others write; those on disk stay."""
        if self._lock is None:
            return
        try:
            if self._open is not None:
                self._open.close()
                self._open = None
            self._temporary.unlink(missing_ok=True)
            self._pending, self._pending_rows, self._rows, self._terms = [], 0, 0, 0
        finally:
            self._unlock()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _name(self) -> str:
        return _part_name(self.manifest)

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
        shard = _described(self._path, name, self._rows, self._terms)
        self._save(replace(self.manifest, shards=(*self.manifest.shards, shard), position=self._position))
        self._rows = self._terms = 0

    def _save(self, manifest: Manifest) -> None:
        if read_manifest(self._path) != self.manifest:
            raise ValueError(f"{self._path} must be written by one process at a time, got another. Run again.")
        _write_manifest(self._path, manifest)
        self.manifest = manifest

    def _check_same(self, manifest: Manifest, wanted: Manifest) -> None:
        for name, what in (("vocab_size", "vocabulary size"), ("fingerprint", "encoder"), ("source", "source")):
            found, given = getattr(manifest, name), getattr(wanted, name)
            if found != given:
                raise ValueError(
                    f"{self._path} must hold rows of this {what}, {given}, got {found}. Use a new directory."
                )


def read_manifest(path: str | PathLike[str]) -> Manifest:
    """Reads ``manifest.json`` of a directory of shards; the shards themselves are not looked at.

    Args:
        path: The directory.

    Returns:
        The manifest, also of a directory that is not complete.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is malformed, altered, names a shard twice or contradicts itself, or is of another format
            version.
    """
    file = Path(path) / _MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{path} must be a directory of sparse embeddings with {_MANIFEST}, got none.")
    try:
        content = read_json(file)
    except ValueError as err:
        raise _malformed(file, str(err)) from err
    found, version = content.get("format"), content.get("format_version")
    if found != _FORMAT or type(version) is not int or version != _FORMAT_VERSION:
        raise ValueError(
            f"{file} must be of format {_FORMAT!r} in version {_FORMAT_VERSION}, got {found!r:.60} in version "
            f"{version!r:.60}. Convert again, or use the version of st-keytokens that wrote it."
        )
    return _parsed(file, content)


def _parsed(file: Path, content: dict[str, Any]) -> Manifest:
    """A manifest from what its file holds, every value checked."""
    _check_entries(file, content, _ENTRIES)
    shards = []
    for shard in content["shards"]:
        if not isinstance(shard, dict) or set(shard) != set(_SHARD_ENTRIES):
            raise _malformed(file, f"a shard of it is {shard!r:.60}")
        _check_entries(file, shard, _SHARD_ENTRIES)
        if not _is_inside(shard["name"]) or not _SHA256.fullmatch(shard["sha256"]):
            raise _malformed(file, f"a shard of it is {shard!r:.60}")
        shards.append(Shard(**shard))
    names = ("vocab_size", "fingerprint", "is_complete", "source", "position")
    manifest = Manifest(shards=tuple(shards), **{name: content[name] for name in names})
    if (twice := Counter(shard.name for shard in shards).most_common(1)) and twice[0][1] > 1:
        raise _malformed(file, f"it names {twice[0][0]!r:.60} twice")
    for name in _SUMS:
        if content[name] != getattr(manifest, name):
            raise _malformed(file, f"its {name} are {content[name]}, its shards' {getattr(manifest, name)}")
    if manifest.is_complete and manifest.position is not None:
        raise _malformed(file, f"it is complete, and to be read on from {manifest.position!r:.60}")
    if "checksum" in content and content["checksum"] != json_checksum(content):  # older ones have none
        raise _malformed(file, "its checksum is another")
    return manifest


_ENTRIES: dict[str, tuple[type, int]] = {
    "vocab_size": (int, 1),
    "fingerprint": (str, 0),
    "shards": (list, 0),
    "is_complete": (bool, 0),
    "source": (dict, 0),
    "position": (object, 0),
    **dict.fromkeys(_SUMS, (int, 0)),
}
"""Type of each entry of a manifest, and the least it may be if it is a number."""
_SHARD_ENTRIES: dict[str, tuple[type, int]] = {
    "name": (str, 0),
    "rows": (int, 0),
    "terms": (int, 0),
    "bytes": (int, 0),
    "sha256": (str, 0),
}
_SHA256 = re.compile("[0-9a-f]{64}")


def _check_entries(file: Path, content: dict[str, Any], entries: Mapping[str, tuple[type, int]]) -> None:
    for name, (kind, least) in entries.items():
        value = content.get(name, _LACKING)
        if value is _LACKING or not (kind is object or type(value) is kind):
            raise _malformed(file, f"its {name} is {'missing' if value is _LACKING else format(repr(value), '.60')}")
        if kind is int and not least <= value <= _LARGEST[name]:
            raise _malformed(file, f"its {name} is {value}")


_LACKING = object()
_LARGEST = {"vocab_size": MAX_VOCAB_SIZE, **dict.fromkeys(("rows", "terms", "bytes"), 2**63 - 1)}


def read_batches(
    path: str | PathLike[str], batch_size: int = 1000, *, start: int = 0, is_verifying: bool = True
) -> Iterator[tuple[list[str], SparseEmbeddings]]:
    """Reads a directory of shards in batches, in order, with little more in memory than one of them.

    Args:
        path: The directory.
        batch_size: Rows of a batch at the most; the last one of a shard may have fewer.
        start: Rows that are passed over; whole shards of them are not opened.
        is_verifying: Whether each shard's SHA-256 is compared before it is read; its size always is.

    Returns:
        An iterator of ids and as many rows.

    Raises:
        FileNotFoundError: If there is no manifest; while reading, if a shard is missing.
        ImportError: If pyarrow is not installed.
        ValueError: If an argument is out of range, or the directory is not complete or holds a shard that its manifest
            does not name; while reading, if a shard has been changed or truncated, or its rows break the contract.
    """
    checked_int("batch_size", batch_size, minimum=1)
    imported("pyarrow.parquet")
    manifest = read_manifest(path)
    if not manifest.is_complete:
        raise ValueError(
            f"{path} must be complete, got the first {manifest.rows} rows. Run what writes it again, which goes on."
        )
    _check_named(Path(path), manifest)
    checked_int("start", start, minimum=0, maximum=manifest.rows)
    return _batches(Path(path), manifest, batch_size, start, is_verifying)


def verify(path: str | PathLike[str]) -> Manifest:
    """Reads a directory of shards whole and checks everything that its manifest says.

    Args:
        path: The directory.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: See :func:`read_batches`.
        ImportError: See :func:`read_batches`.
        ValueError: See :func:`read_batches`.
    """
    for _ in read_batches(path, _GROUP_ROWS):
        pass
    return read_manifest(path)


def collect_shards(
    path: str | PathLike[str], *, vocab_size: int, fingerprint: str, source: Mapping[str, Any] | None = None
) -> Manifest:
    """Reads the Parquet files below a directory, checks every row, and writes the manifest that makes them shards.

    The files stay as they are. Run it when all jobs have ended; whatever is there is taken for the whole.

    Args:
        path: The directory.
        vocab_size: Columns of the rows.
        fingerprint: Of the encoder that made them.
        source: See :class:`~st_keytokens.bulk.ShardWriter`.

    Returns:
        The manifest, whose shards are in the order of their paths.

    Raises:
        FileNotFoundError: If there is no Parquet file.
        ImportError: If pyarrow is not installed.
        ValueError: If a file is damaged or its rows break the contract, the directory has a manifest, or a writer is
            at work in it.
    """
    folder = Path(path)
    vocab_size = checked_int("vocab_size", vocab_size, minimum=1, maximum=MAX_VOCAB_SIZE)
    if not _parquet_files(folder):
        raise FileNotFoundError(f"{path} must hold Parquet files, got none.")
    lock = _locked(folder)
    try:
        return _collected(folder, vocab_size, fingerprint, _as_json(dict(source or {})))
    finally:
        lock.release()


def _collected(folder: Path, vocab_size: int, fingerprint: str, source: Mapping[str, Any]) -> Manifest:
    if (folder / _MANIFEST).exists():
        raise ValueError(f"{folder} must have no {_MANIFEST}, got one. Delete it to collect the shards again.")
    names, shards = _parquet_files(folder), []
    if wrong := [name for name in names if not _is_inside(name)]:
        raise ValueError(f"{folder} must hold files of plain names, got {wrong[0]!r:.80}. Rename it.")
    for name in names:
        rows = terms = 0
        for _, sparse in _rows(folder / name, vocab_size, _GROUP_ROWS):
            rows, terms = rows + len(sparse), terms + sparse.nnz
        shards.append(_described(folder, name, rows, terms))
    manifest = Manifest(vocab_size, fingerprint, tuple(shards), is_complete=True, source=source)
    _write_manifest(folder, manifest)
    return manifest


def _write_manifest(path: Path, manifest: Manifest) -> None:
    sums = {name: getattr(manifest, name) for name in _SUMS}
    content: dict[str, Any] = {"format": _FORMAT, "format_version": _FORMAT_VERSION, **sums, **asdict(manifest)}
    content["checksum"] = json_checksum(json.loads(json.dumps(content)))
    write_atomically(path / _MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def _as_json(value: Any) -> Any:
    """A value as it is read back from a manifest: tuples are lists."""
    return json.loads(json.dumps(value))


def _malformed(file: Path, reason: str) -> ValueError:
    return ValueError(f"{file} must be a manifest as it was written, got something else: {reason}. Copy it again.")


def _is_inside(name: str) -> bool:
    """Whether a name is of a file in the directory, spelled in the one way."""
    path = PurePosixPath(name)
    is_plain = is_path(name) and name == path.as_posix() and "\\" not in name and not PureWindowsPath(name).drive
    return bool(path.parts) and is_plain and not path.is_absolute() and ".." not in path.parts


def _is_left(name: str) -> bool:
    """Whether a name is of what a writer leaves that dies before it has written its first manifest."""
    return name == _LOCK or (name.startswith(f".{_MANIFEST}.") and name.endswith(_TEMPORARY))


def _locked(path: Path) -> WriterLock:
    try:
        return WriterLock(path / _LOCK)
    except BlockingIOError as err:
        raise ValueError(
            f"{path} must be written by one process at a time, got another at work. Wait until it has ended."
        ) from err


def _parquet_files(folder: Path) -> list[str]:
    """Names of the Parquet files below a directory that are not hidden or temporary, sorted."""
    found = (file for file in folder.rglob("*.parquet") if file.is_file())
    names = sorted(file.relative_to(folder).as_posix() for file in found)
    return [name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))]


def _check_named(path: Path, manifest: Manifest) -> None:
    """Check that a manifest names all shards: while it is not complete, all but the next, which no kill can name."""
    named = {shard.name for shard in manifest.shards}
    if not manifest.is_complete:
        named.add(_part_name(manifest))
    if unnamed := [name for name in _parquet_files(path) if name not in named]:
        raise ValueError(
            f"{path} must have no shard that its {_MANIFEST} does not name, got {unnamed[0]!r:.80}. Copy the "
            "directory again, or move what is not of it elsewhere."
        )


def _part_name(manifest: Manifest) -> str:
    """The name of the next shard."""
    return f"part-{len(manifest.shards):05d}.parquet"


def _described(path: Path, name: str, rows: int, terms: int) -> Shard:
    """The entry of a file of the directory that has been written whole."""
    file = path / name
    return Shard(name, rows, terms, file.stat().st_size, file_hash(file))


def _checked(path: Path, shard: Shard, is_hashing: bool) -> Path:
    """The file of a shard, whose size and, if wanted, content are as the manifest says."""
    file, advice = path / shard.name, "Copy the directory again, or delete it and convert again."
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be there as the manifest says, got none. {advice}")
    size = file.stat().st_size
    if size != shard.bytes:
        raise ValueError(f"{file} must have {shard.bytes} bytes as the manifest says, got {size}. {advice}")
    if is_hashing and (found := file_hash(file)) != shard.sha256:
        raise ValueError(f"{file} must have the SHA-256 {shard.sha256} of the manifest, got {found}. {advice}")
    return file


def _batches(
    path: Path, manifest: Manifest, batch_size: int, start: int, is_verifying: bool
) -> Iterator[tuple[list[str], SparseEmbeddings]]:
    first = 0
    for shard in manifest.shards:
        passed, first = max(0, start - first), first + shard.rows
        if passed >= shard.rows:
            continue
        file = _checked(path, shard, is_verifying)
        rows = terms = 0
        for ids, sparse in _rows(file, manifest.vocab_size, batch_size):
            skipped, rows, terms = min(len(ids), max(0, passed - rows)), rows + len(ids), terms + sparse.nnz
            if skipped < len(ids):
                yield ids[skipped:], sparse[skipped:]
        if (rows, terms) != (shard.rows, shard.terms):
            raise ValueError(
                f"{file} must have {shard.rows} rows and {shard.terms} terms as the manifest says, got {rows} and "
                f"{terms}. Convert again."
            )


def _rows(file: Path, vocab_size: int, batch_size: int) -> Iterator[tuple[list[str], SparseEmbeddings]]:
    """All rows of a shard, checked; errors name the file."""
    with open_parquet(file) as content:
        with arrow_errors(file):
            _check_columns(content.schema_arrow)
        for batch in arrow_items(file, content.iter_batches(batch_size, columns=list(_COLUMNS))):
            with arrow_errors(file):
                batch.validate(full=True)
                rows = from_arrow(batch, vocab_size)
            yield rows


def open_parquet(path: Path) -> Any:
    """A Parquet file whose columns are read piece by piece; by itself pyarrow holds all from the first batch on."""
    with arrow_errors(path):
        return imported("pyarrow.parquet").ParquetFile(path, pre_buffer=False, buffer_size=_BLOCK)


@contextmanager
def arrow_errors(file: Path | str, what: str = "Parquet file") -> Iterator[None]:
    """Whatever pyarrow says of a damaged file, as ValueError that names it; errors of the disk stay what they are."""
    damage = (OSError, RuntimeError, KeyError, IndexError, TypeError, OverflowError, MemoryError)
    try:
        yield
    except (imported("pyarrow").ArrowException, UnicodeDecodeError, *damage) as err:
        if isinstance(err, OSError) and err.errno is not None:
            raise
        raise ValueError(f"{file} must be a whole {what}, got an error: {err}.") from err
    except ValueError as err:
        raise ValueError(f"{file}: {err}") from err


def arrow_items(file: Path, items: Iterator[Any]) -> Iterator[Any]:
    """The same items, with the errors of :func:`arrow_errors` where making one fails."""
    while True:
        with arrow_errors(file):
            item = next(items, None)
        if item is None:
            return
        yield item


def arrow_schema() -> Any:
    """The ``pyarrow.Schema`` of a shard."""
    arrow = imported("pyarrow")
    types = arrow.string(), arrow.list_(arrow.int32()), arrow.list_(arrow.float32())
    return arrow.schema(list(zip(_COLUMNS, types, strict=True)))


def _check_columns(schema: Any) -> None:
    """Raises ValueError if a column is missing or of another type, whatever the items of its lists are called."""
    arrow = imported("pyarrow")
    for column in arrow_schema():
        found: Any = schema.field(column.name).type if column.name in schema.names else None
        is_list = found is not None and arrow.types.is_list(column.type) and arrow.types.is_list(found)
        if found != column.type and not (is_list and found.value_type == column.type.value_type):
            raise ValueError(
                f"column {column.name!r} must be {column.type}, got {'none' if found is None else found}. "
                "Cast it before it is written."
            )


def from_arrow(batch: Any, vocab_size: int) -> tuple[list[str], SparseEmbeddings]:
    """Ids and rows of a ``pyarrow`` table or record batch; ValueError where a column or a row breaks the contract."""
    _check_columns(batch.schema)
    columns = [batch.column(name) for name in _COLUMNS]
    ids, indices, values = (c.combine_chunks() if hasattr(c, "combine_chunks") else c for c in columns)
    nulls = [name for name, part in zip(_COLUMNS, (ids, indices, values), strict=True) if part.null_count]
    if nulls:
        raise ValueError(f"{nulls[0]} must have no nulls, got {batch.column(nulls[0]).null_count}.")
    counts = indices.value_lengths().to_numpy()
    if not np.array_equal(counts, values.value_lengths().to_numpy()):
        raise ValueError("values must be as many as indices in every row, got other numbers.")
    terms, weights = (part.flatten().to_numpy(zero_copy_only=False) for part in (indices, values))
    return ids.to_pylist(), SparseEmbeddings(boundaries(counts), terms, weights, vocab_size)


def _to_arrow(ids: Sequence[str], sparse: SparseEmbeddings) -> Any:
    """Rows as a ``pyarrow.Table`` that shares the memory of their indices and values."""
    arrow = imported("pyarrow")
    if len(ids) != len(sparse):
        raise ValueError(f"ids must be one for each row, got {len(ids)} for {len(sparse)} rows.")
    for identifier in ids:
        if not isinstance(identifier, str):
            raise TypeError(f"ids must be strings, got {type(identifier).__name__} {identifier!r:.60}.")
    offsets = arrow.array(sparse.indptr.astype(np.int32))
    lists = (arrow.ListArray.from_arrays(offsets, arrow.array(part)) for part in (sparse.indices, sparse.values))
    return arrow.Table.from_arrays([arrow.array(ids, arrow.string()), *lists], schema=arrow_schema())
