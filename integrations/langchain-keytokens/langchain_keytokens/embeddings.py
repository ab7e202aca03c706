"""Dense embeddings for any LangChain vector store, from the encoder that also makes the sparse ones."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import PairedEmbeddings, as_encoder

__all__ = ["KeyTokensEmbeddings"]


class KeyTokensEmbeddings(Embeddings):
    """Dense vectors of a :class:`~st_keytokens.KeyTokenEncoder`: those of its model, unchanged.

    Setup:
        .. code-block:: bash

            pip install langchain-keytokens

    Key init args:
        encoder: KeyTokenEncoder | Embeddings
            A ``KeyTokenEncoder``, or any ``Embeddings`` to make one of, which ``encoder`` gives. Give the same one to
            the sparse embeddings or to the retriever: both vectors of a text then cost one forward pass.

    Instantiate:
        .. code-block:: python

            from langchain_keytokens import KeyTokensEmbeddings
            from st_keytokens import KeyTokenEncoder

            encoder = KeyTokenEncoder("examples/tiny-embedder/embedder")
            embeddings = KeyTokensEmbeddings(encoder)

    Usage:
        .. code-block:: python

            embeddings.embed_query("planets around other stars")  # a list of floats
            embeddings.embed_documents(["one text", "another"])  # a list of lists
            await embeddings.aembed_query("planets around other stars")

    Raises:
        TypeError: If ``encoder`` is nothing that embeds, or a text is no string.
    """

    def __init__(self, encoder: KeyTokenEncoder | Embeddings) -> None:
        self._pair = PairedEmbeddings(as_encoder(encoder))

    @property
    def encoder(self) -> KeyTokenEncoder:
        """As given, or made of it."""
        return self._pair.encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Dense vectors of documents, as the model gives them."""
        return self._pair.dense_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """Dense vector of a query; takes a forward pass even where the encoder looks its queries up."""
        return self._pair.dense_query(text)
