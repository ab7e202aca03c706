"""A temporary index as bytes, so that what holds it pickles; one with a path of its own is opened there again."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import Retriever

__all__ = ["index_files", "reopened"]


def index_files(retriever: Retriever) -> dict[str, bytes]:
    """The files of a retriever's index by their names."""
    with tempfile.TemporaryDirectory(prefix="keytokens-") as folder:
        root = Path(folder, "index")
        retriever.persist(root)
        return {
            file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()
        }


def reopened(
    encoder: KeyTokenEncoder, path: str | None, files: dict[str, bytes] | None, *, has_dense: bool
) -> Retriever:
    """A retriever of an index at a path, or of one whose files go into a new temporary directory."""
    if files is None:
        return Retriever(encoder, path, has_dense=has_dense)
    folder = tempfile.mkdtemp(prefix="keytokens-")
    for name, content in files.items():
        file = Path(folder, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    retriever = Retriever(encoder, folder, has_dense=has_dense)
    weakref.finalize(retriever, shutil.rmtree, folder, ignore_errors=True)
    return retriever
