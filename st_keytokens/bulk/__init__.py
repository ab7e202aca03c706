"""Bulk: sparse embeddings of millions of texts, as Parquet shards that every engine loader reads.

A directory holds ``part-00000.parquet``, ... with the columns ``id: string``, ``indices: list<int32>`` (ascending
token ids) and ``values: list<float32>`` (weights above zero), and ``manifest.json``, which names each shard with its
rows, size and SHA-256, the vocabulary's size and the encoder's fingerprint. Needs pyarrow: the extra ``bulk``.
"""

from __future__ import annotations

from st_keytokens.bulk.batch_encoder import KeyTokenBatchEncoder
from st_keytokens.bulk.conversion import Converted, convert
from st_keytokens.bulk.shards import (
    Manifest,
    Shard,
    ShardWriter,
    collect_shards,
    read_batches,
    read_manifest,
    verify,
)
from st_keytokens.bulk.sources import EmbeddingBatch, EmbeddingSource, open_source, register_source

__all__ = [
    "Converted",
    "EmbeddingBatch",
    "EmbeddingSource",
    "KeyTokenBatchEncoder",
    "Manifest",
    "Shard",
    "ShardWriter",
    "collect_shards",
    "convert",
    "open_source",
    "read_batches",
    "read_manifest",
    "register_source",
    "verify",
]
