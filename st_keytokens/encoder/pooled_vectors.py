"""Pooled vectors: what one forward pass a text gives, from which dense and sparse vectors are made afterwards.

On disk they outlive an interruption: a directory holds ``about.json`` (the model, and the seconds that were spent),
``vectors.f32`` (rows of float32) and ``texts.digests`` (16 bytes a text, written after its row).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util import truncate_embeddings
from tqdm.auto import tqdm

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import Role, resolve_prompt
from st_keytokens.shared.files import write_atomically
from st_keytokens.shared.hashes import fingerprint
from st_keytokens.sparse_embeddings import HybridEmbeddings
from st_keytokens.terms.literal_terms import check_texts

__all__ = ["Texts", "dense_vectors", "for_pooled", "hybrid_embeddings", "pooled_vectors", "vectors_key"]


_CHUNK_BATCHES = 16  # batches that are sorted by length, embedded and written together
_DIGEST_SIZE = 16
_ROWS = 4096  # rows that go through the modules behind pooling at a time


class Texts(Protocol):
    """Texts that can be counted, and read more than once."""

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[str]:
        """One after the other."""


def vectors_key(encoder: KeyTokenEncoder, role: Role) -> str:
    """Identifies what turns a text into its pooled vector: model, settings, dtype, role and prompt."""
    weights = next(encoder.model.parameters(), None)
    return fingerprint(
        {
            "model": encoder.model_name,
            "dtype": None if weights is None else str(weights.dtype),
            "role": role,
            "prompt": resolve_prompt(encoder.model, role, None, None),
        }
    )


def pooled_vectors(
    encoder: KeyTokenEncoder,
    texts: Texts,
    *,
    role: Role = "document",
    path: Path | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> tuple[NDArray[np.float32], float]:
    """Embeds texts up to pooling; with a path, only those that are not there yet.

    Args:
        encoder: Whose model.
        texts: The texts.
        role: Decides the prompt.
        path: Directory that keeps the vectors. What is there is used as far as its texts are the first of these, and
            replaced from there on. None: they are held in memory.
        batch_size: Texts a forward pass at most.
        show_progress_bar: Whether to show one.

    Returns:
        float32 ``(N, pooled_dimension)``, memory-mapped where there is a path, and the seconds that embedding took,
        those of earlier runs included.

    Raises:
        ValueError: If the directory holds vectors of another model.
    """
    store = None if path is None else _Store(path, vectors_key(encoder, role), encoder.forward_pass.pooled_dimension)
    count, seconds = (0, 0.0) if store is None else (store.keep_matching(texts), store.seconds)
    made = [np.zeros((0, encoder.forward_pass.pooled_dimension), dtype=np.float32)]
    remaining = islice(iter(texts), count, None)
    with tqdm(
        total=len(texts), initial=count, unit="text", desc="Embedding", disable=not show_progress_bar or not len(texts)
    ) as bar:
        while chunk := list(islice(remaining, _CHUNK_BATCHES * batch_size)):
            start = time.perf_counter()
            with encoder.lock, torch.inference_mode():
                rows: NDArray[np.float32] = encoder.forward_pass.pooled(check_texts(chunk), role, batch_size).numpy()
            seconds += time.perf_counter() - start
            if store is None:
                made.append(rows)
            else:
                store.append(chunk, rows, seconds)
            bar.update(len(chunk))
    return (np.concatenate(made) if store is None else store.read()), seconds


def dense_vectors(encoder: KeyTokenEncoder, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the modules behind pooling make of pooled vectors: the model's own embeddings.

    Args:
        encoder: Whose model.
        pooled: Shape ``(N, pooled_dimension)``.

    Returns:
        float32 ``(N, embedding_dimension)``.
    """
    model, dense = encoder.model, np.zeros((len(pooled), encoder.get_embedding_dimension()), dtype=np.float32)
    with encoder.lock, torch.inference_mode():
        for start in range(0, len(pooled), _ROWS):
            features = {"sentence_embedding": torch.tensor(pooled[start : start + _ROWS], device=model.device)}
            for module in encoder.forward_pass.after:
                if (weights := next(module.parameters(), None)) is not None:
                    features["sentence_embedding"] = features["sentence_embedding"].to(weights.dtype)
                features = module(features)
            vectors = truncate_embeddings(features["sentence_embedding"], model.truncate_dim)
            dense[start : start + _ROWS] = vectors.float().cpu().numpy()
    return dense


def for_pooled(encoder: KeyTokenEncoder) -> KeyTokenEncoder:
    """A copy that shares everything with an encoder, and whose ``sparsify`` takes pooled vectors of any model.

    That of the encoder itself refuses models with more than a normalisation behind pooling, since their stored
    vectors are not pooled ones.
    """
    changed = copy.copy(encoder)
    changed.forward_pass = copy.copy(encoder.forward_pass)
    changed.forward_pass.after = []
    return changed


def hybrid_embeddings(
    encoder: KeyTokenEncoder, pooled: NDArray[np.float32], texts: Sequence[str], *, role: Role = "document"
) -> HybridEmbeddings:
    """Dense and sparse vectors of pooled ones, as ``encode`` gives them.

    Args:
        encoder: With the calibration in force.
        pooled: Shape ``(N, pooled_dimension)``.
        texts: The texts that they are of.
        role: Of the texts.

    Returns:
        One row a text.
    """
    sparse = for_pooled(encoder).sparsify(pooled, texts, role=role)
    return HybridEmbeddings(dense_vectors(encoder, pooled), sparse)


class _Store:
    """The directory of pooled vectors."""

    def __init__(self, path: Path, key: str, dimension: int) -> None:
        self._path, self._key, self._dimension = path, key, dimension
        self._files = {path / "vectors.f32": 4 * dimension, path / "texts.digests": _DIGEST_SIZE}  # bytes a text
        self._count = 0
        self.seconds = 0.0
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "about.json").is_file():
            return
        try:
            about = json.loads((path / "about.json").read_text(encoding="utf-8"))
            saved, self.seconds = str(about["key"]), float(about["seconds"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
            raise ValueError(f"{path} must hold stored vectors, got something else. Delete it.") from err
        if saved != key:
            raise ValueError(
                f"{path} must hold vectors of this model, its settings and prompts, got those of another. "
                "Use that model, or delete the directory."
            )

    def keep_matching(self, texts: Texts) -> int:
        """Cuts what is there to the texts that it shares with the beginning of these; gives their number."""
        vectors, digests = self._files
        for path in self._files:
            path.touch()
        saved = digests.read_bytes()
        most = min(vectors.stat().st_size // self._files[vectors], len(saved) // _DIGEST_SIZE)
        for text in islice(texts, most):
            if saved[self._count * _DIGEST_SIZE : (self._count + 1) * _DIGEST_SIZE] != _digest(text):
                break
            self._count += 1
        for path, width in self._files.items():
            os.truncate(path, self._count * width)
        self.seconds *= self._count > 0
        return self._count

    def append(self, texts: Sequence[str], rows: NDArray[np.float32], seconds: float) -> None:
        """Adds rows, then the digests that make them count."""
        write_atomically(self._path / "about.json", json.dumps({"key": self._key, "seconds": seconds}).encode())
        contents = rows.tobytes(), b"".join(map(_digest, texts))
        for (path, width), content in zip(self._files.items(), contents, strict=True):
            with path.open("ab") as file:
                if file.tell() != self._count * width:
                    raise ValueError(f"{self._path} must be written by one process at a time, got another. Run again.")
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        self._count += len(texts)

    def read(self) -> NDArray[np.float32]:
        """All rows; changes to them stay in memory."""
        if not self._count:
            return np.zeros((0, self._dimension), dtype=np.float32)
        vectors, _ = self._files
        return np.memmap(vectors, dtype=np.float32, mode="c", shape=(self._count, self._dimension))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_SIZE).digest()
