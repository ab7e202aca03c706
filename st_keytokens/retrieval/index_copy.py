"""Copying an index that is in use."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from st_keytokens.index.segments import sync_directory

__all__ = ["copy_index"]

_DATABASE, _SEGMENTS = "index.sqlite", "segments"
_TIMEOUT = 30.0  # seconds to wait for a writer


def copy_index(source: Path, target: Path) -> None:
    """Copies the last commit of an index into a directory, whose index, if it has one, is replaced as a whole.

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
        closing(sqlite3.connect(source / _DATABASE, timeout=_TIMEOUT, isolation_level=None)) as writer,
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
