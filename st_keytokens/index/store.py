"""What an index keeps in SQLite: documents, settings, deleted rows, and the list of live segments.

A change is one transaction: segment files are on the disk before it commits, and exist because it commits. SQLite's
write lock is the index's write lock. Only what an index has named itself is ever removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from st_keytokens.index.database import Database, Lease, WriteTransaction
from st_keytokens.index.directory import (
    DATABASE,
    SEGMENTS,
    SETTINGS_FILE,
    IndexDirectory,
    check_regular,
    is_segment_name,
)
from st_keytokens.index.documents import DocumentTable
from st_keytokens.index.segments import SEGMENT_FILES, Files, segment_files_of, sync_directory
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Change",
    "Encoder",
    "Store",
    "as_hybrid",
    "check_settings",
    "check_sizes",
    "copy_index",
    "finish_copy",
    "given_settings",
    "settled",
]


_CHOICES = {"similarity": ("cosine", "dot"), "dense_dtype": ("float32", "float16")}
_SMALLEST = {"vocab_size": 1, "embedding_dimension": 0}


class Encoder(Protocol):
    """What an index asks of an encoder; ``KeyTokenEncoder`` is one."""

    @property
    def fingerprint(self) -> str:
        """Names everything that changes a score."""

    @property
    def vocabulary(self) -> Any:
        """With ``vocab_size``, and ``strings``: a readable token for each term id."""

    @property
    def fusion_weights(self) -> Mapping[str, float]:
        """Factors of ``"sparse"`` and ``"dense"`` in a hybrid search."""

    def encode_document(self, texts: list[str]) -> HybridEmbeddings:
        """Embed documents."""

    def encode_query(self, texts: list[str], *, is_hybrid: bool) -> HybridEmbeddings:
        """Embed queries, for a search by both vectors or by one of them."""


def given_settings(encoder: Encoder | None, **given: Any) -> dict[str, Any]:
    """Check the settings of a constructor call, and take from the encoder what it knows.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a value is not allowed, or is not the encoder's.
    """
    for name, smallest in _SMALLEST.items():
        if given[name] is not None:
            given[name] = checked_int(name, given[name], minimum=smallest)
    for name, choices in _CHOICES.items():
        if given[name] is not None:
            check_choice(name, given[name], choices)
    if encoder is not None:
        own = {"vocab_size": encoder.vocabulary.vocab_size, "fingerprint": encoder.fingerprint}
        check_settings(own, given, "the encoder has")
        given.update(own)
    return given


def check_settings(saved: Mapping[str, Any], given: Mapping[str, Any], owner: str) -> None:
    """Compare what is given with what is saved, where both are known.

    Raises:
        ValueError: If they differ.
    """
    for name, value in saved.items():
        if value is not None and given[name] is not None and value != given[name]:
            raise ValueError(
                f"{name} must be {value!r}, which {owner}, got {given[name]!r}. "
                "Use what it was made with, or make a new index."
            )


def settled(saved: Mapping[str, Any], given: Mapping[str, Any], embeddings: HybridEmbeddings) -> dict[str, Any]:
    """The settings after documents were added: what was open is what was asked for, or what the embeddings have."""
    found = {
        "vocab_size": embeddings.sparse.vocab_size,
        "embedding_dimension": 0 if embeddings.dense is None else embeddings.dense.shape[1],
    }
    known = {name: given[name] if value is None else value for name, value in saved.items()}
    return {name: found.get(name) if value is None else value for name, value in known.items()}


def check_sizes(
    name: str,
    embeddings: HybridEmbeddings,
    vocab_size: int | None,
    embedding_dimension: int | None,
    *,
    needs_dense: bool,
) -> None:
    """Check that embeddings are over a vocabulary and, where dense rows matter, in a dimension (0 for none).

    None, as before the first documents, fits all.

    Raises:
        ValueError: If they are not, or a weight is not finite or so large that a score would not be.
    """
    if vocab_size not in (None, embeddings.sparse.vocab_size):
        raise ValueError(
            f"{name} must have vocab_size {vocab_size}, as the index has, got {embeddings.sparse.vocab_size}. "
            "Use the encoder that the index was made with."
        )
    embeddings.sparse.check_weights(name)
    if not needs_dense:
        return
    found = 0 if embeddings.dense is None else embeddings.dense.shape[1]
    is_empty = embeddings.dense is not None and not found
    if embedding_dimension not in (None, found) or is_empty:
        raise ValueError(
            f"{name} must have dense rows of dimension {embedding_dimension}, got {found} (0 stands for none)."
        )


def as_hybrid(name: str, embeddings: HybridEmbeddings | SparseEmbeddings) -> HybridEmbeddings:
    """Embeddings of either kind as :class:`HybridEmbeddings`.

    Raises:
        TypeError: If they are something else.
    """
    if isinstance(embeddings, SparseEmbeddings):
        return HybridEmbeddings(None, embeddings)
    if not isinstance(embeddings, HybridEmbeddings):
        raise TypeError(f"{name} must be HybridEmbeddings or SparseEmbeddings, got {type(embeddings).__name__}.")
    return embeddings


APPLICATION_ID = 0x53544B54  # "STKT"
FORMAT = 4
_WITHOUT_CHECKSUMS = 2  # has no catalog, and no checksums of documents; the first change adds them. 3 has no columns
_OLDER_SCHEMA = (
    "CREATE TABLE state (generation INTEGER NOT NULL, next_key INTEGER NOT NULL, settings TEXT NOT NULL)",
    *DocumentTable.SCHEMA,
    "CREATE TABLE segments (first_key INTEGER PRIMARY KEY, name TEXT NOT NULL, files TEXT NOT NULL)",
    "CREATE TABLE tombstones (key INTEGER PRIMARY KEY)",
)
_ADDED_SCHEMA = (
    DocumentTable.CHECKSUMS,
    # The index's own name; the first key whose document has a checksum; the sum over the tombstones; and a checksum of
    # all this, the state and the segments.
    "CREATE TABLE catalog (identity TEXT NOT NULL, first_key INTEGER NOT NULL, tombstones INTEGER NOT NULL, "
    "checksum BLOB NOT NULL)",
)


def _tombstone_sum(keys: NDArray[np.int64]) -> int:
    """A sum of hashes, to which keys are added and from which they are taken, as 64 bits with a sign."""
    mixed = keys.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64).astype(np.int64))


def _as_signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


class Store:
    """The database and the segment directories of one index.

    Args:
        directory: The index, absolute.
        settings: Settings to save where the index is new.
        read_only: Whether writing is refused.
        is_durable: Whether a commit waits for the disk.
        timeout: Seconds to wait for another writer.

    Attributes:
        documents: What works on the documents, inside a transaction.

    Raises:
        FileNotFoundError: If there is nothing to read, or the parent directory is missing.
        NotADirectoryError: If the path is a file.
        PermissionError: If the directory cannot be written.
        ValueError: If the directory is no index, one of another format, or damaged.
    """

    def __init__(
        self, directory: Path, settings: dict[str, Any], *, read_only: bool, is_durable: bool, timeout: float
    ) -> None:
        finish_copy(directory)
        self.directory, self.segments = directory, directory / SEGMENTS
        self.read_only, self.is_durable = read_only, is_durable
        file = directory / DATABASE
        if directory.exists() and not directory.is_dir():
            raise NotADirectoryError(f"path must be a directory, got the file {directory}.")
        if not os.path.lexists(file):
            if read_only:
                raise FileNotFoundError(f"path must be an index to be read, got {directory}, which holds none.")
            if directory.exists() and any(directory.iterdir()):
                raise ValueError(f"path must be an index or an empty directory, got {directory} with other files.")
            if not directory.parent.is_dir():
                raise FileNotFoundError(f"path must be in an existing directory, got {directory}. Make its parent.")
            directory.mkdir(exist_ok=True)
            sync_directory(directory.parent)
        if not read_only and not os.access(directory, os.W_OK):
            raise PermissionError(f"path must be writable, got {directory}. Open it with read_only=True.")
        self._check_not_emptied()
        if not read_only and (not os.path.lexists(file) or not file.stat().st_size):
            _create_database(file, timeout)
        self.documents = DocumentTable()
        self._made: list[str] = []  # names of segments that the change under way has begun
        self._identity = ""  # only while the lock is held
        self._dead = 0, np.empty(0, np.int64)  # the last tombstones read, and the sum that tells them
        self._place = IndexDirectory(directory)
        self._database = Database(self._place, read_only=read_only, is_durable=is_durable, timeout=timeout)
        try:
            self._create_or_check(settings)
        except BaseException:
            self.close()
            raise

    def _check_not_emptied(self) -> None:
        """Refuse a database without content beside what it should name: it is no beginning, but a loss."""
        file = self.directory / DATABASE
        log = file.with_name(f"{DATABASE}-wal")
        if os.path.lexists(file) and not check_regular(file).st_size and self._has_remains(log):
            raise self._damage(f"{file} is empty, but its segments or its log are not")

    def _has_remains(self, log: Path | None = None) -> bool:
        has_segments = self.segments.is_dir() and any(self.segments.iterdir())
        return has_segments or (log is not None and log.is_file() and log.stat().st_size > 0)

    def _create_or_check(self, settings: dict[str, Any]) -> None:
        def number(pragma: str) -> int:
            return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])

        with self.read() as connection:
            is_blank = number("schema_version") == 0
            (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not num_tables and self._has_remains():
            raise self._damage(f"{self._database.file} holds nothing, but there are segments")
        if is_blank and not self.read_only:
            with closing(WriteTransaction(self._database)) as transaction, transaction as connection:
                if number("schema_version") == 0:  # no other process was faster
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    for statement in _OLDER_SCHEMA:
                        connection.execute(statement)
                    connection.execute("INSERT INTO state VALUES (1, 0, ?)", (json.dumps(settings),))
                    self._add_checksums(connection)
                    self._seal(connection)
                    connection.execute("COMMIT")
        with self.read() as connection:
            if number("application_id") != APPLICATION_ID:
                raise ValueError(f"path must be an index of st-keytokens, got {self.directory} with another database.")
            if not _WITHOUT_CHECKSUMS <= (found := number("user_version")) <= FORMAT:
                raise ValueError(
                    f"the index {self.directory} has format {found}, but this version reads {_WITHOUT_CHECKSUMS} to "
                    f"{FORMAT}."
                )
            self._check_schema(connection)
        if not self.read_only:
            self._place.check()
            self.segments.mkdir(exist_ok=True)
            sync_directory(self.directory)

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        """Check that the tables are tables, and exactly those that an index makes."""
        held = dict(connection.execute("SELECT sql, type FROM sqlite_master WHERE sql IS NOT NULL"))
        wanted = _OLDER_SCHEMA + (_ADDED_SCHEMA if self._has_checksums(connection) else ())
        if any(held.get(statement) != "table" for statement in wanted):
            raise self._damage("its tables are not those of an index")
        if {"view", "trigger"} & set(held.values()):
            raise self._damage("it has a view or a trigger, which no index has")

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def read(self) -> Lease:
        """A connection that sees the state of one commit."""
        return self._database.lend()

    def write(self) -> Change:
        """A connection that holds the write lock, and whose changes are committed together at the end, or not at all.

        Raises:
            PermissionError: If the index is read-only.
        """
        if self.read_only:
            raise PermissionError(f"the index {self.directory} was opened with read_only=True. Open it without.")
        return Change(self)

    def renew(self, connection: sqlite3.Connection, missing: FileNotFoundError) -> None:
        """Let a reading connection see the newest commit, after a segment's file was not found.

        Raises:
            ValueError: If there is no newer one, so that no writer removed it.
        """
        self._place.check()
        before = self.generation(connection)
        connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        if self.generation(connection) == before:
            raise self._damage(f"{missing.filename} is missing") from missing

    def _damage(self, reason: str) -> ValueError:
        return ValueError(f"the index {self.directory} is damaged: {reason}. Restore it from a copy.")

    def new_segment(self) -> Path:
        """A directory name that was never used, and that tells which index made it. Only in a change."""
        name = f"{self._identity}-{uuid.uuid4().hex}"
        self._made.append(name)
        return self.segments / name

    # What follows works inside a transaction, on its connection.

    def state(self, connection: sqlite3.Connection) -> tuple[int, int, dict[str, Any]]:
        """Generation, next key, settings.

        Raises:
            ValueError: If they are damaged.
        """
        rows = connection.execute("SELECT generation, next_key, settings FROM state").fetchall()
        try:
            ((generation, next_key, settings),) = rows
            return int(generation), int(next_key), dict(json.loads(settings))
        except (TypeError, ValueError, RecursionError) as err:
            raise self._damage("its settings cannot be read") from err

    def generation(self, connection: sqlite3.Connection) -> int:
        """The number of the last commit.

        Raises:
            ValueError: If it is damaged.
        """
        row = connection.execute("SELECT generation FROM state").fetchone()
        if row is None or not isinstance(row[0], int):
            raise self._damage("its state cannot be read")
        return row[0]

    def segment_files(self, connection: sqlite3.Connection) -> dict[str, Files]:
        """Names of the live segments in order, and their files.

        Raises:
            ValueError: If a name is not one that an index gives.
        """
        found: dict[str, Files] = {}
        for name, text in connection.execute("SELECT name, files FROM segments ORDER BY first_key"):
            files = segment_files_of(text)
            if files is None or not is_segment_name(name) or name in found:
                raise self._damage(f"it names a segment {name!r:.80} or files of it as no index does")
            found[name] = files
        return found

    def tombstones(self, connection: sqlite3.Connection) -> list[int]:
        """Keys of the rows that segments hold and that are deleted, ascending."""
        return [key for (key,) in connection.execute("SELECT key FROM tombstones ORDER BY key")]

    def dead_keys(self, connection: sqlite3.Connection) -> NDArray[np.int64]:
        """:meth:`tombstones`, read only where they are others than the last time.

        Raises:
            ValueError: If they do not have their checksum.
        """
        if not self._has_checksums(connection):
            return np.array(self.tombstones(connection), np.int64)
        (total,) = connection.execute("SELECT tombstones FROM catalog").fetchone()
        known, keys = self._dead
        if known != total:
            keys = np.array(self.tombstones(connection), np.int64)
            if _tombstone_sum(keys) != total:
                raise self._damage("its deleted rows do not have the checksum that they had")
            self._dead = total, keys
        return keys

    def save_settings(self, connection: sqlite3.Connection, settings: dict[str, Any]) -> None:
        """Replace the settings."""
        connection.execute("UPDATE state SET settings = ?", (json.dumps(settings),))

    def _format(self, connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])

    def _has_checksums(self, connection: sqlite3.Connection) -> bool:
        return self._format(connection) > _WITHOUT_CHECKSUMS

    def _add_checksums(self, connection: sqlite3.Connection) -> None:
        """Make a new index, or one of the older format, one that keeps checksums of what is added from now on."""
        for statement in _ADDED_SCHEMA:
            connection.execute(statement)
        (next_key,) = connection.execute("SELECT next_key FROM state").fetchone()
        dead = np.array(self.tombstones(connection), np.int64)
        entry = uuid.uuid4().hex[:16], next_key, _tombstone_sum(dead), b""
        connection.execute("INSERT INTO catalog VALUES (?, ?, ?, ?)", entry)
        connection.execute(f"PRAGMA user_version = {FORMAT}")

    def _catalog_sum(self, connection: sqlite3.Connection) -> tuple[Any, bytes]:
        """The catalog's entry, and the checksum that it should have."""
        entry = connection.execute("SELECT identity, first_key, tombstones, checksum FROM catalog").fetchone()
        content = [
            None if entry is None else entry[:-1],
            connection.execute("SELECT * FROM state").fetchall(),
            connection.execute("SELECT * FROM segments ORDER BY first_key").fetchall(),
        ]
        return entry, hashlib.blake2b(repr(content).encode(), digest_size=16).digest()

    def _seal(self, connection: sqlite3.Connection) -> None:
        _, checksum = self._catalog_sum(connection)
        connection.execute("UPDATE catalog SET checksum = ?", (checksum,))

    def check_catalog(self, connection: sqlite3.Connection) -> None:
        """Compare state and list of segments with their checksum, which an index of the older format has not.

        Raises:
            ValueError: If they differ.
        """
        if self._has_checksums(connection):
            entry, checksum = self._catalog_sum(connection)
            if entry is None or entry[3] != checksum:
                raise self._damage("its state and its list of segments do not have the checksum that they had")

    def begin_change(self, connection: sqlite3.Connection) -> set[str]:
        """Check that this is the index that was opened, and as it was left; names of the segments."""
        self._place.check()
        self._place.check_single()
        if not self._has_checksums(connection):
            self._add_checksums(connection)
            self._seal(connection)
        elif self._format(connection) < FORMAT:
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        self.check_catalog(connection)
        (self._identity,) = connection.execute("SELECT identity FROM catalog").fetchone()
        self._made = []
        names = set(self.segment_files(connection))
        own = f"{self._identity}-"
        self.remove_segments({name for name in self._place.segment_names() if name.startswith(own)} - names)
        self._place.write_holder(f"process {os.getpid()} on {socket.gethostname()}")
        return names

    def end_change(self, connection: sqlite3.Connection) -> set[str]:
        """Count the change, and seal it; names of the segments."""
        connection.execute("UPDATE state SET generation = generation + 1")
        self._seal(connection)
        names = set(self.segment_files(connection))
        self._place.check()
        return names

    @property
    def num_made(self) -> int:
        """How many segments the change under way has begun."""
        return len(self._made)

    def remove_made(self, first: int) -> None:
        """Remove the segments that the change under way has begun, but for the first ones."""
        self.remove_segments(self._made[first:])

    def remove_segments(self, names: Iterable[str] | None = None) -> None:
        """Remove segments: those named, or those that the change under way has begun."""
        for name in list(self._made) if names is None else names:
            self._place.remove_segment(name, SEGMENT_FILES)

    def clear_error(self, err: BaseException) -> BaseException:
        """The documented error for one that ended a change."""
        if isinstance(err, sqlite3.Error):
            return self._database.clear_error(err)
        if isinstance(err, FileNotFoundError):  # no other writer can have removed it
            try:
                self._place.check()
            except ValueError as replaced:
                return replaced
            return self._damage(f"{err.filename} is missing")
        if isinstance(err, OSError) and err.errno is not None:
            return OSError(err.errno, f"{err.strerror}: nothing was changed in", str(self.directory))
        return err

    def check(self, connection: sqlite3.Connection, keys: NDArray[np.int64]) -> int:
        """Check the database, and that it holds the documents of these keys and no others, each as it was added.

        Returns:
            How many documents have no checksum, as an earlier version added them.

        Raises:
            ValueError: If it does not.
        """
        self._check_schema(connection)
        self.check_catalog(connection)
        (report,) = connection.execute("PRAGMA integrity_check").fetchone()
        if report != "ok":
            raise self._damage(str(report))
        held = [key for (key,) in connection.execute("SELECT key FROM documents ORDER BY key")]
        if not np.array_equal(np.array(held, np.int64), keys):
            raise self._damage("its documents are not those of its segments")
        if not self._has_checksums(connection):
            return len(held)
        first_key, total = connection.execute("SELECT first_key, tombstones FROM catalog").fetchone()
        if _tombstone_sum(np.array(self.tombstones(connection), np.int64)) != total:
            raise self._damage("its deleted rows do not have the checksum that they had")
        if (altered := self.documents.altered(connection, first_key)) is not None:
            raise self._damage(f"the document with the key {altered} does not have the checksum that it had")
        return sum(key < first_key for key in held)

    def delete(self, connection: sqlite3.Connection, keys: Collection[int]) -> None:
        """Delete documents; their rows in segments become tombstones."""
        self.documents.delete(connection, keys)
        connection.executemany("INSERT INTO tombstones VALUES (?)", [(key,) for key in keys])
        self._count_tombstones(connection, np.fromiter(keys, np.int64), np.empty(0, np.int64))

    def _count_tombstones(
        self, connection: sqlite3.Connection, new: NDArray[np.int64], old: NDArray[np.int64]
    ) -> None:
        (total,) = connection.execute("SELECT tombstones FROM catalog").fetchone()
        changed = _as_signed(total + _tombstone_sum(new) - _tombstone_sum(old))
        connection.execute("UPDATE catalog SET tombstones = ?", (changed,))
        known, keys = self._dead
        if known == total:  # true of any transaction that has this sum, whether this one is committed or not
            self._dead = changed, np.setdiff1d(np.union1d(keys, new), old, assume_unique=True)

    def replace_segments(
        self,
        connection: sqlite3.Connection,
        old: Sequence[str],
        new: tuple[Path, int, Files] | None,
        dead: Sequence[int],
    ) -> None:
        """Let one segment, with its first key, stand for some others whose deleted rows it no longer holds."""
        connection.executemany("DELETE FROM segments WHERE name = ?", [(name,) for name in old])
        connection.executemany("DELETE FROM tombstones WHERE key = ?", [(key,) for key in dead])
        self._count_tombstones(connection, np.empty(0, np.int64), np.array(dead, np.int64))
        if new is not None:
            directory, first_key, files = new
            connection.execute("INSERT INTO segments VALUES (?, ?, ?)", (first_key, directory.name, json.dumps(files)))


class Change:
    """A context that lends a connection with the write lock; what was done with it is committed when it is left.

    Enter it within ``contextlib.closing`` too: an interrupt at the very moment at which it is left is then made up
    for. Segments that were begun and not committed are removed, those that the commit replaced as well. Where it is
    not known whether the commit came about, the next change does that.

    Args:
        store: The index.

    Raises:
        OSError: If the disk is full or fails.
        TimeoutError: If another writer holds the lock for longer than the timeout.
        ValueError: If a file is missing or damaged, or the path leads to another index now.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._transaction = WriteTransaction(store._database)
        self._before: set[str] = set()
        self._replaced: set[str] = set()
        self._is_committing = self._has_begun = False

    def __enter__(self) -> sqlite3.Connection:
        try:
            connection = self._transaction.__enter__()
            self._before = self._store.begin_change(connection)
            self._has_begun = True
            return connection
        except BaseException as err:
            self._close_after(err)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if err is None:
                self._commit()
        except BaseException as failure:
            self._close_after(failure)
            raise
        self._close_after(err)

    def _commit(self) -> None:
        connection = self._transaction.connection
        if connection is None:  # the process was forked in between
            return
        after = self._store.end_change(connection)
        self._is_committing = True
        connection.execute("COMMIT")
        self._replaced = self._before - after

    def _close_after(self, err: BaseException | None) -> None:
        self.close()
        if err is not None and (clear := self._store.clear_error(err)) is not err:
            raise clear from err

    def close(self) -> None:
        """End the change where it was not ended."""
        if not self._transaction.is_running:
            return
        try:
            if self._has_begun and not self._is_committing:
                self._store.remove_segments()
            self._store.remove_segments(self._replaced)
        finally:
            self._transaction.close()


def _create_database(file: Path, timeout: float) -> None:
    """Make an empty database in write-ahead mode, without a journal on the disk."""
    uri = f"{file.as_uri()}?mode=rwc"
    with closing(sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)) as connection:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                connection.execute("PRAGMA journal_mode = MEMORY")
                connection.execute("PRAGMA journal_mode = WAL")  # kept in the file
        except sqlite3.OperationalError:
            if not file.stat().st_size:  # else another process was faster
                raise


_COPY_TIMEOUT = 30.0  # seconds to wait for a writer
_REPLACED = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "writer", SETTINGS_FILE)


def copy_index(source: Path, target: Path, files: Mapping[str, bytes] | None = None) -> None:
    """Copy the last commit of an index into a directory, whose index, if it has one, is replaced as a whole.

    Writers of the source wait; an open index on the target has to be opened anew. Whenever the process dies, the
    target is the old index or the new one: if it was to be renamed next, whoever opens it does so first. Files that
    lie beside the index in the target and are none of its own stay there.

    Args:
        source: The directory of an index.
        target: Directory; made where it is missing, with its parents.
        files: Contents of files to be put beside the index in the same step, by name.

    Raises:
        FileNotFoundError: If the source is no index.
        OSError: If it cannot be written, or a writer does not finish in time; the old one is kept.
        ValueError: If the target holds other files, but no index, or the source is damaged.
    """
    source, target = Path(os.path.abspath(source)), Path(os.path.realpath(target))
    for path in (source, target):
        finish_copy(path)
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.keytokens-{uuid.uuid4().hex}")
    with ExitStack() as stack:
        for _ in range(2):  # twice, so that an interrupt of the first leaves nothing either
            stack.callback(shutil.rmtree, new, ignore_errors=True)
        _remove_abandoned(target)
        new.mkdir()
        with suppress(ImportError, OSError):
            stack.callback(os.close, _locked(new))
        _copy(source, new)
        for name, content in (files or {}).items():
            with open(new / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_directory(new)
        _install(new, target)


_LEAST_AGE = 60.0  # seconds of a copy begun, before it can be one that was abandoned


def _locked(directory: Path) -> int:
    """A descriptor with the lock on a directory, which ends with its process; an OSError if another one has it."""
    import fcntl  # not on Windows

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_abandoned(target: Path) -> None:
    """Remove what copies to a target left beside it that were killed before they could replace anything."""
    begin = re.compile(re.escape(f".{target.name}.keytokens-") + "[0-9a-f]{32}")
    with suppress(OSError):
        for entry in list(target.parent.iterdir()):
            if begin.fullmatch(entry.name) and time.time() - entry.lstat().st_mtime > _LEAST_AGE:
                with suppress(ImportError, OSError):
                    descriptor = _locked(entry)
                    try:
                        _remove_index(entry)
                    finally:
                        os.close(descriptor)


def _check_replaceable(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir() or (not os.path.lexists(target / DATABASE) and any(target.iterdir())):
        raise ValueError(f"path must be an index, an empty directory or new, got {target} with other files.")
    if os.path.lexists(target / DATABASE):
        check_regular(target / DATABASE)
        uri = f"{(target / DATABASE).as_uri()}?mode=ro"
        found: object = None
        with closing(sqlite3.connect(uri, uri=True, timeout=_COPY_TIMEOUT)) as connection, suppress(sqlite3.Error):
            (found,) = connection.execute("PRAGMA application_id").fetchone()
        if found != APPLICATION_ID:
            raise ValueError(
                f"path must be an index, an empty directory or new, got {target} with a database that is another's "
                "or damaged. Remove it first."
            )


def _copy(source: Path, new: Path) -> None:
    database = Database(IndexDirectory(source), read_only=False, is_durable=True, timeout=_COPY_TIMEOUT)
    writing = WriteTransaction(database)
    try:
        with (
            closing(database),
            closing(writing),
            writing as writer,  # nobody changes segments meanwhile
            database.lend() as reader,
            closing(sqlite3.connect(new / DATABASE)) as copy,
        ):
            (new / SEGMENTS).mkdir()
            for name, text in writer.execute("SELECT name, files FROM segments"):  # what is beside them is leftovers
                files = segment_files_of(text)
                if files is None or not is_segment_name(name):
                    raise ValueError(
                        f"the index {source} is damaged: it names a segment {name!r:.80} as no index does."
                    )
                (new / SEGMENTS / name).mkdir()
                for file in files:
                    _copy_file(source / SEGMENTS / name / file, new / SEGMENTS / name / file)
                sync_directory(new / SEGMENTS / name)
            sync_directory(new / SEGMENTS)
            reader.backup(copy)
    except TimeoutError as err:
        reason = err.__cause__ or err
        raise OSError(f"the index {source} could not be copied: {reason}. Nothing was changed; try again.") from err


def _copy_file(source: Path, target: Path) -> None:
    check_regular(source)
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())


def _beside(target: Path) -> tuple[Path, Path]:
    """Where a new index waits to take the place of an old one, and where the old one goes."""
    return target.with_name(f".{target.name}.keytokens-new"), target.with_name(f".{target.name}.keytokens-old")


def _install(new: Path, target: Path) -> None:
    """Let a new index take the place of what is at the target, in steps that :func:`finish_copy` can finish."""
    waiting, old = _beside(target)
    _remove_index(waiting)  # of a process that died before it began to replace
    try:
        new.rename(waiting)
        sync_directory(target.parent)
        if target.exists():
            target.rename(old)
        waiting.rename(target)
    except BaseException as err:
        is_in_place = target.exists() and not waiting.exists()  # finished by somebody who opened it meanwhile
        if not target.exists() and old.exists():
            old.rename(target)
        if not (is_in_place and isinstance(err, FileNotFoundError)):
            if not is_in_place:
                _remove_index(waiting)
            finish_copy(target)
            raise
    sync_directory(target.parent)
    finish_copy(target)


def finish_copy(target: Path) -> None:
    """Finish what a process left that died while it replaced the index at this path by a copy."""
    waiting, old = _beside(target)
    with suppress(OSError):  # where it cannot be written, or another process was faster
        for kept in (waiting, old):
            if not os.path.lexists(target) and os.path.lexists(kept / DATABASE):
                kept.rename(target)
                sync_directory(target.parent)
        if os.path.lexists(target / DATABASE) and os.path.lexists(old):
            for entry in list(old.iterdir()):
                if entry.name not in (*_REPLACED, SEGMENTS) and not os.path.lexists(target / entry.name):
                    entry.rename(target / entry.name)
            _remove_index(old)


def _remove_index(directory: Path) -> None:
    """Remove the files of an index, and its directory if nothing else is in it."""
    with suppress(OSError):
        check_regular(directory, is_directory=True)
        for segment in (directory / SEGMENTS).glob("*"):
            if is_segment_name(segment.name) and not segment.is_symlink():
                for name in SEGMENT_FILES:
                    (segment / name).unlink(missing_ok=True)
                segment.rmdir()
        for name in _REPLACED:
            (directory / name).unlink(missing_ok=True)
        if (directory / SEGMENTS).is_dir():
            (directory / SEGMENTS).rmdir()
        directory.rmdir()
