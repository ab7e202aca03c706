"""Sparse embeddings over a vocabulary: compressed sparse rows with strict rules, and their conversions."""

from __future__ import annotations

from st_keytokens.sparse_embeddings.hybrid_embeddings import HybridEmbeddings
from st_keytokens.sparse_embeddings.sparse_embeddings import SparseEmbeddings

__all__ = ["HybridEmbeddings", "SparseEmbeddings"]
