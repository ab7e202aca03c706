"""The texts of stored embeddings: by id, from an index on disk, or by number, as they come."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch
from st_keytokens.readers import Record

_INSERTED = 10_000  # records of a transaction
_PREFIX = ".texts-"
_ASKED = 500  # ids of a query; SQLite takes at least 999


@contextmanager
def text_index(records: Iterable[Record], folder: Path | None, name: str) -> Iterator[sqlite3.Connection]:
    """Texts by id in a temporary file, so that memory holds few of them.

    Args:
        records: All with an id of their own.
        folder: Where the file is put; it goes afterwards. None: where temporary files are.
        name: What errors call the records.

    Returns:
        A context manager of the connection, for :func:`texts_by_id`; any one thread at a time may use it.

    Raises:
        ValueError: If a record has no id, or one that another has.
    """
    for left in [] if folder is None else folder.glob(f"{_PREFIX}*"):  # by a run that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as temporary:
        with closing(sqlite3.connect(Path(temporary, "texts.sqlite"), check_same_thread=False)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("CREATE TABLE texts (id TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
            rows = iter(records)
            while part := list(islice(rows, _INSERTED)):
                _insert(connection, part, name)
            yield connection


def texts_by_id(
    batches: Iterable[EmbeddingBatch], connection: sqlite3.Connection, name: str
) -> Iterator[EmbeddingBatch]:
    """Puts the texts of an index to batches with ids.

    Args:
        batches: Of a source that has ids.
        connection: From :func:`text_index`.
        name: What errors call the texts.

    Raises:
        ValueError: While reading, if an id has no text.
    """
    for batch in batches:
        ids = batch.ids or []
        found: dict[str, str] = {}
        for start in range(0, len(ids), _ASKED):
            part = ids[start : start + _ASKED]
            marks = ", ".join("?" * len(part))
            found.update(connection.execute(f"SELECT id, text FROM texts WHERE id IN ({marks})", part))
        missing = next((identifier for identifier in ids if identifier not in found), None)
        if missing is not None:
            raise ValueError(f"{name} must have a text for every embedding, got none with the id {missing!r}.")
        yield replace(batch, texts=[found[identifier] for identifier in ids])


def texts_by_number(
    batches: Iterable[EmbeddingBatch], records: Iterable[Record], name: str, start: int = 0
) -> Iterator[EmbeddingBatch]:
    """Puts texts to batches without ids, the first to the first, and the ids of the texts, where they have one.

    Args:
        batches: Of a source without ids.
        records: One a row, from the first row of the source on.
        name: What errors call the texts.
        start: The row that the batches begin with.

    Raises:
        ValueError: While reading, if there are fewer texts than rows, or more.
    """
    texts, row = islice(iter(records), start, None), start
    for batch in batches:
        part = list(islice(texts, len(batch.embeddings)))
        row += len(part)
        if len(part) < len(batch.embeddings):
            raise ValueError(f"{name} must be one for each embedding, got only {row} texts.")
        ids = [str(row - len(part) + i) if record.id is None else record.id for i, record in enumerate(part)]
        yield replace(batch, ids=ids, texts=[record.text for record in part])
    if next(texts, None) is not None:
        raise ValueError(f"{name} must be one for each embedding, got more than {row} texts.")


def _insert(connection: sqlite3.Connection, records: list[Record], name: str) -> None:
    for record in records:
        if record.id is None:
            raise ValueError(f"{name} must have an id for every text, got none. Name its field: id_field.")
    try:
        with connection:
            connection.executemany("INSERT INTO texts VALUES (?, ?)", ((r.id, r.text) for r in records))
    except sqlite3.IntegrityError as err:
        raise ValueError(f"{name} must have every id once, got one twice. Leave out the other.") from err
