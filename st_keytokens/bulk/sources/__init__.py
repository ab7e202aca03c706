"""Stored embeddings, read in batches from wherever they are; each kind of source in a file of its own."""

from __future__ import annotations

from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch, EmbeddingSource
from st_keytokens.bulk.sources.opening import KINDS, SourceKind, open_source

__all__ = ["KINDS", "EmbeddingBatch", "EmbeddingSource", "SourceKind", "open_source"]
