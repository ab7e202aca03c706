"""Stored embeddings to a directory of sparse ones, in constant memory, going on where an earlier run stopped."""

from __future__ import annotations

import queue
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from st_keytokens.bulk.shards import Manifest, ShardWriter
from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch, EmbeddingSource
from st_keytokens.decoding.decoding import check_finite
from st_keytokens.decoding.first_component import check_embeddings
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import Role, as_sparse
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.shared.document_files import Record
from st_keytokens.sparse_embeddings import SparseEmbeddings

__all__ = ["Converted", "convert"]

T = TypeVar("T")
TextReader = Callable[[], Iterable[Record]]
"""Gives all texts from the first one on, whenever it is called."""

_AHEAD = 2  # batches between two stages
_WAIT = 0.1  # seconds until a thread whose consumer is gone notices
_INSERTED = 10_000  # texts of a transaction
_ASKED = 500  # ids of a query; SQLite takes at least 999
_PREFIX = ".texts-"


@dataclass(frozen=True)
class Converted:
    """What a run did.

    Attributes:
        manifest: What the directory holds now.
        rows: Rows that this run made; the others were there.
        seconds: From the first batch that was read to the last shard, without loading the model.
    """

    manifest: Manifest
    rows: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Throughput of this run."""
        return self.rows / self.seconds if self.seconds else 0.0


def convert(
    encoder: KeyTokenEncoder,
    source: EmbeddingSource,
    path: str | PathLike[str],
    *,
    texts: TextReader | None = None,
    role: Role = "document",
    batch_size: int = 256,
    shard_rows: int = 100_000,
    show_progress_bar: bool = False,
) -> Converted:
    """Makes stored embeddings sparse and writes them as shards; run again, it goes on after the last whole shard.

    Args:
        encoder: Of the model that made the embeddings.
        source: Of :func:`~st_keytokens.bulk.open_source`, or any object that is an
            :class:`~st_keytokens.bulk.EmbeddingSource`.
        path: The directory, new or begun earlier.
        texts: Gives the texts from the first one on, for the literal terms: joined by id, or one after the other
            where the source has no ids. None: those of the source, if it was opened with a column of texts.
        role: Of the embeddings.
        batch_size: Rows decoded at a time.
        shard_rows: Rows of a shard; an interruption loses no more.
        show_progress_bar: Whether to show one.

    Returns:
        What was done.

    Raises:
        ImportError: If pyarrow is not installed.
        OSError: If something cannot be read or written.
        TypeError: If the embeddings are no floating-point numbers.
        ValueError: If an argument is out of range, a row cannot be decoded, a text is missing, the directory is of
            another encoder, source or role or being written by another process, or its manifest and the source do not
            have the same number of rows in the end.
    """
    check_choice("role", role, get_args(Role))
    checked_int("batch_size", batch_size, minimum=1)
    about = {"rows_from": source.identity, "role": role, "has_text_file": texts is not None}
    with ShardWriter(
        path,
        vocab_size=encoder.vocabulary.vocab_size,
        fingerprint=encoder.fingerprint,
        source=about,
        shard_rows=shard_rows,
    ) as writer:
        start = rows = writer.rows
        _check_start(writer, source)
        began = time.perf_counter()
        if not writer.is_complete:
            for batch in sparse_rows(
                encoder,
                source,
                texts=texts,
                role=role,
                batch_size=batch_size,
                start=start,
                position=writer.position,
                folder=Path(path),
                show_progress_bar=show_progress_bar,
            ):
                writer.add(batch.ids, batch.sparse, batch.position)
                rows += len(batch.ids)
        if source.rows not in (None, rows):
            raise ValueError(
                f"{path} must get the {source.rows} rows of {source.name}, got {rows}: the source was changed "
                "meanwhile, or an earlier run's manifest was. Convert into a new directory."
            )
        manifest = writer.finish()
        return Converted(manifest, manifest.rows - start, time.perf_counter() - began)


def _check_start(writer: ShardWriter, source: EmbeddingSource) -> None:
    """Check that what an earlier run left can be gone on from."""
    if source.rows is not None and writer.rows > source.rows:
        raise ValueError(
            f"{source.name} must have the {writer.rows} rows that an earlier run wrote, got {source.rows}. Convert "
            "into a new directory."
        )
    if not writer.is_complete and bool(writer.rows) != (writer.position is not None):
        raise ValueError(
            f"the directory must say where to go on after its {writer.rows} rows, got the position "
            f"{writer.position!r:.60}. Convert into a new directory."
        )


def sparse_rows(
    encoder: KeyTokenEncoder,
    source: EmbeddingSource,
    *,
    texts: TextReader | None = None,
    role: Role = "document",
    batch_size: int = 256,
    start: int = 0,
    position: Any = None,
    folder: Path | None = None,
    show_progress_bar: bool = False,
) -> Iterator[SparseBatch]:
    """The rows of a source from row ``start`` at ``position`` on, with their texts joined in; see :func:`convert`."""
    with ExitStack() as stack:
        batches = source.batches(batch_size, position)
        if texts is not None and source.has_ids:
            index = stack.enter_context(_text_index(texts(), folder))
            batches = _texts_by_id(batches, index)
        elif texts is not None:
            batches = _texts_by_number(batches, texts(), start)
        bar = stack.enter_context(
            tqdm(total=source.rows, initial=start, unit="row", desc="Sparsifying", disable=not show_progress_bar)
        )
        for batch in stack.enter_context(closing(sparsify_batches(encoder, batches, role=role, start=start))):
            yield batch
            bar.update(len(batch.ids))


@dataclass(frozen=True, eq=False)
class SparseBatch:
    """Some rows, made sparse, and where the source is to be read on from after them."""

    ids: list[str]
    sparse: SparseEmbeddings
    position: Any


def sparsify_batches(
    encoder: KeyTokenEncoder, batches: Iterable[EmbeddingBatch], *, role: Role = "document", start: int = 0
) -> Generator[SparseBatch, None, None]:
    """What ``encoder.sparsify`` gives for each batch, with reading, decoding and the caller's work side by side."""
    encoder.forward_pass.check_stored()
    return _sparsified(encoder, batches, role, start)


def _sparsified(
    encoder: KeyTokenEncoder, batches: Iterable[EmbeddingBatch], role: Role, start: int
) -> Generator[SparseBatch, None, None]:
    with encoder.lock:
        encoder.head.to(encoder.model.device)
    row = start
    with ExitStack() as stack:
        loaded = stack.enter_context(closing(prefetched(_loaded(encoder, batches, start), _AHEAD)))
        decoded = stack.enter_context(closing(prefetched(_decoded(encoder, loaded, role), _AHEAD)))
        for batch, ids, weights, is_done in decoded:
            if is_done is not None:
                is_done.synchronize()
            names = [str(row + i) for i in range(len(ids))] if batch.ids is None else batch.ids
            row += len(ids)
            sparse = encoder.weigh(batch.texts, as_sparse((ids, weights), encoder.vocabulary), role)
            yield SparseBatch(names, sparse, batch.position)


def _loaded(
    encoder: KeyTokenEncoder, batches: Iterable[EmbeddingBatch], start: int
) -> Iterator[tuple[EmbeddingBatch, Tensor, Any]]:
    """Batches with their rows on the device, and the event after which they are there."""
    device, row = encoder.model.device, start
    stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    for batch in batches:
        check_embeddings(batch.embeddings, encoder.head.lm_head_dimension)
        part = batch.embeddings
        rows, is_there = torch.from_numpy(part if part.flags.writeable else part.copy()), None
        check_finite(rows, row)
        row += len(rows)
        if stream is not None:
            with torch.cuda.stream(stream):
                rows = rows.pin_memory().to(device, non_blocking=True)
                is_there = stream.record_event()
        yield batch, rows, is_there


def _decoded(
    encoder: KeyTokenEncoder, batches: Iterable[tuple[EmbeddingBatch, Tensor, Any]], role: Role
) -> Iterator[tuple[EmbeddingBatch, Tensor, Tensor, Any]]:
    """Term ids and weights on the CPU, and the event after which they are there."""
    for batch, rows, is_there in batches:
        is_done = None
        if is_there is not None:
            stream = torch.cuda.current_stream(rows.device)
            stream.wait_event(is_there)
            rows.record_stream(stream)  # made on the copying stream: not to be used again before this one is done
        with encoder.lock, torch.inference_mode():
            ids, weights = encoder.head.decode(rows, task=role)
            if is_there is not None:
                ids, weights = _to_pinned(ids), _to_pinned(weights)
                is_done = stream.record_event()
        yield batch, ids, weights, is_done


def _to_pinned(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def prefetched(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, made ahead by another thread, which ends with the generator; errors come in their place.

    >>> list(prefetched(range(3)))
    [0, 1, 2]
    """
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    is_wanted = threading.Event()
    is_wanted.set()

    def put(is_item: bool, value: Any) -> None:
        while is_wanted.is_set():
            try:
                return made.put((is_item, value), timeout=_WAIT)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(True, item)
                if not is_wanted.is_set():
                    return
            put(False, None)
        except BaseException as err:  # also those that are no Exception belong to the caller
            put(False, err)
        finally:
            if (close := getattr(items, "close", None)) is not None:
                close()

    thread = threading.Thread(target=make, name="st-keytokens-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = made.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        is_wanted.clear()
        thread.join()


@contextmanager
def _text_index(records: Iterable[Record], folder: Path | None) -> Iterator[sqlite3.Connection]:
    """Texts by id in a temporary file, so that memory holds few of them; any one thread at a time may use it."""
    for left in [] if folder is None else folder.glob(f"{_PREFIX}*"):  # by a run that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as temporary:
        with closing(sqlite3.connect(Path(temporary, "texts.sqlite"), check_same_thread=False)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("CREATE TABLE texts (id TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
            rows = iter(records)
            while part := list(islice(rows, _INSERTED)):
                _insert(connection, part)
            yield connection


def _insert(connection: sqlite3.Connection, records: list[Record]) -> None:
    for record in records:
        if record.id is None:
            raise ValueError("texts must have an id for every text, got none. Name its field: id_field.")
    try:
        with connection:
            connection.executemany("INSERT INTO texts VALUES (?, ?)", ((r.id, r.text) for r in records))
    except sqlite3.IntegrityError as err:
        raise ValueError("texts must have every id once, got one twice. Leave out the other.") from err


def _texts_by_id(batches: Iterable[EmbeddingBatch], index: sqlite3.Connection) -> Iterator[EmbeddingBatch]:
    """Batches with the texts of their ids."""
    for batch in batches:
        ids = batch.ids or []
        found: dict[str, str] = {}
        for start in range(0, len(ids), _ASKED):
            part = ids[start : start + _ASKED]
            marks = ", ".join("?" * len(part))
            found.update(index.execute(f"SELECT id, text FROM texts WHERE id IN ({marks})", part))
        missing = next((identifier for identifier in ids if identifier not in found), None)
        if missing is not None:
            raise ValueError(f"texts must have a text for every embedding, got none with the id {missing!r}.")
        yield replace(batch, texts=[found[identifier] for identifier in ids])


def _texts_by_number(
    batches: Iterable[EmbeddingBatch], records: Iterable[Record], start: int
) -> Iterator[EmbeddingBatch]:
    """Batches without ids with the texts of their rows, which give them their ids, where they have one."""
    texts, row = islice(iter(records), start, None), start
    for batch in batches:
        part = list(islice(texts, len(batch.embeddings)))
        row += len(part)
        if len(part) < len(batch.embeddings):
            raise ValueError(f"texts must be one for each embedding, got only {row} texts.")
        ids = [str(row - len(part) + i) if record.id is None else record.id for i, record in enumerate(part)]
        yield replace(batch, ids=ids, texts=[record.text for record in part])
    if next(texts, None) is not None:
        raise ValueError(f"texts must be one for each embedding, got more than {row} texts.")
