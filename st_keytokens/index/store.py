"""What an index keeps in SQLite: documents, settings, deleted rows, and the list of live segments.

A change is one transaction: segment files are on the disk before it commits, and exist because it commits. SQLite's
write lock is the index's write lock.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import tempfile
import threading
import uuid
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from st_keytokens.checks import check_choice, checked_int
from st_keytokens.index.documents import DocumentTable
from st_keytokens.index.segments import Files, sync_directory
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Database",
    "Encoder",
    "Store",
    "Transaction",
    "as_hybrid",
    "check_settings",
    "check_sizes",
    "copy_index",
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
        ValueError: If they are not.
    """
    if vocab_size not in (None, embeddings.sparse.vocab_size):
        raise ValueError(
            f"{name} must have vocab_size {vocab_size}, as the index has, got {embeddings.sparse.vocab_size}. "
            "Use the encoder that the index was made with."
        )
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


FileState = tuple[int, int, int]

# A forked process must not use or close its parent's connections, nor open another to a file that they have open:
# SQLite would take the parent's locks for its own. So idle ones are closed before a fork, and opened anew after it.
_pools = threading.RLock()  # held over a fork, so that none is opened meanwhile
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[Transaction] = []  # kept, so that their connections are not closed
_unsafe_files: set[tuple[int, int]] = set()


class Database:
    """A pool of connections. A transaction takes one for itself, so threads and processes do not meet in one.

    The file is in write-ahead mode: readers see the state of one commit and never wait for the writer.

    Args:
        file: The SQLite file, made where it is missing, unless read only.
        read_only: Whether writing is refused.
        is_durable: Whether a commit waits for the disk.
        timeout: Seconds to wait for another writer.
    """

    def __init__(self, file: Path, *, read_only: bool, is_durable: bool, timeout: float) -> None:
        self.file, self.read_only, self.is_durable, self.timeout = file, read_only, is_durable, timeout
        self._idle: list[sqlite3.Connection] = []
        self._running: set[Transaction] = set()
        self._is_closed = False
        self._frozen: FileState | None = None  # what the file was when it was found that nobody can be writing to it
        with _pools:
            _databases.add(self)

    @property
    def _index(self) -> str:
        return f"the index {self.file.parent}"

    def close(self) -> None:
        """Close every connection; those in use close when they are done."""
        self._is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        with _pools:
            while self._idle:
                self._idle.pop().close()

    def _lent(self, transaction: Transaction) -> sqlite3.Connection:
        with _pools:
            if self._is_closed:
                raise ValueError(f"{self._index} is closed. Open it again.")
            if self._frozen is not None and self._frozen != self._state():
                self._close_idle()
                self._frozen = None
            self._running.add(transaction)
            transaction.frozen = self._frozen
            if self._idle:
                return self._idle.pop()
        return self._connected(transaction)

    def _taken_back(self, transaction: Transaction, connection: sqlite3.Connection | None) -> None:
        with _pools:
            self._running.discard(transaction)
            if connection is not None:
                if transaction.frozen == self._frozen:
                    self._idle.append(connection)
                else:
                    connection.close()
            if self._is_closed:
                self._close_idle()

    @property
    def _holder(self) -> Path:
        return self.file.with_name("writer")

    def _connected(self, transaction: Transaction) -> sqlite3.Connection:
        if _unsafe_files and _identity(self.file) in _unsafe_files:
            raise RuntimeError(
                f"{self._index} must not be in use when a process is forked, but it was, by a search or a change. "
                "Fork at another time, or start processes by spawn."
            )
        if self.read_only:
            connection = self._connected_read_only(transaction)
        else:
            connection = self._connected_to_write()
        connection.execute("PRAGMA cache_size = -32768")  # 32 MiB, taken as needed
        connection.execute(f"PRAGMA mmap_size = {1 << 30}")  # halves the time to read a document for the first time
        return connection

    def _connected_to_write(self) -> sqlite3.Connection:
        is_new = not self.file.exists() or not self.file.stat().st_size
        connection = self._opened("mode=rwc")
        try:
            if is_new:
                connection.execute("PRAGMA journal_mode = WAL")  # kept in the file
            connection.execute(f"PRAGMA synchronous = {'FULL' if self.is_durable else 'OFF'}")
            connection.execute(f"PRAGMA journal_size_limit = {1 << 26}")
            return connection
        except BaseException:
            connection.close()
            raise

    def _connected_read_only(self, transaction: Transaction) -> sqlite3.Connection:
        if transaction.frozen is None:
            state = self._state()
            connection = self._opened("mode=ro")
            try:
                connection.execute("SELECT count(*) FROM sqlite_master")
                return connection
            except sqlite3.OperationalError:  # no shared memory can be made beside the file: then nobody writes to it
                connection.close()
                if state[2]:
                    raise
            with _pools:
                transaction.frozen = self._frozen = state
        return self._opened("mode=ro&immutable=1")

    def _state(self) -> FileState:
        """Time and size of the file, and size of the write-ahead log."""
        status, log = self.file.stat(), self.file.with_name(self.file.name + "-wal")
        return status.st_mtime_ns, status.st_size, log.stat().st_size if log.exists() else 0

    def _opened(self, options: str) -> sqlite3.Connection:
        uri = f"{self.file.absolute().as_uri()}?{options}"
        return sqlite3.connect(uri, uri=True, timeout=self.timeout, isolation_level=None, check_same_thread=False)

    def _clear_error(self, err: sqlite3.Error) -> Exception:
        message = str(err)
        if "locked" in message or "busy" in message:
            holder = "another writer"
            with suppress(OSError):
                holder = self._holder.read_text()
            return TimeoutError(
                f"{self._index} is being written by {holder}; waited {self.timeout} s. "
                "Try again later, or open it with a longer timeout."
            )
        if "readonly" in message:
            return PermissionError(f"{self._index} must be writable: {message}.")
        if isinstance(err, sqlite3.OperationalError):
            return OSError(f"{self._index} could not be read or written: {message}. Nothing was changed.")
        return ValueError(f"{self._index} is damaged: {message}. Restore it from a copy.")


class Transaction:
    """A context that lends a connection in a transaction, which is rolled back at the end if it was not committed.

    The errors come when it is entered or left. A class, as a generator would cost a search more time.

    Args:
        database: The pool.
        begin: ``"BEGIN"`` to read the state of the last commit, ``"BEGIN IMMEDIATE"`` to hold the write lock.

    Raises:
        OSError: If the disk is full or fails.
        PermissionError: If the file cannot be written.
        RuntimeError: If this process was forked inside a transaction.
        TimeoutError: If another writer holds the lock for longer than the timeout.
        ValueError: If the database is closed or damaged.
    """

    __slots__ = ("_begin", "_connection", "_database", "frozen")

    def __init__(self, database: Database, begin: str = "BEGIN") -> None:
        self._database, self._begin = database, begin
        self.frozen: FileState | None = None
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> sqlite3.Connection:
        database = self._database
        try:
            connection = self._connection = database._lent(self)
            connection.execute(self._begin)
            if self._begin != "BEGIN":
                with suppress(OSError):  # only to be named in another process's error
                    database._holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            return connection
        except BaseException as err:
            database._taken_back(self, self._connection)
            if isinstance(err, sqlite3.Error):
                raise database._clear_error(err) from err
            raise

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, traceback: TracebackType | None
    ) -> None:
        database, connection = self._database, self._connection
        if connection is None or self not in database._running:  # the process was forked in between
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        finally:
            database._taken_back(self, connection)
        if isinstance(err, sqlite3.Error):
            raise database._clear_error(err) from err


def _identity(file: Path) -> tuple[int, int]:
    """What SQLite knows a file by."""
    status = file.stat()
    return status.st_dev, status.st_ino


def _before_fork() -> None:
    _pools.acquire()
    for database in list(_databases):
        database._close_idle()


def _after_fork_in_child() -> None:
    for database in list(_databases):
        if database._running:
            _inherited.extend(database._running)
            database._running.clear()
            with suppress(OSError):
                _unsafe_files.add(_identity(database.file))
    _pools.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_pools.release, after_in_child=_after_fork_in_child)


_DATABASE, _SEGMENTS = "index.sqlite", "segments"
APPLICATION_ID = 0x53544B54  # "STKT"
FORMAT = 2
SCHEMA = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
    "CREATE TABLE state (generation INTEGER NOT NULL, next_key INTEGER NOT NULL, settings TEXT NOT NULL)",
    *DocumentTable.SCHEMA,
    "CREATE TABLE segments (first_key INTEGER PRIMARY KEY, name TEXT NOT NULL, files TEXT NOT NULL)",
    "CREATE TABLE tombstones (key INTEGER PRIMARY KEY)",
)


class Store:
    """The database and the segment directories of one index.

    Args:
        directory: The index.
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
        ValueError: If the directory is no index, or one of another format.
    """

    def __init__(
        self, directory: Path, settings: dict[str, Any], *, read_only: bool, is_durable: bool, timeout: float
    ) -> None:
        self.directory, self.segments = directory, directory / _SEGMENTS
        self.read_only, self.is_durable = read_only, is_durable
        file = directory / _DATABASE
        if directory.exists() and not directory.is_dir():
            raise NotADirectoryError(f"path must be a directory, got the file {directory}.")
        if not file.exists():
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
        self.documents = DocumentTable()
        self._database = Database(file, read_only=read_only, is_durable=is_durable, timeout=timeout)
        try:
            self._create_or_check(settings)
        except BaseException:
            self.close()
            raise

    def _create_or_check(self, settings: dict[str, Any]) -> None:
        def number(pragma: str) -> int:
            return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])

        with self.read() as connection:
            is_blank = number("schema_version") == 0
        if is_blank and not self.read_only:
            with Transaction(self._database, "BEGIN IMMEDIATE") as connection:
                if number("schema_version") == 0:  # no other process was faster
                    for statement in SCHEMA:
                        connection.execute(statement)
                    connection.execute("INSERT INTO state VALUES (1, 0, ?)", (json.dumps(settings),))
                    connection.execute("COMMIT")
        with self.read() as connection:
            if number("application_id") != APPLICATION_ID:
                raise ValueError(f"path must be an index of st-keytokens, got {self.directory} with another database.")
            if (found := number("user_version")) != FORMAT:
                raise ValueError(f"the index {self.directory} has format {found}, but this version reads {FORMAT}.")
        if not self.read_only:
            self.segments.mkdir(exist_ok=True)
            sync_directory(self.directory)

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def read(self) -> Transaction:
        """A connection that sees the state of one commit."""
        return Transaction(self._database)

    def renew(self, connection: sqlite3.Connection, missing: FileNotFoundError) -> None:
        """Let a reading connection see the newest commit, after a segment's file was not found.

        Raises:
            ValueError: If that commit has the segment still, so that no writer removed it.
        """
        connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        if Path(missing.filename).parent.name in self.segment_files(connection):
            raise self._damaged(missing) from missing

    def _damaged(self, missing: FileNotFoundError) -> ValueError:
        return ValueError(
            f"the index {self.directory} is damaged: {missing.filename} is missing. Restore it from a copy."
        )

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A connection that holds the write lock, and whose changes are committed together at the end, or not at all.

        Raises:
            OSError: If the disk is full or fails.
            PermissionError: If the index is read-only.
            TimeoutError: If another writer holds the lock for longer than the timeout.
            ValueError: If a file is missing.
        """
        if self.read_only:
            raise PermissionError(f"the index {self.directory} was opened with read_only=True. Open it without.")
        with Transaction(self._database, "BEGIN IMMEDIATE") as connection:
            before = set(self.segment_files(connection))
            is_committing = False
            try:
                self._remove_segments_but(before)  # what a writer left that died
                yield connection
                connection.execute("UPDATE state SET generation = generation + 1")
                after = set(self.segment_files(connection))
                is_committing = True
                connection.execute("COMMIT")
            except BaseException as err:
                # The lock is still held, so nobody else's segment is half written. A commit that fails may still be
                # found in the log after a crash, so its segments are left to the next writer.
                if connection.in_transaction and not is_committing:
                    self._remove_segments_but(before)
                if isinstance(err, FileNotFoundError):  # no other writer can have removed it
                    raise self._damaged(err) from err
                if isinstance(err, OSError):
                    raise OSError(err.errno, f"{err.strerror}: nothing was changed in", str(self.directory)) from err
                raise
        for name in before - after:
            shutil.rmtree(self.segments / name, ignore_errors=True)

    def _remove_segments_but(self, names: set[str]) -> None:
        for entry in self.segments.iterdir():
            if entry.name not in names:  # what cannot be removed now, the next writer removes
                shutil.rmtree(entry, ignore_errors=True)

    def new_segment(self) -> Path:
        """A directory name that was never used."""
        return self.segments / uuid.uuid4().hex

    # What follows works inside a transaction, on its connection.

    def state(self, connection: sqlite3.Connection) -> tuple[int, int, dict[str, Any]]:
        """Generation, next key, settings."""
        generation, next_key, settings = connection.execute("SELECT * FROM state").fetchone()
        return generation, next_key, json.loads(settings)

    def generation(self, connection: sqlite3.Connection) -> int:
        """The number of the last commit."""
        return int(connection.execute("SELECT generation FROM state").fetchone()[0])

    def segment_files(self, connection: sqlite3.Connection) -> dict[str, Files]:
        """Names of the live segments in order, and their files."""
        rows = connection.execute("SELECT name, files FROM segments ORDER BY first_key")
        return {name: json.loads(files) for name, files in rows}

    def tombstones(self, connection: sqlite3.Connection) -> list[int]:
        """Keys of the rows that segments hold and that are deleted, ascending."""
        return [key for (key,) in connection.execute("SELECT key FROM tombstones ORDER BY key")]

    def save_settings(self, connection: sqlite3.Connection, settings: dict[str, Any]) -> None:
        """Replace the settings."""
        connection.execute("UPDATE state SET settings = ?", (json.dumps(settings),))

    def check(self, connection: sqlite3.Connection, keys: NDArray[np.int64]) -> None:
        """Check the database, and that it holds the documents of these keys and no others.

        Raises:
            ValueError: If it does not.
        """
        (report,) = connection.execute("PRAGMA integrity_check").fetchone()
        held = connection.execute("SELECT key FROM documents ORDER BY key").fetchall()
        if report != "ok" or not np.array_equal(np.array(held, np.int64).reshape(-1), keys):
            reason = report if report != "ok" else "its documents are not those of its segments"
            raise ValueError(f"the index {self.directory} is damaged: {reason}. Restore it from a copy.")

    def delete(self, connection: sqlite3.Connection, keys: Collection[int]) -> None:
        """Delete documents; their rows in segments become tombstones."""
        self.documents.delete(connection, keys)
        connection.executemany("INSERT INTO tombstones VALUES (?)", [(key,) for key in keys])

    def replace_segments(
        self,
        connection: sqlite3.Connection,
        old: Sequence[str],
        new: tuple[Path, int, Files] | None,
        dead: Iterable[int],
    ) -> None:
        """Let one segment, with its first key, stand for some others whose deleted rows it no longer holds."""
        connection.executemany("DELETE FROM segments WHERE name = ?", [(name,) for name in old])
        connection.executemany("DELETE FROM tombstones WHERE key = ?", [(key,) for key in dead])
        if new is not None:
            directory, first_key, files = new
            connection.execute("INSERT INTO segments VALUES (?, ?, ?)", (first_key, directory.name, json.dumps(files)))


_COPY_TIMEOUT = 30.0  # seconds to wait for a writer


def copy_index(source: Path, target: Path) -> None:
    """Copy the last commit of an index into a directory, whose index, if it has one, is replaced as a whole.

    Writers of the source wait; an open index on the target has to be opened anew.

    Args:
        source: The directory of an index.
        target: Directory; made where it is missing, with its parents.

    Raises:
        OSError: If it cannot be written, or a writer does not finish in time; the old one is kept.
        ValueError: If the target holds other files, but no index.
    """
    if target.exists() and not (target / _DATABASE).exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"path must be an index, an empty directory or new, got {target} with other files.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        new, old = Path(folder, "new"), Path(folder, "old")
        new.mkdir()
        try:
            _copy(source, new)
        except sqlite3.OperationalError as err:
            raise OSError(f"the index {source} could not be copied: {err}. Nothing was changed; try again.") from err
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        sync_directory(target.parent)


def _copy(source: Path, new: Path) -> None:
    with (
        closing(sqlite3.connect(source / _DATABASE, timeout=_COPY_TIMEOUT, isolation_level=None)) as writer,
        closing(sqlite3.connect(source / _DATABASE)) as reader,
        closing(sqlite3.connect(new / _DATABASE)) as copy,
    ):
        writer.execute("BEGIN IMMEDIATE")  # nobody changes segments meanwhile
        (new / _SEGMENTS).mkdir()
        for (name,) in writer.execute("SELECT name FROM segments"):  # what is beside them is about to be removed
            shutil.copytree(source / _SEGMENTS / name, new / _SEGMENTS / name, copy_function=_copy_file)
        reader.backup(copy)
        writer.execute("ROLLBACK")


def _copy_file(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())
