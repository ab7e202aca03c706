"""One pass over a corpus, resumable after a kill from a state file that is bound to what was seen."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.atomic_files import read_tensors, write_atomically
from st_keytokens.first_component import as_tensor, check_embeddings

if TYPE_CHECKING:
    from st_keytokens.calibration import Calibration

Dense = Tensor | NDArray[Any]
Chunk = tuple[list[bytes], Callable[[int], tuple[Dense, Sequence[NDArray[Any]] | None]]]
"""What identifies each item of a chunk, and a function that reads its embeddings and terms from an item on."""


class CalibrationVocabulary(Protocol):
    """What a calibration needs of a vocabulary."""

    @property
    def vocab_size(self) -> int:
        """As in ``Vocabulary``."""

    @property
    def hash(self) -> str:
        """As in ``Vocabulary``."""


class CalibrationEncoder(Protocol):
    """What a calibration needs of an encoder."""

    @property
    def model_name(self) -> str | None:
        """As in ``KeyTokenEncoder``."""

    @property
    def vocabulary(self) -> CalibrationVocabulary:
        """As in ``KeyTokenEncoder``."""

    def embed(self, texts: list[str], *, role: Any) -> NDArray[np.float32]:
        """As in ``KeyTokenEncoder``."""

    def prepare_embeddings(self, embeddings: Dense) -> Dense:
        """What ``embed`` gives, of vectors as the model gives them."""

    def literal_terms(self, texts: list[str]) -> list[NDArray[Any]]:
        """As in ``KeyTokenEncoder``."""


def float32_rows(embeddings: Dense) -> NDArray[np.float32]:
    """The embeddings as C-contiguous float32 on the CPU."""
    rows: NDArray[np.float32] = as_tensor(embeddings).to("cpu", torch.float32).contiguous().numpy()
    return rows


def text_chunks(
    encoder: CalibrationEncoder, texts: Iterable[str], embeddings: Dense | None, batch_size: int
) -> Iterator[Chunk]:
    """Chunks of texts, with their embeddings where those are stored."""
    iterator, start = iter(texts), 0
    while chunk := list(islice(iterator, batch_size)):
        for position, text in enumerate(chunk, start):
            if not isinstance(text, str):
                raise TypeError(f"texts must be strings, got {type(text).__name__} at position {position}.")
        keys = [text.encode("utf-8", "surrogatepass") for text in chunk]
        stored = None if embeddings is None else embeddings[start : start + len(chunk)]
        if stored is not None:
            check_embeddings(stored)
            if len(stored) != len(chunk):
                raise unequal(start + len(stored), f"at least {start + len(chunk)}")
            keys = [text + row.tobytes() for text, row in zip(keys, float32_rows(stored), strict=True)]
        start += len(chunk)

        def read(
            first: int, chunk: list[str] = chunk, stored: Dense | None = stored
        ) -> tuple[Dense, Sequence[NDArray[Any]]]:
            if stored is None:
                dense: Dense = encoder.embed(chunk[first:], role="document")
            else:
                dense = encoder.prepare_embeddings(stored[first:])
            return dense, encoder.literal_terms(chunk[first:])

        yield keys, read
    if embeddings is not None and len(embeddings) > start:
        raise unequal(len(embeddings), start)


def unequal(rows: int, texts: int | str) -> ValueError:
    """The error that numbers of embeddings and texts differ."""
    return ValueError(f"embeddings must have one row a text, got {rows} rows for {texts} texts.")


def embedding_chunks(embeddings: Dense | Iterable[Dense], batch_size: int) -> Iterator[Chunk]:
    """Chunks of stored embeddings, an array or batches."""
    batches: Iterable[Dense] = embeddings
    if isinstance(embeddings, Tensor | np.ndarray):
        check_embeddings(embeddings)
        rows = embeddings
        batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    for batch in batches:
        check_embeddings(batch)

        def read(first: int, batch: Dense = batch) -> tuple[Dense, None]:
            return batch[first:], None

        yield [row.tobytes() for row in float32_rows(batch)], read


def stream(
    chunks: Iterable[Chunk],
    blank: Callable[[int], Calibration],
    *,
    bar: Callable[[], Any],
    resume_from: str | os.PathLike[str] | None,
    save_every: int,
) -> Calibration:
    """Fit a calibration on chunks, leaving out what the state file has seen."""
    path = None if resume_from is None else Path(resume_from)
    calibration: Calibration | None = None
    state: dict[str, Any] = {"consumed": 0, "seen": ""}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            calibration, state = _read_state(path, blank)
    consumed, unsaved, digest = 0, 0, hashlib.sha256()

    def consume(keys: Sequence[bytes]) -> None:
        nonlocal consumed
        for key in keys:
            digest.update(len(key).to_bytes(8, "little") + key)
        consumed += len(keys)

    with bar() as progress:
        for keys, read in chunks:
            known = min(len(keys), max(0, state["consumed"] - consumed))
            consume(keys[:known])
            if known and consumed == state["consumed"] and digest.hexdigest() != state["seen"]:
                raise _other_corpus(path, state["consumed"])
            if known < len(keys):
                dense, term_ids = read(known)
                if len(dense) != len(keys) - known:
                    raise unequal(len(dense), len(keys) - known)
                if calibration is None:
                    check_embeddings(dense)
                    calibration = blank(dense.shape[1])
                calibration.update(dense, term_ids)
                consume(keys[known:])
                unsaved += 1
                if path is not None and unsaved == save_every:
                    _write_state(path, calibration, consumed, digest.hexdigest())
                    unsaved = 0
            progress.update(len(keys))
    if consumed < state["consumed"]:
        raise _other_corpus(path, state["consumed"])
    if calibration is None:
        raise ValueError("texts or embeddings must hold at least one item, got none.")
    if path is not None and unsaved:
        _write_state(path, calibration, consumed, digest.hexdigest())
    return calibration


def _other_corpus(path: Path | None, consumed: int) -> ValueError:
    return ValueError(
        f"resume_from must belong to the corpus given, but the first {consumed} items are not those that {path} was "
        "fitted on. Give the same items in the same order, or delete the file."
    )


def _write_state(path: Path, calibration: Calibration, consumed: int, seen: str) -> None:
    tensors, settings = calibration.to_state(has_first_component=False)
    state = json.dumps({**settings, "consumed": consumed, "seen": seen})
    write_atomically(path, safetensors.torch.save(tensors, metadata={"state": state}))


def _read_state(path: Path, blank: Callable[[int], Calibration]) -> tuple[Calibration, dict[str, Any]]:
    tensors, metadata = read_tensors(path)
    try:
        state = json.loads(metadata["state"])
        expected = blank(state["embedding_dimension"])
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(f"resume_from must be a calibration's state file, got {path}. Delete it.") from err
    calibration = expected.from_state(tensors, state, path)
    expected.check_same(calibration, f"resume_from={str(path)!r}")
    return calibration, state
