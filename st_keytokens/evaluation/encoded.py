"""A collection after the one forward pass that all methods share."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util import truncate_embeddings

from st_keytokens.calibration import Calibration
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.evaluation.collections import Collection
from st_keytokens.forward_pass import Role
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.weighting import Weighting

__all__ = ["EncodedCollection", "Stopwatch", "encode_collection", "with_settings"]


class Stopwatch:
    """Seconds of named parts.

    Attributes:
        seconds: By name; a part that is measured twice is the sum.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measures what is done inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class EncodedCollection:
    """Pooled and dense vectors of a collection, from one pass over documents and queries.

    Attributes:
        collection: As given.
        encoder: The encoder with the calibration in force.
        document_pooled: What the head decodes, float32, shape ``(num_documents, pooled_dimension)``.
        query_pooled: The same of the queries.
        document_dense: The model's own embeddings, float32, shape ``(num_documents, embedding_dimension)``.
        query_dense: The same of the queries.
        seconds: ``encode_documents``, ``encode_queries`` and, where one was fitted, ``calibrate``.
        batch_size: Rows that are decoded at a time.
    """

    collection: Collection
    encoder: KeyTokenEncoder
    document_pooled: NDArray[np.float32]
    query_pooled: NDArray[np.float32]
    document_dense: NDArray[np.float32]
    query_dense: NDArray[np.float32]
    seconds: dict[str, float]
    batch_size: int = 256

    def sparsify_documents(self, encoder: KeyTokenEncoder) -> SparseEmbeddings:
        """The documents' key tokens with this encoder's settings."""
        return encoder.sparsify(self.document_pooled, self.collection.documents, batch_size=self.batch_size)

    def sparsify_queries(self, encoder: KeyTokenEncoder) -> SparseEmbeddings:
        """The queries' key tokens with this encoder's settings, from their pass."""
        return encoder.sparsify(self.query_pooled, self.collection.queries, role="query", batch_size=self.batch_size)

    @cached_property
    def documents(self) -> tuple[SparseEmbeddings, float]:
        """The documents' key tokens with the encoder's own settings, made once, and the seconds that it took."""
        start = time.perf_counter()
        return self.sparsify_documents(self.encoder), time.perf_counter() - start


def encode_collection(
    collection: Collection,
    encoder: KeyTokenEncoder,
    *,
    calibrate: bool | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> EncodedCollection:
    """Runs every document and every query through the model once.

    Args:
        collection: Which.
        encoder: With what. Not modified.
        calibrate: Whether to fit a calibration on the collection's own documents, from the same pass and without
            labels. None: where the encoder has none with document frequencies.
        batch_size: Texts a forward pass.
        show_progress_bar: Whether to show one.

    Returns:
        The vectors that all methods share.
    """
    watch = Stopwatch()
    with watch.part("encode_documents"):
        document_pooled, document_dense = _encode(
            encoder, collection.documents, "document", batch_size, show_progress_bar
        )
    with watch.part("encode_queries"):
        query_pooled, query_dense = _encode(encoder, collection.queries, "query", batch_size, show_progress_bar)
    own = encoder.calibration
    if own is None or own.document_frequencies is None if calibrate is None else calibrate:
        with watch.part("calibrate"):
            prepared = encoder.head.prepare_embeddings(torch.from_numpy(document_pooled)).numpy()
            calibration = Calibration.fit(
                encoder, collection.documents, embeddings=prepared, show_progress_bar=show_progress_bar
            )
        encoder = with_settings(encoder, encoder.weighting, calibration, **encoder.head.get_config_dict())
    return EncodedCollection(
        collection, encoder, document_pooled, query_pooled, document_dense, query_dense, watch.seconds
    )


def with_settings(
    encoder: KeyTokenEncoder, weighting: Weighting, calibration: Calibration | None, **head: Any
) -> KeyTokenEncoder:
    """An encoder that shares the model, LM head and vocabulary of another, with other settings.

    It is for decoding what the other has embedded; the other is not modified.

    Args:
        encoder: The other.
        weighting: The new weighting.
        calibration: The new calibration, or the same.
        **head: Settings of the head; what is not named is :class:`KeyTokenHead`'s default.

    Returns:
        The encoder.
    """
    changed = copy.copy(encoder)
    changed.head = KeyTokenHead(encoder.head.lm_head, encoder.vocabulary, calibration, **head)
    changed.head.eval()
    changed.weighting = weighting
    return changed


def _encode(
    encoder: KeyTokenEncoder, texts: list[str], role: Role, batch_size: int, show_progress_bar: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pooled vectors, and what the modules behind the head's place make of them."""
    forward_pass, model = encoder.forward_pass, encoder.model
    with encoder._lock, torch.inference_mode():
        pooled = forward_pass.pooled(texts, role, batch_size, show_progress_bar)
        dense = []
        for start in range(0, len(pooled), 4096):
            features = {"sentence_embedding": pooled[start : start + 4096].to(model.device)}
            for module in forward_pass.after:
                if (weights := next(module.parameters(), None)) is not None:
                    features["sentence_embedding"] = features["sentence_embedding"].to(weights.dtype)
                features = module(features)
            dense.append(truncate_embeddings(features["sentence_embedding"], model.truncate_dim).float().cpu())
        return pooled.numpy(), torch.cat(dense).numpy()
