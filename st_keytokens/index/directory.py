"""The directory of an index: which one it is, what may lie in it, and how a part of it is removed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["DATABASE", "SEGMENTS", "SETTINGS_FILE", "IndexDirectory", "check_regular", "is_segment_name"]


DATABASE, SEGMENTS = "index.sqlite", "segments"
SETTINGS_FILE = "retriever.json"  # what a retriever keeps beside its index
_HOLDER = "writer"
_MOST_HOLDER_BYTES = 200
_SEGMENT_NAME = re.compile(r"(?:[0-9a-f]{16}-)?[0-9a-f]{32}")
_HAS_DESCRIPTORS = {os.open, os.unlink, os.rmdir, os.stat} <= os.supports_dir_fd
_DIRECTORY_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # follow no link, and wait at no pipe


def is_segment_name(name: object) -> bool:
    """Whether this is a name that an index gives to a segment; such a name leads to no other directory."""
    return isinstance(name, str) and _SEGMENT_NAME.fullmatch(name) is not None


def check_regular(file: Path, *, is_directory: bool = False) -> os.stat_result:
    """Check that a path is a regular file, or a directory, itself and not by way of a link; its status.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is something else, such as a symbolic link or a named pipe.
    """
    status = file.lstat()
    if not (stat.S_ISDIR if is_directory else stat.S_ISREG)(status.st_mode):
        kind = "directory" if is_directory else "file"
        raise ValueError(
            f"{file} is damaged: it must be a plain {kind}, and is a link or something else. "
            "An index holds all of its files itself; copy it with the files that its links lead to."
        )
    return status


class IndexDirectory:
    """A directory with a database in it, held open, so that another one at the same path is noticed.

    Args:
        path: The directory, absolute.

    Raises:
        FileNotFoundError: If it is missing, or its database is.
        ValueError: If a file of it is a link, or no file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path / DATABASE
        self._path, self._file = str(self.path), str(self.file)  # for each search, which these are quicker for
        self._descriptors: list[int] = []  # of the directory
        self._files: list[int] = []  # of the database
        check_regular(self.file)
        for suffix in ("-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                if check_regular(path / (DATABASE + suffix)).st_size and suffix == "-journal":
                    # An index never has one, and SQLite would open and remove the files that it names.
                    raise ValueError(f"the index {path} is damaged: {DATABASE}{suffix} must not be there. Remove it.")
        with suppress(FileNotFoundError):
            check_regular(path / SEGMENTS, is_directory=True)
        try:
            if _HAS_DESCRIPTORS:
                self._descriptors.append(os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)))
            if hasattr(os, "O_PATH"):
                # While it is held, no other file gets its number. Closing a descriptor of another kind would end the
                # locks that SQLite has on the file.
                self._files.append(os.open(self.file, os.O_PATH | os.O_NOFOLLOW))
            self._identity = self._found()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the directory."""
        self.close_file()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def close_file(self) -> None:
        """Let go of the database, as in a forked process; it is still told from another one by its number."""
        while self._files:
            os.close(self._files.pop())

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):
            self.close()

    @property
    def number(self) -> tuple[int, int]:
        """Device and inode of the database."""
        return self._identity[2:]

    def _found(self) -> tuple[int, int, int, int]:
        directory, file = os.stat(self._path), os.lstat(self._file)
        return directory.st_dev, directory.st_ino, file.st_dev, file.st_ino

    def check(self) -> None:
        """Check that the path leads to the directory and the database that were opened.

        Raises:
            ValueError: If it leads elsewhere, or nowhere.
        """
        try:
            if self._found() == self._identity:
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise self._replaced()

    def check_file(self) -> None:
        """:meth:`check` of the database alone, which is enough for reading, as its number is no other file's.

        Raises:
            ValueError: If the path leads elsewhere, or nowhere.
        """
        try:
            file = os.lstat(self._file)
            if (file.st_ino, file.st_dev) == (self._identity[3], self._identity[2]):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise self._replaced()

    def _replaced(self) -> ValueError:
        return ValueError(
            f"path must lead to the index that was opened, but {self.path} was replaced, moved or removed since. "
            "Nothing was changed. Open the index again."
        )

    def check_single(self) -> None:
        """Check that the database has no second name, under which a copy would be changed too.

        Raises:
            ValueError: If it has.
        """
        if os.lstat(self.file).st_nlink > 1:
            raise ValueError(
                f"{self.file} must have one name to be written, got hard links, whose index would change too. "
                "Copy the index without them, or open it with read_only=True."
            )

    def segment_names(self) -> list[str]:
        """Names of the directories that have the name of a segment, live or not."""
        with self._opened(SEGMENTS) as place:
            return [name for name in os.listdir(place) if is_segment_name(name)]

    def remove_segment(self, name: str, files: Sequence[str]) -> None:
        """Remove a segment: files of these names, and its directory if that leaves it empty.

        What cannot be removed now, such as files that Windows has mapped, is left to the next writer.
        """
        if not is_segment_name(name):
            return
        with suppress(OSError):
            if not _HAS_DESCRIPTORS:
                self.check()
                folder = self.path / SEGMENTS / name
                for file in files:
                    (folder / file).unlink(missing_ok=True)
                folder.rmdir()
                return
            with self._opened(SEGMENTS) as segments:
                with self._opened(name, segments) as place:
                    for file in files:
                        with suppress(FileNotFoundError):
                            os.unlink(file, dir_fd=place)  # type: ignore[arg-type]
                os.rmdir(name, dir_fd=segments)  # type: ignore[arg-type]

    @contextmanager
    def _opened(self, name: str, parent: int | str | None = None) -> Iterator[int | str]:
        """A directory in this one, as a descriptor where the system has them, so that no replaced one is meant."""
        if not _HAS_DESCRIPTORS:
            yield str(self.path / name)
            return
        if not self._descriptors:
            raise FileNotFoundError(f"the index {self.path} is closed.")
        place = os.open(name, _DIRECTORY_FLAGS, dir_fd=self._descriptors[0] if parent is None else int(parent))
        try:
            yield place
        finally:
            os.close(place)

    def _open_holder(self, flags: int) -> int:
        if _HAS_DESCRIPTORS:
            return os.open(_HOLDER, flags | _CAREFULLY, 0o666, dir_fd=self._descriptors[0])
        return os.open(self.path / _HOLDER, flags | _CAREFULLY, 0o666)

    def write_holder(self, name: str) -> None:
        """Note who holds the write lock, for another process's error; where the note is no plain file, nothing."""
        with suppress(OSError):
            descriptor = self._open_holder(os.O_WRONLY | os.O_CREAT)
            try:
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, name.encode()[:_MOST_HOLDER_BYTES])
            finally:
                os.close(descriptor)

    def read_holder(self) -> str:
        """Who holds the write lock, as far as it is known."""
        with suppress(OSError):
            descriptor = self._open_holder(os.O_RDONLY)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return os.read(descriptor, _MOST_HOLDER_BYTES).decode(errors="replace") or "another writer"
            finally:
                os.close(descriptor)
        return "another writer"
