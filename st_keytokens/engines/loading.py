"""Loading a stream of batches into a collection, so that a load that was interrupted goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from st_keytokens.bulk.shards import read_batches, read_manifest
from st_keytokens.engines.engine import Engine
from st_keytokens.engines.records import Records
from st_keytokens.shared.files import write_atomically

__all__ = ["LoadReport", "load"]


_ROWS = 1000  # of a batch of shards


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        num_loaded: Documents written in this call.
        num_skipped: Documents that an earlier call had written.
        seconds: Time taken.
    """

    num_loaded: int
    num_skipped: int
    seconds: float


def load(
    engine: Engine,
    batches: str | PathLike[str] | Iterable[Records] | Callable[[int], Iterable[Records]],
    *,
    progress: str | PathLike[str] | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> LoadReport:
    """Write batches into a collection, one at a time.

    The next batch is read when the one before is written, so that a source is never ahead of an engine that is slow or
    refuses for a while, and memory holds one batch. With a progress file, a load that was stopped or killed at any
    moment goes on where it was: the file tells how many documents are written, and the batch that was on its way is
    written again, which changes nothing. An id that comes twice in the source has, in the end, what came last.

    Args:
        engine: The collection, which must be there.
        batches: What to write, in the same order in every call, in batches of any size; or a function that gives the
            batches from a row number on, for sources that need not be read from the start; or a directory of shards
            (see :mod:`st_keytokens.bulk`) of the encoder whose fingerprint the collection has, for a collection
            without dense rows.
        progress: File that keeps the progress, best next to the source; made where it is missing, and left there when
            all is written. None: begin at the start.
        on_batch: Called after each batch with the number of documents that are written so far.

    Returns:
        How much was written.

    Raises:
        FileNotFoundError: If there is no such directory of shards, or one of them is missing.
        RuntimeError: If the engine refuses for too long. What is written is kept, and so is the progress.
        TypeError: If a batch is no Records.
        ValueError: If the progress is of another collection or another source, the collection was emptied since, a
            batch is refused (see :meth:`Engine.upsert`), or the shards are not complete, damaged, or of another
            encoder.
    """
    began = time.monotonic()
    if isinstance(batches, (str, PathLike)):
        batches = _shards(batches, engine)
    path = None if progress is None else Path(progress)
    start, last_id = (0, None) if path is None else _read(path, engine)
    num_rows = start
    for records in _remaining(batches, start, last_id):
        engine.upsert(records)
        if len(records):
            num_rows, last_id = num_rows + len(records), records.ids[-1]
            if path is not None:
                _write(path, engine, num_rows, last_id)
        if on_batch is not None:
            on_batch(num_rows)
    engine.flush()
    return LoadReport(num_rows - start, start, time.monotonic() - began)


def _shards(path: str | PathLike[str], engine: Engine) -> Callable[[int], Iterator[Records]]:
    """The rows of a directory of shards, from any on; its encoder must be the collection's, where both are known."""
    found, wanted = read_manifest(path).fingerprint, engine.settings.fingerprint
    if wanted is not None and found != wanted:
        raise ValueError(f"{path} must be of the encoder {wanted}, which {engine.collection!r} has, got {found}.")

    def rows(start: int) -> Iterator[Records]:
        for ids, sparse in read_batches(path, _ROWS, start=start):
            yield Records(ids, sparse)

    return rows


def _read(path: Path, engine: Engine) -> tuple[int, str | None]:
    """How many documents are written, and the last one's id."""
    if not path.exists():
        return 0, None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        num_rows, last_id, target = int(saved["num_rows"]), str(saved["last_id"]), saved["target"]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as err:
        raise ValueError(f"progress must be a file that a load wrote, got {str(path)!r}. Name another one.") from err
    if target != _target(engine):
        raise ValueError(f"progress must be of {_target(engine)}, got {str(path)!r} of {target}. Name another one.")
    engine.flush()
    if engine.count() == 0:
        raise ValueError(
            f"{str(path)!r} tells of {num_rows} documents, but the collection is empty. Delete the file to begin anew."
        )
    return num_rows, last_id


def _write(path: Path, engine: Engine, num_rows: int, last_id: str) -> None:
    content = {"target": _target(engine), "num_rows": num_rows, "last_id": last_id}
    write_atomically(path, json.dumps(content).encode())


def _target(engine: Engine) -> dict[str, str | None]:
    """What tells a collection from others."""
    return {"collection": engine.collection, "fingerprint": engine.settings.fingerprint}


def _remaining(
    batches: Iterable[Records] | Callable[[int], Iterable[Records]], start: int, last_id: str | None
) -> Iterator[Records]:
    """The batches after those that are written, whose last document must be the one that was written last."""
    if start == 0:
        yield from batches(0) if callable(batches) else batches
        return
    to_skip = 1 if callable(batches) else start
    for records in batches(start - 1) if callable(batches) else batches:
        if not isinstance(records, Records) or not to_skip:
            yield records
            continue
        if len(records) < to_skip:
            to_skip -= len(records)
            continue
        if records.ids[to_skip - 1] != last_id:
            raise ValueError(
                f"batches must be those of the interrupted load, whose document {start} was {last_id!r:.60}, got "
                f"{records.ids[to_skip - 1]!r:.60}. Delete the progress file to begin anew."
            )
        if to_skip < len(records):
            yield records[to_skip:]
        to_skip = 0
    if to_skip:
        raise ValueError(
            f"batches must have the {start} documents that are written at least, got {to_skip} fewer. "
            "Delete the progress file to begin anew."
        )
