"""The SQLite database of an index: connections for many threads and processes, and transactions on them."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from contextlib import suppress
from types import TracebackType

from st_keytokens.index.directory import IndexDirectory

__all__ = ["Database", "Transaction"]


FileState = tuple[int, int, int]

# A forked process must not use or close its parent's connections, nor open another to a file that they have open:
# SQLite would take the parent's locks for its own. So idle ones are closed before a fork, and opened anew after it.
_pools = threading.RLock()  # held over a fork, so that none is opened meanwhile
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[Transaction] = []  # kept, so that their connections are not closed
_unsafe_files: set[tuple[int, int]] = set()
_PATIENCE = 0.1  # seconds that SQLite waits at once: a signal is only seen in between


class Database:
    """A pool of connections. A transaction takes one for itself, so threads and processes do not meet in one.

    The file is in write-ahead mode: readers see the state of one commit and never wait for the writer. A connection
    is lent only while the path leads to the file that was opened.

    Args:
        directory: Where the SQLite file is.
        read_only: Whether writing is refused.
        is_durable: Whether a commit waits for the disk.
        timeout: Seconds to wait for another writer.
    """

    def __init__(self, directory: IndexDirectory, *, read_only: bool, is_durable: bool, timeout: float) -> None:
        self.directory, self.file = directory, directory.file
        self.read_only, self.is_durable, self.timeout = read_only, is_durable, timeout
        self._idle: list[sqlite3.Connection] = []
        self._running: set[weakref.ref[Transaction]] = set()  # a WeakSet would cost a search more time
        self._is_closed = False
        self._frozen: FileState | None = None  # what the file was when it was found that nobody can be writing to it
        with _pools:
            _databases.add(self)

    @property
    def _index(self) -> str:
        return f"the index {self.file.parent}"

    def close(self) -> None:
        """Close every connection; those in use close when they are done."""
        with _pools:
            self._is_closed = True
            self._close_idle()
            if not self._running:
                self.directory.close()

    def _close_idle(self) -> None:
        with _pools:
            while self._idle:
                self._idle.pop().close()

    def _lent(self, transaction: Transaction) -> sqlite3.Connection:
        with _pools:
            if self._is_closed:
                raise ValueError(f"{self._index} is closed. Open it again.")
            self.directory.check_file() if transaction.is_reading else self.directory.check()
            if self._frozen is not None and self._frozen != self._state():
                self._close_idle()
                self._frozen = None
            self._running.add(transaction.reference)
            transaction.frozen = self._frozen
            if self._idle:
                return self._idle.pop()
        return self._connected(transaction)

    def _taken_back(self, transaction: Transaction, connection: sqlite3.Connection | None) -> None:
        with _pools:
            self._running.discard(transaction.reference)
            if connection is not None:
                if transaction.frozen == self._frozen and not connection.in_transaction:
                    self._idle.append(connection)
                else:
                    connection.close()
            if self._is_closed:
                self.close()

    def _connected(self, transaction: Transaction) -> sqlite3.Connection:
        if _unsafe_files and self.directory.number in _unsafe_files:
            raise RuntimeError(
                f"{self._index} must not be in use when a process is forked, but it was, by a search or a change. "
                "Fork at another time, or start processes by spawn."
            )
        connection = self._connected_read_only(transaction) if self.read_only else self._opened("mode=rw")
        try:
            self.directory.check()  # so what was opened is the file that was there before and is there after
            if not self.read_only:
                connection.execute(f"PRAGMA synchronous = {'FULL' if self.is_durable else 'OFF'}")
                connection.execute(f"PRAGMA journal_size_limit = {1 << 26}")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA cache_size = -32768")  # 32 MiB, taken as needed
            connection.execute(f"PRAGMA mmap_size = {1 << 30}")  # halves the time of a first read
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
        uri = f"{self.file.as_uri()}?{options}"
        return sqlite3.connect(uri, uri=True, timeout=self.timeout, isolation_level=None, check_same_thread=False)

    def clear_error(self, err: sqlite3.Error) -> Exception:
        """The documented error for one of SQLite."""
        message = str(err)
        if "locked" in message or "busy" in message:
            return TimeoutError(
                f"{self._index} is being written by {self.directory.read_holder()}; waited {self.timeout} s. "
                "Try again later, or open it with a longer timeout."
            )
        if "readonly" in message:
            return PermissionError(f"{self._index} must be writable: {message}.")
        is_damage = any(part in message for part in ("malformed", "no such", "decode", "not a database", "corrupt"))
        if isinstance(err, sqlite3.OperationalError) and not is_damage:
            return OSError(f"{self._index} could not be read or written: {message}. Nothing was changed.")
        return ValueError(f"{self._index} is damaged: {message}. Restore it from a copy.")


class Transaction:
    """A context that lends a connection in a transaction, which is rolled back at the end if it was not committed.

    The errors come when it is entered or left. A class, as a generator would cost a search more time. An interrupt
    within ``__exit__`` leaves it open until :meth:`close`, or until nothing refers to it.

    Args:
        database: Lends the connection.
        begin: The statement that begins the transaction.

    Attributes:
        is_reading: Whether nothing is to be written.
        frozen: State of the file when it was found that nobody can be writing to it, None where somebody can.
        reference: A weak reference to it, which the database holds while it runs.
    """

    __slots__ = ("__weakref__", "_begin", "_database", "connection", "frozen", "is_reading", "reference")

    def __init__(self, database: Database, begin: str = "BEGIN") -> None:
        self._database, self._begin = database, begin
        self.reference = weakref.ref(self, database._running.discard)
        hash(self.reference)  # which it keeps, and is discarded by when this is gone
        self.is_reading = begin == "BEGIN"
        self.frozen: FileState | None = None
        self.connection: sqlite3.Connection | None = None

    def __enter__(self) -> sqlite3.Connection:
        try:
            connection = self.connection = self._database._lent(self)
            if self.is_reading:
                connection.execute("BEGIN")
            else:
                self._wait(connection)
            return connection
        except BaseException as err:
            self.close()
            if isinstance(err, sqlite3.Error):
                raise self._database.clear_error(err) from err
            raise

    def _wait(self, connection: sqlite3.Connection) -> None:
        """Wait for the lock in short steps, so that an interrupt is noticed."""
        end = time.monotonic() + self._database.timeout
        while True:
            left = max(0.0, min(_PATIENCE, end - time.monotonic()))
            connection.execute(f"PRAGMA busy_timeout = {round(left * 1000)}")
            try:
                connection.execute(self._begin)
                break
            except sqlite3.OperationalError as err:
                if time.monotonic() >= end or ("locked" not in str(err) and "busy" not in str(err)):
                    raise
        connection.execute(f"PRAGMA busy_timeout = {round(self._database.timeout * 1000)}")

    @property
    def is_running(self) -> bool:
        """Whether it was begun and not ended, and not by a process that was forked since."""
        return self.reference in self._database._running

    def close(self) -> None:
        """End the transaction where it was not ended."""
        connection = self.connection
        if self.is_running:
            try:
                if connection is not None and connection.in_transaction:
                    connection.execute("ROLLBACK")
            finally:
                self.connection = None
                self._database._taken_back(self, connection)

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(err, sqlite3.Error):
            raise self._database.clear_error(err) from err

    def __del__(self) -> None:
        connection = getattr(self, "connection", None)  # an interrupt in __init__ leaves none
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _before_fork() -> None:
    _pools.acquire()
    for database in list(_databases):
        database._close_idle()


def _after_fork_in_child() -> None:
    for database in list(_databases):
        database.directory.close_file()
        if database._running:
            _inherited.extend(running for reference in database._running if (running := reference()) is not None)
            database._running.clear()
            _unsafe_files.add(database.directory.number)
    _pools.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_pools.release, after_in_child=_after_fork_in_child)
