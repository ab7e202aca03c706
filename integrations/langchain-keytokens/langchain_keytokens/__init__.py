"""LangChain on key tokens: embeddings and retrievers that share one forward pass for dense and sparse vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_keytokens.embeddings import KeyTokensEmbeddings
from langchain_keytokens.hybrid_retrievers import KeyTokensHybridRetriever
from langchain_keytokens.retrievers import KeyTokensRetriever
from langchain_keytokens.self_query import KeyTokensTranslator
from langchain_keytokens.vectorstores import KeyTokensDocumentIndex, KeyTokensVectorStore

if TYPE_CHECKING:
    from langchain_keytokens.milvus import KeyTokensMilvusSparseEmbeddings
    from langchain_keytokens.qdrant import KeyTokensSparseEmbeddings

__all__ = [
    "KeyTokensDocumentIndex",
    "KeyTokensEmbeddings",
    "KeyTokensHybridRetriever",
    "KeyTokensMilvusSparseEmbeddings",
    "KeyTokensRetriever",
    "KeyTokensSparseEmbeddings",
    "KeyTokensTranslator",
    "KeyTokensVectorStore",
    "__version__",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the classes that derive from a vector store's package when they are asked for."""
    if name == "KeyTokensSparseEmbeddings":
        from langchain_keytokens.qdrant import KeyTokensSparseEmbeddings

        return KeyTokensSparseEmbeddings
    if name == "KeyTokensMilvusSparseEmbeddings":
        from langchain_keytokens.milvus import KeyTokensMilvusSparseEmbeddings

        return KeyTokensMilvusSparseEmbeddings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
