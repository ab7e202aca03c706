"""Texts in an index with their vectors: added, deleted, kept."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from operator import itemgetter
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

from st_keytokens.checks import check_choice
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.files import write_atomically
from st_keytokens.index import Document, HybridIndex
from st_keytokens.index.documents import checked_strings, packed_metadata
from st_keytokens.index.segments import sync_directory
from st_keytokens.retrieval.metadata import as_json_list, restored
from st_keytokens.retrieval.paired_embeddings import PairedEmbeddings
from st_keytokens.sparse_embeddings import HybridEmbeddings

__all__ = ["OnConflict", "TextStore", "copy_index"]


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


OnConflict = Literal["error", "replace"]

SETTINGS_FILE = "retriever.json"


class TextStore:
    """What a retriever does with its texts. Use it through :class:`Retriever`."""

    def __init__(
        self, encoder: KeyTokenEncoder, path: str | PathLike[str] | None = None, *, has_dense: bool | None = None
    ) -> None:
        self.pair = PairedEmbeddings(encoder)
        self.encoder = encoder
        dimension = {None: None, True: encoder.get_embedding_dimension(), False: 0}[has_dense]
        self.index = HybridIndex(path, encoder=encoder, embedding_dimension=dimension)
        self._fingerprint = encoder.fingerprint

    def close(self) -> None:
        """Closes the index; a temporary one is removed."""
        self.index.close()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def has_dense(self) -> bool:
        """Whether the index holds dense vectors, or may do so as long as it is empty."""
        return bool(self.index.settings["embedding_dimension"] != 0)

    def add(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        embedded_texts: Sequence[str] | None = None,
        on_conflict: OnConflict = "error",
    ) -> list[str]:
        """Adds documents, all or none.

        Args:
            texts: What is kept and comes back with a hit.
            ids: Their ids; a new UUID for None.
            metadata: A dictionary or None for each: JSON, dates, paths, UUIDs, tuples, numpy numbers.
            embedded_texts: What is embedded in their place, such as texts with a title. None: the texts.
            on_conflict: ``"error"``, or ``"replace"`` documents whose id is there.

        Returns:
            The ids.

        Raises:
            TypeError: If an argument is of the wrong type; for metadata the error names the key.
            ValueError: If lengths differ, an id is given twice, or is there and not to be replaced, or the encoder was
                changed. Nothing is added.
        """
        names = self.check_addable(texts, ids=ids, metadata=metadata, on_conflict=on_conflict)
        embedded = texts if embedded_texts is None else checked_strings("embedded_texts", embedded_texts, len(names))
        self._check_encoder()
        if self.has_dense:
            vectors = self.encoder.encode_document(embedded)
        else:
            vectors = HybridEmbeddings(None, self.pair.sparse(embedded, "document"))
        return self.index.add(
            names,
            texts,
            embeddings=vectors,
            metadata=None if metadata is None else as_json_list(metadata),
            on_conflict=on_conflict,
        )

    def check_addable(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        on_conflict: OnConflict = "error",
    ) -> list[str]:
        """Checks what :meth:`add` would refuse, before another store is written to; nothing is embedded or added.

        Arguments and errors are those of :meth:`add`.

        Returns:
            The ids, new ones for None; give these to :meth:`add`.
        """
        check_choice("on_conflict", on_conflict, get_args(OnConflict))
        size = len(checked_strings("texts", texts))
        names = [str(uuid4()) if name is None else name for name in (ids if ids is not None else [None] * size)]
        names = checked_strings("ids", names, size)
        if metadata is not None:
            packed_metadata(as_json_list(metadata), size)
        twice, count = max(Counter(names).items(), key=itemgetter(1), default=("", 0))
        if count > 1:
            raise ValueError(f"ids must be unique, got {twice!r} twice. Nothing was added.")
        known = [] if on_conflict == "replace" else self.known_ids(names)
        if known:
            raise ValueError(f"ids must be new, got {known[0]!r}, which is there. Use on_conflict='replace'.")
        return names

    def known_ids(self, ids: Collection[str]) -> list[str]:
        """Those of some ids that are in the index, in their order."""
        return [id for id in ids if id in self.index]

    def delete(self, ids: Collection[str]) -> int:
        """Deletes documents; ids that are not there are passed over.

        Returns:
            How many were there.
        """
        return self.index.delete(ids)

    def get(self, ids: Collection[str]) -> list[Document]:
        """Documents by id, in the order of the ids.

        Raises:
            KeyError: If an id is unknown.
        """
        return [replace(document, metadata=restored(document.metadata)) for document in self.index.get(ids)]

    def persist(self, path: str | PathLike[str], settings: Mapping[str, Any] | None = None) -> None:
        """Keeps the index, and settings of an adapter beside it, in a directory; no pickle.

        What is added afterwards goes into the index at its own path, not into a copy.

        Args:
            path: Directory; an index that is there is replaced as a whole. In the index's
                own one only the settings are written.
            settings: A JSON object.

        Raises:
            OSError: If it cannot be written.
            TypeError: If the settings are no JSON.
            ValueError: If the directory holds other files, but no index.
        """
        content = json.dumps(dict(settings or {}), indent=2).encode()
        target = Path(path)
        if not target.exists() or not target.samefile(self.index.path):
            copy_index(self.index.path, target)
        write_atomically(target / SETTINGS_FILE, content)

    @staticmethod
    def read_settings(path: str | PathLike[str]) -> dict[str, Any]:
        """The settings that :meth:`persist` kept beside an index.

        Raises:
            FileNotFoundError: If there are none.
            ValueError: If they are damaged.
        """
        file = Path(path, SETTINGS_FILE)
        if not file.is_file():
            raise FileNotFoundError(f"path must hold a persisted retriever, got {path} without {SETTINGS_FILE}.")
        try:
            settings = json.loads(file.read_bytes())
        except ValueError as err:
            raise ValueError(f"{file} must be JSON, got an error: {err}. Persist the retriever again.") from err
        return dict(settings)

    def _check_encoder(self) -> None:
        if self.encoder.fingerprint != self._fingerprint:
            raise ValueError(
                f"the encoder must have the fingerprint {self._fingerprint}, as when the retriever was made, got "
                f"{self.encoder.fingerprint}. Calibrate and set it up first, and make the retriever afterwards."
            )
