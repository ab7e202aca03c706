"""A collection after the one forward pass that all methods share."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_keytokens.calibration import Calibration
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import Role
from st_keytokens.encoder.pooled_vectors import dense_vectors, for_pooled, pooled_vectors, vectors_key
from st_keytokens.evaluation.collections import Collection
from st_keytokens.evaluation.runs import tie_order
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.shared.hashes import fingerprint
from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.terms.weighting import Weighting


class Stopwatch:
    """Seconds of named parts; a part that is measured twice is the sum."""

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
    """Vectors of a collection from one pass over documents and queries, float32, and the encoder as it is calibrated.

    Pooled vectors, which the head decodes, are ``(N, pooled_dimension)``, dense ones, the model's own embeddings,
    ``(N, embedding_dimension)``. Seconds are ``encode_documents``, ``encode_queries`` and, where one was fitted,
    ``calibrate``.
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
        texts = self.collection.documents
        return for_pooled(encoder).sparsify(self.document_pooled, texts, batch_size=self.batch_size)

    def sparsify_queries(self, encoder: KeyTokenEncoder) -> SparseEmbeddings:
        """The queries' key tokens with this encoder's settings, from their pass."""
        texts = self.collection.queries
        return for_pooled(encoder).sparsify(self.query_pooled, texts, role="query", batch_size=self.batch_size)

    @cached_property
    def ties(self) -> NDArray[np.int64]:
        """See :func:`~st_keytokens.evaluation.runs.tie_order`."""
        return tie_order(self.collection.doc_ids)

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
    cache: str | Path | None = None,
    show_progress_bar: bool = False,
) -> EncodedCollection:
    """Runs every document and every query through the model once; arguments are those of ``run_comparison``.

    ``cache`` keeps the vectors in a folder for each model and collection: what is there is not embedded again, and an
    interrupted run goes on from there; seconds are then those of the first time.
    """
    watch = Stopwatch()

    def encode(texts: list[str], role: Role) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        path = None
        if cache is not None:
            content = fingerprint({"vectors": vectors_key(encoder, role), "texts": texts})
            path = Path(cache) / f"{collection.name}-{role}-{content[:16]}"
        pooled, seconds = pooled_vectors(
            encoder, texts, role=role, path=path, batch_size=batch_size, show_progress_bar=show_progress_bar
        )
        part = "encode_documents" if role == "document" else "encode_queries"
        watch.seconds[part] = seconds  # those of the pass, whenever that was
        with watch.part(part):
            return pooled, dense_vectors(encoder, pooled)

    document_pooled, document_dense = encode(collection.documents, "document")
    query_pooled, query_dense = encode(collection.queries, "query")
    own = encoder.calibration
    if own is None or own.terms is None if calibrate is None else calibrate:
        with watch.part("calibrate"):
            calibration = Calibration.fit(
                encoder, collection.documents, embeddings=document_pooled, show_progress_bar=show_progress_bar
            )
        encoder = with_settings(encoder, encoder.weighting, calibration, **encoder.head.get_config_dict())
    return EncodedCollection(
        collection, encoder, document_pooled, query_pooled, document_dense, query_dense, watch.seconds
    )


def with_settings(
    encoder: KeyTokenEncoder, weighting: Weighting, calibration: Calibration | None, **head: Any
) -> KeyTokenEncoder:
    """An encoder with other settings that shares model, LM head and vocabulary.

    Settings of the head that are not named are :class:`KeyTokenHead`'s defaults.
    """
    changed = copy.copy(encoder)
    settings: Any = {**KeyTokenHead().get_config_dict(), **head}
    changed.head = encoder.head.with_settings(**settings)
    changed.head.set_calibration(calibration)
    changed.head.eval()
    changed.forward_pass = copy.copy(encoder.forward_pass)
    changed.forward_pass.head = changed.head
    changed.weighting = weighting
    return changed
