"""Connections to one SQLite file: a pool for any number of threads, transactions, forks, and errors made clear."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

__all__ = ["Database", "Transaction"]

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

    def transaction(self, begin: str = "BEGIN") -> Transaction:
        """Lend a connection in a transaction, which is rolled back at the end if it was not committed.

        The errors come when it is entered or left.

        Args:
            begin: ``"BEGIN"`` to read the state of the last commit, ``"BEGIN IMMEDIATE"`` to hold the write lock.

        Raises:
            OSError: If the disk is full or fails.
            PermissionError: If the file cannot be written.
            RuntimeError: If this process was forked inside a transaction.
            TimeoutError: If another writer holds the lock for longer than the timeout.
            ValueError: If the database is closed or damaged.
        """
        return Transaction(self, begin)

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
    """What :meth:`Database.transaction` gives: a context with a connection. Generators cost a search more time."""

    __slots__ = ("_begin", "_connection", "_database", "frozen")

    def __init__(self, database: Database, begin: str) -> None:
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
