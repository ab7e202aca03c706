"""One pass over a corpus, resumable after a kill from a state file that is bound to what was seen."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from st_keytokens.calibration.chunks import Chunk, unequal
from st_keytokens.calibration.corpus_statistics import CorpusStatistics
from st_keytokens.calibration.state_files import read_progress, write_progress
from st_keytokens.first_component import check_embeddings

Fitted = TypeVar("Fitted", bound=CorpusStatistics)


class _ItemHash:
    """A hash of the items so far, and their number."""

    def __init__(self) -> None:
        self.count = 0
        self._digest = hashlib.sha256()

    def update(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._digest.update(len(key).to_bytes(8, "little") + key)
            self.count += 1

    @property
    def value(self) -> str:
        return self._digest.hexdigest()


def stream(
    chunks: Iterable[Chunk],
    blank: Callable[[int], Fitted],
    *,
    bar: Callable[[], Any],
    resume_from: str | os.PathLike[str] | None,
    save_every: int,
) -> Fitted:
    """Fit a calibration on chunks, leaving out what the state file has seen.

    Args:
        chunks: The corpus.
        blank: Makes an empty calibration for embeddings of a width.
        bar: Makes a progress bar of items.
        resume_from: The state file, or None; see :meth:`Calibration.fit`.
        save_every: Items between two writes of the state file, at least.

    Returns:
        The calibration.

    Raises:
        ValueError: If there is no item, a chunk's embeddings and terms cannot be added, or the state file is
            unreadable or belongs to other items, another model or vocabulary.
    """
    path = None if resume_from is None else Path(resume_from)
    calibration: Fitted | None = None
    known_count, known_hash = 0, ""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            calibration, known_count, known_hash = _resumed(path, blank)
    seen, saved = _ItemHash(), known_count
    with bar() as progress:
        for keys, read in chunks:
            known = min(len(keys), max(0, known_count - seen.count))
            seen.update(keys[:known])
            if known and seen.count == known_count and seen.value != known_hash:
                raise _other_corpus(path, known_count)
            if known < len(keys):
                dense, term_ids = read(known)
                if len(dense) != len(keys) - known:
                    raise unequal(len(dense), len(keys) - known)
                if calibration is None:
                    check_embeddings(dense)
                    calibration = blank(dense.shape[1])
                calibration.update(dense, term_ids)
                seen.update(keys[known:])
                if path is not None and seen.count - saved >= save_every:
                    write_progress(path, *calibration.to_state(has_first_component=False), seen.count, seen.value)
                    saved = seen.count
            progress.update(len(keys))
    if seen.count < known_count:
        raise _other_corpus(path, known_count)
    if calibration is None:
        raise ValueError("texts or embeddings must hold at least one item, got none.")
    if path is not None and seen.count > saved:
        write_progress(path, *calibration.to_state(has_first_component=False), seen.count, seen.value)
    return calibration


def _resumed(path: Path, blank: Callable[[int], Fitted]) -> tuple[Fitted, int, str]:
    """The calibration in a state file, the number of its items and their hash."""
    tensors, settings = read_progress(path)
    expected = blank(settings["embedding_dimension"])
    calibration = expected.from_state(tensors, settings)
    expected.check_same(calibration, f"resume_from={str(path)!r}")
    return calibration, settings["consumed"], settings["seen"]


def _other_corpus(path: Path | None, consumed: int) -> ValueError:
    return ValueError(
        f"resume_from must belong to the corpus given, but the first {consumed} items are not those that {path} was "
        "fitted on. Give the same items in the same order, or delete the file."
    )
