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

__all__ = ["Database", "Lease", "WriteTransaction"]


FileState = tuple[int, int, int]

# A forked process must not use or close its parent's connections, nor open another to a file that they have open:
# SQLite would take the parent's locks for its own. So idle ones are closed before a fork, and opened anew after it.
_pools = threading.RLock()  # held over a fork, so that none is opened meanwhile
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[Lease] = []  # kept, so that their connections are not closed
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
        self._idle: list[Lease] = []
        self._running: set[weakref.ref[Lease]] = set()  # a WeakSet would cost a search more time
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

    def lend(self, is_reading: bool = True) -> Lease:
        """A connection for one transaction.

        Raises:
            OSError: If the file cannot be opened.
            ValueError: If the index is closed or damaged, or the path leads to another one now.
        """
        with _pools:
            if self._is_closed:
                raise ValueError(f"{self._index} is closed. Open it again.")
            self.directory.check_file() if is_reading else self.directory.check()
            if self._frozen is not None and self._frozen != self._state():
                self._close_idle()
                self._frozen = None
            lease = self._idle.pop() if self._idle else Lease(self)
            lease.frozen = self._frozen
            lease.count += 1
            self._running.add(lease.reference)
        if lease.connection is None:
            try:
                lease.open(self._connected(lease))
            except BaseException as err:
                lease.__exit__(type(err), err, None)
                raise
        return lease

    def _connected(self, lease: Lease) -> sqlite3.Connection:
        if _unsafe_files and self.directory.number in _unsafe_files:
            raise RuntimeError(
                f"{self._index} must not be in use when a process is forked, but it was, by a search or a change. "
                "Fork at another time, or start processes by spawn."
            )
        connection = self._connected_read_only(lease) if self.read_only else self._opened("mode=rw")
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

    def _connected_read_only(self, lease: Lease) -> sqlite3.Connection:
        if lease.frozen is None:
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
                lease.frozen = self._frozen = state
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


class Lease:
    """A connection that is lent, and a context that reads what one commit holds; lent again when it is left.

    A search takes one, so it is an object that is made once, not a generator. An interrupt within ``__exit__`` leaves
    it open until nothing refers to it.

    Attributes:
        connection: What is lent.
        count: How often it was lent.
        cursor: What begins and ends its transactions; making one takes as long as that.
        frozen: State of the file when it was found that nobody can be writing to it, None where somebody can.
        reference: A weak reference to it, which the database holds while it is lent.
    """

    __slots__ = ("__weakref__", "_database", "connection", "count", "cursor", "frozen", "reference")

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reference = weakref.ref(self, database._running.discard)
        hash(self.reference)  # which it keeps, and is discarded by when this is gone
        self.count = 0
        self.frozen: FileState | None = None
        self.connection: sqlite3.Connection | None = None
        self.cursor: sqlite3.Cursor

    def open(self, connection: sqlite3.Connection) -> None:
        """Takes a connection."""
        self.connection, self.cursor = connection, connection.cursor()

    def close(self) -> None:
        """Closes the connection."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    @property
    def is_running(self) -> bool:
        """Whether it is lent, and not by a process that was forked since."""
        return self.reference in self._database._running

    def end(self) -> None:
        """Rolls back what was not committed, and gives the connection back."""
        database, connection = self._database, self.connection
        if self.reference not in database._running:
            return
        try:
            if connection is not None and connection.in_transaction:
                self.cursor.execute("ROLLBACK")
        finally:
            with _pools:
                database._running.discard(self.reference)
                if connection is not None:
                    if self.frozen == database._frozen and not connection.in_transaction:
                        database._idle.append(self)
                    else:
                        self.close()
                if database._is_closed:
                    database.close()

    def __enter__(self) -> sqlite3.Connection:
        try:
            self.cursor.execute("BEGIN")
            return self.cursor.connection
        except BaseException as err:
            self.__exit__(type(err), err, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        if isinstance(err, sqlite3.Error):
            raise self._database.clear_error(err) from err

    def __del__(self) -> None:
        if getattr(self, "connection", None) is not None:  # an interrupt in __init__ leaves none
            with suppress(sqlite3.Error):
                self.close()


class WriteTransaction:
    """A context that lends a connection with the write lock; what was not committed is rolled back at the end.

    The errors come when it is entered or left. An interrupt within ``__exit__`` leaves it open until :meth:`close`, or
    until nothing refers to it.

    Args:
        database: Lends the connection.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lease: Lease | None = None
        self._count = 0  # of the lease, which may be lent to somebody else by now

    @property
    def is_running(self) -> bool:
        """Whether it was begun and not ended, and not by a process that was forked since."""
        return self._lease is not None and self._lease.is_running and self._lease.count == self._count

    @property
    def connection(self) -> sqlite3.Connection | None:
        """What is lent; None where it :attr:`is_running` no longer."""
        return self._lease.connection if self._lease is not None and self.is_running else None

    def __enter__(self) -> sqlite3.Connection:
        try:
            lease = self._database.lend(is_reading=False)
            self._lease, self._count = lease, lease.count
            self._wait(lease.cursor.connection)
            return lease.cursor.connection
        except BaseException as err:
            self.__exit__(type(err), err, None)
            raise

    def _wait(self, connection: sqlite3.Connection) -> None:
        """Wait for the lock in short steps, so that an interrupt is noticed."""
        end = time.monotonic() + self._database.timeout
        while True:
            left = max(0.0, min(_PATIENCE, end - time.monotonic()))
            connection.execute(f"PRAGMA busy_timeout = {round(left * 1000)}")
            try:
                connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as err:
                if time.monotonic() >= end or ("locked" not in str(err) and "busy" not in str(err)):
                    raise
        connection.execute(f"PRAGMA busy_timeout = {round(self._database.timeout * 1000)}")

    def close(self) -> None:
        """End the transaction where it was not ended."""
        if self._lease is not None and self.is_running:
            self._lease.end()

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(err, sqlite3.Error):
            raise self._database.clear_error(err) from err


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
