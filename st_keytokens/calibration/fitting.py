"""Files that hold a calibration, finished or half fitted: safetensors and JSON, checked against their hash."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from st_keytokens.calibration.moments import float32_rows
from st_keytokens.decoding.first_component import Dense, check_embeddings
from st_keytokens.shared.files import parse_json, read_json, read_tensors, write_atomically

Documents = tuple[Dense, Sequence[NDArray[Any]] | None]
"""Embeddings and, where terms are counted, the term ids of each document."""

Chunk = tuple[list[bytes], Callable[[int], Documents]]
"""What identifies each item of a chunk, and a function that reads its documents from an item on."""

_CHUNK_BATCHES = 16  # the encoder sorts a chunk by length before it forms batches


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

    def embed(self, texts: list[str], *, role: Any, batch_size: int) -> NDArray[np.float32]:
        """As in ``KeyTokenEncoder``."""

    def prepare_embeddings(self, embeddings: Dense) -> Dense:
        """What ``embed`` gives, of vectors as the model gives them."""

    def literal_terms(self, texts: list[str]) -> list[NDArray[Any]]:
        """As in ``KeyTokenEncoder``."""


def text_chunks(
    encoder: CalibrationEncoder, texts: Iterable[str], embeddings: Dense | None, batch_size: int
) -> Iterator[Chunk]:
    """Chunks of texts.

    Args:
        encoder: Embeds them, and finds their terms.
        texts: The texts.
        embeddings: Their vectors, shape ``(N, d)``, as the model gives them; None: they are embedded.
        batch_size: Texts a forward pass at most.

    Yields:
        Chunks of 16 batches. Nothing is embedded until it is read.

    Raises:
        TypeError: If something is not a string.
        ValueError: If the numbers of texts and embeddings differ.
    """
    iterator, start = iter(texts), 0
    while chunk := list(islice(iterator, _CHUNK_BATCHES * batch_size)):
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

        def read(first: int, chunk: list[str] = chunk, stored: Dense | None = stored) -> Documents:
            if stored is None:
                dense: Dense = encoder.embed(chunk[first:], role="document", batch_size=batch_size)
            else:
                dense = encoder.prepare_embeddings(stored[first:])
            return dense, encoder.literal_terms(chunk[first:])

        yield keys, read
    if embeddings is not None and len(embeddings) > start:
        raise unequal(len(embeddings), start)


def embedding_chunks(embeddings: Dense | Iterable[Dense], batch_size: int) -> Iterator[Chunk]:
    """Chunks of stored embeddings."""
    batches: Iterable[Dense] = embeddings
    if isinstance(embeddings, Tensor | np.ndarray):
        check_embeddings(embeddings)
        rows = embeddings
        batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    for batch in batches:
        check_embeddings(batch)

        def read(first: int, batch: Dense = batch) -> Documents:
            return batch[first:], None

        yield [row.tobytes() for row in float32_rows(batch)], read


def unequal(rows: int, texts: int | str) -> ValueError:
    """The error that numbers of embeddings and texts differ."""
    return ValueError(f"embeddings must have one row a text, got {rows} rows for {texts} texts.")


FORMAT_VERSION = 3
_TENSORS_FILE, _SETTINGS_FILE = "calibration.safetensors", "calibration.json"
_NOT_HASHED = {"model_name", "hash", "stemmer"}

State = tuple[dict[str, Tensor], dict[str, Any]]
"""A calibration as tensors and JSON values."""


def state_hash(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, over tensors on the CPU and settings, except names of the model and the stemmer."""
    hashed = {name: value for name, value in settings.items() if name not in _NOT_HASHED}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def write_directory(directory: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Write ``calibration.safetensors`` and ``calibration.json``, each atomically; see :meth:`Calibration.save`."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {**settings, "hash": state_hash(tensors, settings)}
    _write_tensors(directory / _TENSORS_FILE, tensors)
    write_atomically(directory / _SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())


def read_directory(directory: Path) -> State:
    """Read what :func:`write_directory` wrote; see :meth:`Calibration.load`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is truncated, altered, or of an unknown format version.
    """
    path = directory / _TENSORS_FILE
    for name in (_SETTINGS_FILE, _TENSORS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"directory must hold {name}, got none in {str(directory)!r}.")
    try:
        settings = read_json(directory / _SETTINGS_FILE)
    except ValueError as err:
        raise ValueError(f"{err} Fit the calibration again.") from err
    return _checked(path, read_tensors(path)[0], settings)


def write_progress(path: Path, tensors: dict[str, Tensor], settings: dict[str, Any], consumed: int, seen: str) -> None:
    """Write the state file of a fit, atomically."""
    settings = {**settings, "consumed": consumed, "seen": seen}
    state = json.dumps({**settings, "hash": state_hash(tensors, settings)})
    _write_tensors(path, tensors, {"state": state})


def read_progress(path: Path) -> State:
    """Read what :func:`write_progress` wrote; ``consumed`` and ``seen`` are among the settings.

    Raises:
        ValueError: If the file is truncated, altered, no state file, or of an unknown format version.
    """
    tensors, metadata = read_tensors(path)
    try:
        settings = parse_json(metadata["state"], path)
    except (KeyError, ValueError) as err:
        raise ValueError(f"resume_from must be a calibration's state file, got {path}. Delete it.") from err
    return _checked(path, tensors, settings)


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace a safetensors file atomically, without a copy of the tensors in memory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.touch()
        safetensors.torch.save_file(tensors, temporary, metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as err:
        raise OSError(f"{path} cannot be written: {err}.") from err
    finally:
        temporary.unlink(missing_ok=True)


def _checked(path: Path, tensors: dict[str, Tensor], settings: Any) -> State:
    version = settings.get("format_version") if isinstance(settings, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} must have format_version {FORMAT_VERSION}, got {version}. Fit the calibration again, or use the "
            "version of st-keytokens that wrote it."
        )
    try:
        found = state_hash(tensors, settings)
    except (TypeError, ValueError, RuntimeError):  # of a type that is none of a calibration's
        found = "none"
    if not isinstance(settings.get("model_name", 0), str | None):
        raise ValueError(f"{path} must have a string as model_name. Delete it and fit the calibration again.")
    if found != settings.get("hash"):
        raise ValueError(
            f"{path} must have the hash {settings.get('hash')} that it was written with, got {found}: it or its "
            "settings were altered. Delete it and fit the calibration again."
        )
    return tensors, settings
