"""Copying an index that is in use."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

__all__ = ["copy_index"]

_DATABASE, _SEGMENTS = "index.sqlite", "segments"


def copy_index(source: Path, target: Path) -> None:
    """Copies the last commit of an index into a directory, whose index, if it has one, is replaced as a whole.

    Writers of the source wait; an open index on the target has to be opened anew.

    Args:
        source: The directory of an index.
        target: Directory; made where it is missing, with its parents.

    Raises:
        OSError: If it cannot be written; the old one is kept.
        ValueError: If the target holds other files, but no index.
    """
    if target.exists() and not (target / _DATABASE).exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"path must be an index, an empty directory or new, got {target} with other files.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        new, old = Path(folder, "new"), Path(folder, "old")
        new.mkdir()
        with (
            closing(sqlite3.connect(source / _DATABASE, isolation_level=None)) as writer,
            closing(sqlite3.connect(source / _DATABASE)) as reader,
            closing(sqlite3.connect(new / _DATABASE)) as copy,
        ):
            writer.execute("BEGIN IMMEDIATE")  # nobody changes segments meanwhile
            shutil.copytree(source / _SEGMENTS, new / _SEGMENTS)
            reader.backup(copy)
            writer.execute("ROLLBACK")
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
