"""LlamaIndex on key tokens: retrievers and embeddings that share one forward pass for dense and sparse vectors.

What derives from a vector store's package is in a module of its own: ``llama_index.retrievers.keytokens.milvus``.
"""

from __future__ import annotations

from llama_index.retrievers.keytokens.embeddings import KeyTokensEmbedding, KeyTokensSparseEmbedding
from llama_index.retrievers.keytokens.hits import KeyTokensNodeWithScore, KeyTokensQueryBundle
from llama_index.retrievers.keytokens.hybrid_retriever import KeyTokensHybridRetriever
from llama_index.retrievers.keytokens.qdrant import qdrant_sparse_functions
from llama_index.retrievers.keytokens.retriever import KeyTokensRetriever
from llama_index.retrievers.keytokens.vector_store import KeyTokensVectorStore

__all__ = [
    "KeyTokensEmbedding",
    "KeyTokensHybridRetriever",
    "KeyTokensNodeWithScore",
    "KeyTokensQueryBundle",
    "KeyTokensRetriever",
    "KeyTokensSparseEmbedding",
    "KeyTokensVectorStore",
    "qdrant_sparse_functions",
]

__version__ = "0.1.0"
