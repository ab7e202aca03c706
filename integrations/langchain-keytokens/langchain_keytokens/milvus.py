"""Sparse embeddings for ``langchain_milvus.Milvus``."""

from __future__ import annotations

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import PairedEmbeddings

try:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
except ImportError as err:
    raise ImportError(
        'KeyTokensMilvusSparseEmbeddings needs langchain-milvus: pip install "langchain-keytokens[milvus]"'
    ) from err

__all__ = ["KeyTokensMilvusSparseEmbeddings"]


class KeyTokensMilvusSparseEmbeddings(BaseSparseEmbedding):
    """Key tokens of texts as sparse vectors for Milvus.

    Milvus takes no document with an empty sparse vector, so a text without a term is refused here, before anything is
    inserted. Give ``index_params`` and ``search_params`` as below: by default langchain-milvus asks for the smallest
    weights to be left out, which changes scores, and which Milvus Lite refuses.

    Setup:
        .. code-block:: bash

            pip install "langchain-keytokens[milvus]"

    Key init args:
        encoder: KeyTokenEncoder
            The one that ``KeyTokensEmbeddings`` has: both vectors of a text then cost one forward pass.

    Instantiate:
        .. code-block:: python

            from langchain_keytokens import KeyTokensEmbeddings, KeyTokensMilvusSparseEmbeddings
            from langchain_milvus import Milvus
            from st_keytokens import KeyTokenEncoder

            encoder = KeyTokenEncoder("examples/tiny-embedder/embedder")
            store = Milvus.from_texts(
                ["one text", "another"],
                [KeyTokensEmbeddings(encoder), KeyTokensMilvusSparseEmbeddings(encoder)],
                vector_field=["dense", "sparse"],
                index_params=[
                    {"index_type": "FLAT", "metric_type": "COSINE"},
                    {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"},
                ],
                search_params=[{"metric_type": "COSINE"}, {"metric_type": "IP"}],
                connection_args={"uri": "milvus.db"},
            )

    Usage:
        .. code-block:: python

            store.similarity_search_with_score("a question", k=3, ranker_type="rrf")

    Raises:
        TypeError: If ``encoder`` is no ``KeyTokenEncoder``, or a text is no string.
        ValueError: If a document has no term.
    """

    def __init__(self, encoder: KeyTokenEncoder) -> None:
        self._pair = PairedEmbeddings(encoder)

    @property
    def encoder(self) -> KeyTokenEncoder:
        """As given."""
        return self._pair.encoder

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Sparse vectors of documents, weights above zero by token id."""
        vectors = [dict(zip(*vector, strict=True)) for vector in self._pair.sparse_documents(texts)]
        for text, vector in zip(texts, vectors, strict=True):
            if not vector:
                raise ValueError(
                    f"texts must have a term each, as Milvus takes no empty vector, got {text!r:.60}. Leave it out."
                )
        return vectors

    def embed_query(self, query: str) -> dict[int, float]:
        """Sparse vector of a query, made as the encoder's ``query`` says; empty for a query without a term."""
        return dict(zip(*self._pair.sparse_query(query), strict=True))
