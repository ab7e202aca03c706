"""Sparse embeddings for ``langchain_qdrant.QdrantVectorStore``."""

from __future__ import annotations

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import PairedEmbeddings

try:
    from langchain_qdrant import SparseEmbeddings, SparseVector
except ImportError as err:
    raise ImportError(
        'KeyTokensSparseEmbeddings needs langchain-qdrant: pip install "langchain-keytokens[qdrant]"'
    ) from err

__all__ = ["KeyTokensSparseEmbeddings"]


class KeyTokensSparseEmbeddings(SparseEmbeddings):
    """Key tokens of texts as sparse vectors for Qdrant; a text without a term has an empty one.

    The weights are complete: the collection must not have ``modifier=models.Modifier.IDF`` set for them.

    Setup:
        .. code-block:: bash

            pip install "langchain-keytokens[qdrant]"

    Key init args:
        encoder: KeyTokenEncoder
            The one that ``KeyTokensEmbeddings`` has: both vectors of a text then cost one forward pass.

    Instantiate:
        .. code-block:: python

            from langchain_keytokens import KeyTokensEmbeddings, KeyTokensSparseEmbeddings
            from langchain_qdrant import QdrantVectorStore, RetrievalMode
            from st_keytokens import KeyTokenEncoder

            encoder = KeyTokenEncoder("examples/tiny-embedder/embedder")
            store = QdrantVectorStore.from_texts(
                ["one text", "another"],
                embedding=KeyTokensEmbeddings(encoder),
                sparse_embedding=KeyTokensSparseEmbeddings(encoder),
                retrieval_mode=RetrievalMode.HYBRID,
                location=":memory:",
            )

    Usage:
        .. code-block:: python

            store.similarity_search_with_score("a question", k=3)

    Raises:
        TypeError: If ``encoder`` is no ``KeyTokenEncoder``, or a text is no string.
    """

    def __init__(self, encoder: KeyTokenEncoder) -> None:
        self._pair = PairedEmbeddings(encoder)

    @property
    def encoder(self) -> KeyTokenEncoder:
        """As given."""
        return self._pair.encoder

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Sparse vectors of documents; indices ascend and are unique, values are above zero."""
        return [SparseVector(indices=ids, values=weights) for ids, weights in self._pair.sparse_documents(texts)]

    def embed_query(self, text: str) -> SparseVector:
        """Sparse vector of a query, made as the encoder's ``query`` says."""
        ids, weights = self._pair.sparse_query(text)
        return SparseVector(indices=ids, values=weights)
