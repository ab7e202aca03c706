"""Sparse vectors for ``QdrantVectorStore(enable_hybrid=True)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import PairedEmbeddings

__all__ = ["qdrant_sparse_functions"]

Vectors = tuple[list[list[int]], list[list[float]]]
SparseFunction = Callable[[list[str]], Vectors]


def qdrant_sparse_functions(encoder: KeyTokenEncoder) -> tuple[SparseFunction, SparseFunction]:
    """The two functions that LlamaIndex's Qdrant store makes sparse vectors with.

    Install the store with ``pip install "llama-index-retrievers-keytokens[qdrant]"``.

    Args:
        encoder: The encoder; give the same one to :class:`KeyTokensEmbedding`, and each text takes one forward pass.

    Returns:
        One function for documents and one for queries; each gives token ids and weights, one list per text.

    Raises:
        TypeError: If ``encoder`` is no ``KeyTokenEncoder``.

    Example:
        .. code-block:: python

            document_function, query_function = qdrant_sparse_functions(encoder)
            store = QdrantVectorStore(
                "abstracts",
                client=QdrantClient(":memory:"),
                enable_hybrid=True,
                sparse_doc_fn=document_function,
                sparse_query_fn=query_function,
            )
    """
    pair = PairedEmbeddings(encoder)
    return (
        lambda texts: _columns(pair.sparse_documents(texts)),
        lambda texts: _columns([pair.sparse_query(text) for text in texts]),
    )


def _columns(rows: Sequence[tuple[list[int], list[float]]]) -> Vectors:
    return [ids for ids, _ in rows], [weights for _, weights in rows]
