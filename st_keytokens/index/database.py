"""Connections to one SQLite file: a pool for any number of threads, transactions, and errors made clear."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Database"]


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
        self._idle: deque[sqlite3.Connection] = deque()
        self._is_closed = False
        self._is_frozen = False

    @property
    def _index(self) -> str:
        return f"the index {self.file.parent}"

    def close(self) -> None:
        """Close every connection; those in use close when they are done."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def transaction(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        """Lend a connection in a transaction, which is rolled back at the end if it was not committed.

        Args:
            begin: ``"BEGIN"`` to read the state of the last commit, ``"BEGIN IMMEDIATE"`` to hold the write lock.

        Raises:
            OSError: If the disk is full or fails.
            PermissionError: If the file cannot be written.
            TimeoutError: If another writer holds the lock for longer than the timeout.
            ValueError: If the database is closed or damaged.
        """
        if self._is_closed:
            raise ValueError(f"{self._index} is closed. Open it again.")
        try:
            connection = self._idle.pop() if self._idle else self._connect()
        except sqlite3.Error as err:
            raise self._clear_error(err) from err
        try:
            connection.execute(begin)
            if begin == "BEGIN IMMEDIATE":
                with suppress(OSError):  # only to be named in another process's error
                    self._holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield connection
        except sqlite3.Error as err:
            raise self._clear_error(err) from err
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._idle.append(connection)
            if self._is_closed:
                self.close()

    @property
    def _holder(self) -> Path:
        return self.file.with_name("writer")

    def _connect(self) -> sqlite3.Connection:
        if self.read_only:
            connection = self._connect_read_only()
        else:
            is_new = not self.file.exists() or not self.file.stat().st_size
            connection = self._opened("mode=rwc")
            if is_new:
                connection.execute("PRAGMA journal_mode = WAL")  # kept in the file
            connection.execute(f"PRAGMA synchronous = {'FULL' if self.is_durable else 'OFF'}")
            connection.execute(f"PRAGMA journal_size_limit = {1 << 26}")
        connection.execute("PRAGMA cache_size = -32768")  # 32 MiB, taken as needed
        return connection

    def _connect_read_only(self) -> sqlite3.Connection:
        if not self._is_frozen:
            connection = self._opened("mode=ro")
            try:
                connection.execute("SELECT count(*) FROM sqlite_master")
                return connection
            except sqlite3.OperationalError:  # no shared memory can be made beside the file: then nobody writes to it
                connection.close()
                log = self.file.with_name(self.file.name + "-wal")
                if log.exists() and log.stat().st_size:
                    raise
                self._is_frozen = True
        return self._opened("mode=ro&immutable=1")

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
