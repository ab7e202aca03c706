"""Stored embeddings to sparse ones in three stages that run at the same time: read, decode, weigh.

A thread reads, checks and, for a GPU, copies the rows into pinned memory and from there on to the device; another one
runs the product and the top-k, whose results come back into pinned memory while the next product runs; the caller's
thread adds the literal terms and writes. On the CPU the stages are the same, without the copies.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from st_keytokens.bulk.prefetching import prefetched
from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch
from st_keytokens.decoding import check_finite
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.first_component import check_embeddings
from st_keytokens.forward_pass import Role, as_sparse
from st_keytokens.sparse_embeddings import SparseEmbeddings

_AHEAD = 2  # batches between two stages


@dataclass(frozen=True, eq=False)
class SparseBatch:
    """Some rows, made sparse.

    Attributes:
        ids: Their ids.
        sparse: As many rows.
        position: Where the source is to be read on from after them.
    """

    ids: list[str]
    sparse: SparseEmbeddings
    position: Any


def sparsify_batches(
    encoder: KeyTokenEncoder, batches: Iterable[EmbeddingBatch], *, role: Role = "document", start: int = 0
) -> Generator[SparseBatch, None, None]:
    """What ``encoder.sparsify`` gives for each batch, with reading, decoding and the caller's work side by side.

    Args:
        encoder: The encoder; on CUDA best with an LM head in bfloat16.
        batches: Read in another thread.
        role: See ``KeyTokenEncoder.sparsify``.
        start: Number of the first row, for ids of rows that have none and for errors.

    Returns:
        An iterator in the order of the batches.

    Raises:
        TypeError: See ``KeyTokenEncoder.sparsify``; while reading.
        ValueError: See ``KeyTokenEncoder.sparsify``; while reading, but at once where more than a normalisation
            follows pooling in the model.
    """
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
