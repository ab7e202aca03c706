"""Sparse vectors for ``MilvusVectorStore(enable_sparse=True)``."""

from __future__ import annotations

import asyncio

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import PairedEmbeddings

try:
    from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction
except ImportError as err:
    raise ImportError(
        "KeyTokensMilvusFunction needs LlamaIndex's Milvus store. "
        'Install it with: pip install "llama-index-retrievers-keytokens[milvus]"'
    ) from err

__all__ = ["KeyTokensMilvusFunction"]


class KeyTokensMilvusFunction(BaseSparseEmbeddingFunction):
    """Sparse vectors of a :class:`~st_keytokens.KeyTokenEncoder` for Milvus.

    LlamaIndex's Milvus store embeds a node densely with the metadata of ``MetadataMode.EMBED``, but gives its sparse
    function the bare text. Where a node has metadata that are embedded, the two differ, and it takes two forward
    passes; without, or with ``excluded_embed_metadata_keys``, one.

    Install it with ``pip install "llama-index-retrievers-keytokens[milvus]"``.

    Args:
        encoder: The encoder; give the same one to :class:`KeyTokensEmbedding`.

    Raises:
        TypeError: If ``encoder`` is no ``KeyTokenEncoder``.

    Example:
        .. code-block:: python

            store = MilvusVectorStore(
                "milvus.db",
                dim=encoder.get_embedding_dimension(),
                enable_sparse=True,
                sparse_embedding_function=KeyTokensMilvusFunction(encoder),
            )
    """

    def __init__(self, encoder: KeyTokenEncoder) -> None:
        self._pair = PairedEmbeddings(encoder)

    @property
    def encoder(self) -> KeyTokenEncoder:
        """The encoder."""
        return self._pair.encoder

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """Weights by token id, one dictionary per query; one without terms gets one that no document has."""
        beyond = {self.encoder.vocabulary.vocab_size + 1: 1.0}
        return [dict(zip(*self._pair.sparse_query(query), strict=True)) or dict(beyond) for query in queries]

    async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """:meth:`encode_queries` in a thread."""
        return await asyncio.to_thread(self.encode_queries, queries)

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Weights by token id, one dictionary per document.

        Milvus refuses a whole batch for one vector without terms, so a document that has none gets one that no query
        has, beyond the vocabulary, and is never found by its sparse vector.
        """
        beyond = {self.encoder.vocabulary.vocab_size: 1.0}
        return [dict(zip(*row, strict=True)) or dict(beyond) for row in self._pair.sparse_documents(documents)]

    async def async_encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """:meth:`encode_documents` in a thread."""
        return await asyncio.to_thread(self.encode_documents, documents)
