"""BM25 by bm25s, over words or over the model's own tokens, as sparse vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import scipy.sparse

__all__ = ["bm25_vectors", "check_bm25_installed", "import_bm25", "split_words"]


def split_words(texts: Sequence[str]) -> list[list[str]]:
    """Words as bm25s finds them: lower-cased, of two characters or more, without its English stop words.

    Args:
        texts: Any texts.

    Returns:
        The words of each text, in order and with repetition.

    Raises:
        ImportError: If bm25s is not installed.
    """
    found = import_bm25("bm25s").tokenize(list(texts), stopwords="en", show_progress=False, return_ids=False)
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
    bm25s = import_bm25("bm25s")
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


def check_bm25_installed() -> None:
    """Checks that the packages of BM25 are there, before hours are spent on a run that needs them.

    Raises:
        ImportError: If one of them is not installed.
    """
    for name in ("bm25s", "rank_bm25"):
        import_bm25(name)


def import_bm25(name: str) -> Any:
    """A package of BM25.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as err:
        package = name.replace("_", "-")
        raise ImportError(f'BM25 needs {package}: pip install "st-keytokens[evaluation]"') from err
