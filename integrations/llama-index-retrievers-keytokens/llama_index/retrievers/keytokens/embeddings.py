"""Dense and sparse embeddings of one encoder, for any LlamaIndex index and vector store."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import PairedEmbeddings, as_encoder

__all__ = ["KeyTokensEmbedding", "KeyTokensSparseEmbedding"]

_BATCH_SIZE = 64  # texts per call; the encoder sorts them by length and splits them


class KeyTokensEmbedding(BaseEmbedding):
    """Dense vectors of a :class:`~st_keytokens.KeyTokenEncoder`: those of its model, unchanged.

    Give the same encoder to the sparse side, whatever that is: a text that both embed takes one forward pass.

    Install it with ``pip install llama-index-retrievers-keytokens``.

    Args:
        encoder: The encoder, or any ``BaseEmbedding`` to make one of, which the attribute gives.
        embed_batch_size: Texts per call.

    Raises:
        TypeError: If ``encoder`` is nothing that embeds.

    Example:
        .. code-block:: python

            from llama_index.core import VectorStoreIndex
            from llama_index.retrievers.keytokens import KeyTokensEmbedding

            index = VectorStoreIndex(nodes, embed_model=KeyTokensEmbedding(encoder))
    """

    fingerprint: str = Field(
        default="", description="Names the encoder, so that caches of transformations tell encoders apart."
    )
    _pair: PairedEmbeddings = PrivateAttr()

    def __init__(self, encoder: KeyTokenEncoder | BaseEmbedding | Any, embed_batch_size: int = _BATCH_SIZE) -> None:
        encoder = as_encoder(encoder)
        pair = PairedEmbeddings(encoder)
        super().__init__(model_name=_name(encoder), embed_batch_size=embed_batch_size)
        self.fingerprint = encoder.fingerprint
        self._pair = pair

    @classmethod
    def class_name(cls) -> str:
        """Name of the class."""
        return "KeyTokensEmbedding"

    @property
    def encoder(self) -> KeyTokenEncoder:
        """The encoder."""
        return self._pair.encoder

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._pair.dense_query(query)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._pair.dense_documents(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class KeyTokensSparseEmbedding(BaseSparseEmbedding):
    """Sparse vectors of a :class:`~st_keytokens.KeyTokenEncoder`, as weights by token id.

    For stores that take a ``BaseSparseEmbedding``, such as ``PineconeVectorStore(add_sparse_vector=True,
    sparse_embedding_model=...)``. For Qdrant and Milvus see :func:`qdrant_sparse_functions` and
    ``KeyTokensMilvusFunction``. Stores refuse a whole batch for one vector without terms, so a text that has none gets
    a term beyond the vocabulary: one for documents and another for queries, so that neither finds the other.

    Install it with ``pip install llama-index-retrievers-keytokens``.

    Args:
        encoder: The encoder; give the same one to :class:`KeyTokensEmbedding`.
        embed_batch_size: Texts per call.

    Raises:
        TypeError: If ``encoder`` is nothing that embeds.

    Example:
        .. code-block:: python

            from llama_index.retrievers.keytokens import KeyTokensSparseEmbedding

            sparse = KeyTokensSparseEmbedding(encoder)
            sparse.get_text_embedding("planets around other stars")  # {1040: 1.3, ...}
    """

    fingerprint: str = Field(default="", description="Names the encoder.")
    _pair: PairedEmbeddings = PrivateAttr()

    def __init__(self, encoder: KeyTokenEncoder | BaseEmbedding | Any, embed_batch_size: int = _BATCH_SIZE) -> None:
        encoder = as_encoder(encoder)
        pair = PairedEmbeddings(encoder)
        super().__init__(model_name=_name(encoder), embed_batch_size=embed_batch_size)
        self.fingerprint = encoder.fingerprint
        self._pair = pair

    @classmethod
    def class_name(cls) -> str:
        """Name of the class."""
        return "KeyTokensSparseEmbedding"

    @property
    def encoder(self) -> KeyTokenEncoder:
        """The encoder."""
        return self._pair.encoder

    def similarity(self, embedding1: SparseEmbedding, embedding2: SparseEmbedding) -> float:
        """The dot product, which the ranking is by, and not the cosine."""
        return sum(weight * embedding2.get(term, 0.0) for term, weight in embedding1.items())

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        beyond = {self.encoder.vocabulary.vocab_size + 1: 1.0}
        return dict(zip(*self._pair.sparse_query(query), strict=True)) or beyond

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        beyond = {self.encoder.vocabulary.vocab_size: 1.0}
        return [dict(zip(*row, strict=True)) or dict(beyond) for row in self._pair.sparse_documents(texts)]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


def _name(encoder: KeyTokenEncoder) -> str:
    """The model's name or path, where it has one."""
    return str(encoder.model.model_card_data.base_model or "key-tokens")
