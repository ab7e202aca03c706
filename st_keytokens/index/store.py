"""What an index keeps in SQLite: documents, settings, deleted rows, and the list of live segments.

A change is one transaction: segment files are on the disk before it commits, and exist because it commits. SQLite's
write lock is the index's write lock.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from st_keytokens.index.database import Database, Transaction
from st_keytokens.index.document_table import DocumentTable
from st_keytokens.index.segments import Files, sync_directory

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Store"]

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
        self.directory, self.segments = directory, directory / "segments"
        self.read_only, self.is_durable = read_only, is_durable
        file = directory / "index.sqlite"
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
            with self._database.transaction("BEGIN IMMEDIATE") as connection:
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
        return self._database.transaction()

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
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
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
