"""BM25 of bm25s beside that of rank-bm25, an independent and slower implementation, on small collections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.collections import Collection
from st_keytokens.evaluation.measures import measure_collection
from st_keytokens.evaluation.runs import Ranking, Run, best, tie_order

__all__ = [
    "Bm25Check",
    "bm25_vectors",
    "check_bm25",
    "check_bm25_installed",
    "import_bm25",
    "rank_bm25_rankings",
    "split_words",
]


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


_CHECKED_DOCUMENTS = 10_000  # of a collection small enough for rank-bm25, which scores in Python
_CHECKED_QUERIES = 100


@dataclass(frozen=True)
class Bm25Check:
    """BM25 of bm25s beside that of rank-bm25, an independent implementation, over the same terms.

    Attributes:
        queries: How many were compared, the collection's first.
        bm25s: Mean over these queries, for each measure.
        rank_bm25: The same by rank-bm25.
        overlap: Share of bm25s' ten best documents that are among rank-bm25's ten best.
    """

    queries: int
    bm25s: dict[str, float]
    rank_bm25: dict[str, float]
    overlap: float


def check_bm25(
    collection: Collection, encoder: KeyTokenEncoder, runs: Mapping[str, Run], depth: int
) -> dict[str, Bm25Check]:
    """The runs of BM25 beside rank-bm25's over the same terms, where the collection is small enough.

    Args:
        collection: What was searched.
        encoder: Of the tokens.
        runs: By method; ``bm25-words`` and ``bm25-tokens`` are checked.
        depth: How many documents are ranked for a query.

    Returns:
        Checks by method; none for a collection of more than 10,000 documents.

    Raises:
        ImportError: If rank-bm25 is not installed.
    """

    def split_tokens(texts: list[str]) -> list[list[str]]:
        return [list(map(str, ids)) for ids in encoder.literal_terms(texts)]

    def means(rankings: list[Ranking]) -> dict[str, float]:
        return {measure: float(values.mean()) for measure, values in measure_collection(collection, rankings).items()}

    checks = {}
    for name, split in (("bm25-words", split_words), ("bm25-tokens", split_tokens)):
        if name in runs and len(collection.documents) <= _CHECKED_DOCUMENTS:
            ours, queries = runs[name].rankings[:_CHECKED_QUERIES], collection.queries[:_CHECKED_QUERIES]
            terms = split(collection.documents), split(queries)
            theirs = rank_bm25_rankings(*terms, tie_order(collection.doc_ids), depth)
            tops = [[set(rows[:10].tolist()) for rows, _ in rankings] for rankings in (ours, theirs)]
            shared = sum(len(a & b) for a, b in zip(*tops, strict=True))
            overlap = shared / max(1, sum(map(len, tops[0])))
            checks[name] = Bm25Check(len(queries), means(ours), means(theirs), overlap)
    return checks


def rank_bm25_rankings(
    documents: Sequence[Sequence[str]], queries: Sequence[Sequence[str]], ties: NDArray[np.int64], depth: int
) -> list[Ranking]:
    """Rankings by rank-bm25's ``BM25Okapi`` with its defaults, for small collections: it scores in Python.

    It is an independent implementation with the same k1 and b; its idf is that of Robertson and Sparck Jones with a
    floor, where bm25s' default has Lucene's. Documents of a score of 0 are not ranked.

    Args:
        documents: Terms of each document, with repetition.
        queries: Terms of each query.
        ties: See ``runs.tie_order``.
        depth: How many documents are ranked for a query.

    Returns:
        One ranking a query.

    Raises:
        ImportError: If rank-bm25 is not installed.
    """
    if not any(documents):
        return [(np.zeros(0, dtype=np.int64), np.zeros(0))] * len(queries)
    scorer = import_bm25("rank_bm25").BM25Okapi([list(terms) for terms in documents])
    rankings = []
    for terms in queries:
        scores = scorer.get_scores(list(terms))
        found = np.flatnonzero(scores)
        rankings.append(best(found, scores[found], ties, depth))
    return rankings
