"""BM25 by bm25s, over words or over the model's own tokens, as sparse vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

__all__ = ["bm25_vectors", "split_words"]


def split_words(texts: Sequence[str]) -> list[list[str]]:
    """Words as bm25s finds them: lower-cased, of two characters or more, without its English stop words.

    Args:
        texts: Any texts.

    Returns:
        The words of each text, in order and with repetition.

    Raises:
        ImportError: If bm25s is not installed.
    """
    found = _bm25s().tokenize(list(texts), stopwords="en", show_progress=False, return_ids=False)
    return [list(words) for words in found]


def bm25_vectors(
    documents: Sequence[Sequence[str]], queries: Sequence[Sequence[str]]
) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
    """Vectors whose dot products are bm25s' scores, with its defaults (Lucene's BM25, k1 = 1.5, b = 0.75).

    Args:
        documents: Terms of each document, with repetition.
        queries: Terms of each query; a term that is repeated counts so often.

    Returns:
        Documents ``(num_documents, num_terms)`` and queries ``(num_queries, num_terms)``, float32; the terms are those
        of the documents.

    Raises:
        ImportError: If bm25s is not installed.
    """
    bm25s = _bm25s()
    if not any(documents):
        return (
            scipy.sparse.csr_matrix((len(documents), 1), dtype=np.float32),
            scipy.sparse.csr_matrix((len(queries), 1), dtype=np.float32),
        )
    retriever = bm25s.BM25()
    retriever.index([list(terms) for terms in documents], show_progress=False)
    scores = retriever.scores
    width = len(scores["indptr"]) - 1
    shape = (len(documents), width)
    weights = scipy.sparse.csc_matrix((scores["data"], scores["indices"], scores["indptr"]), shape=shape).tocsr()
    columns = {term: column for term, column in retriever.vocab_dict.items() if column < width}
    counts = [Counter(columns[term] for term in terms if term in columns) for terms in queries]
    indptr = np.cumsum([0, *map(len, counts)])
    indices = np.array([column for row in counts for column in row], dtype=np.int32)
    values = np.array([count for row in counts for count in row.values()], dtype=np.float32)
    return weights, scipy.sparse.csr_matrix((values, indices, indptr), shape=(len(queries), width))


def _bm25s() -> Any:
    try:
        import bm25s  # type: ignore[import-untyped]
    except ImportError as err:
        raise ImportError('BM25 needs bm25s: pip install "st-keytokens[evaluation]"') from err
    return bm25s
