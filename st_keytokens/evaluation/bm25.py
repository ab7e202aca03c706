"""BM25 over words and over tokens, by bm25s; and beside it rank-bm25, an independent and slower implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import Stemmer
from numpy.typing import NDArray

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.collections import Collection
from st_keytokens.evaluation.measures import import_extra, measure_collection
from st_keytokens.evaluation.runs import Ranking, Run, best, tie_order
from st_keytokens.terms.weighting import count_terms

__all__ = ["Bm25Check"]

_PARAMETERS = {"k1": 1.5, "b": 0.75}  # the defaults of bm25s and of rank-bm25 alike

_CHECKED_DOCUMENTS = 10_000  # of a collection small enough for rank-bm25, which scores in Python
_CHECKED_QUERIES = 100


def split_words(texts: Sequence[str]) -> list[list[str]]:
    """Words as bm25s finds them: lower-cased, of two characters or more, without its English stop words."""
    found = import_extra("bm25s").tokenize(list(texts), stopwords="en", show_progress=False, return_ids=False)
    return [list(words) for words in found]


def stem_words(texts: Sequence[str]) -> list[list[str]]:
    """The same words stemmed by Snowball's English stemmer, as bm25s' own examples and LlamaIndex's retriever do."""
    stemmer = Stemmer.Stemmer("english")
    found = import_extra("bm25s").tokenize(
        list(texts), stopwords="en", stemmer=stemmer, show_progress=False, return_ids=False
    )
    return [list(words) for words in found]


def _split_tokens(encoder: KeyTokenEncoder, texts: list[str]) -> list[list[str]]:
    return [list(map(str, ids)) for ids in encoder.over_tokens().literal_terms(texts)]


SPLITTERS: dict[str, Callable[[KeyTokenEncoder, list[str]], list[list[str]]]] = {
    "bm25-words": lambda _, texts: split_words(texts),
    "bm25-stemmed": lambda _, texts: stem_words(texts),
    "bm25-tokens": _split_tokens,
}
"""What finds the terms of texts, by the method that ranks with them."""


def bm25_vectors(
    documents: Sequence[Sequence[str]], queries: Sequence[Sequence[str]]
) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
    """Rows of documents and queries, given by their terms, whose dot products are bm25s' scores (Lucene's BM25)."""
    bm25s = import_extra("bm25s")
    if not any(documents):
        return _empty(len(documents)), _empty(len(queries))
    retriever = bm25s.BM25(**_PARAMETERS)
    retriever.index([list(terms) for terms in documents], show_progress=False)
    scores = retriever.scores
    width = len(scores["indptr"]) - 1
    parts, shape = (scores["data"], scores["indices"], scores["indptr"]), (len(documents), width)
    columns = {term: column for term, column in retriever.vocab_dict.items() if column < width}
    ids = [np.array([columns[term] for term in terms if term in columns], dtype=np.int64) for terms in queries]
    return scipy.sparse.csc_matrix(parts, shape=shape).tocsr(), count_terms(ids, width).to_scipy()


def _empty(num_rows: int) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix((num_rows, 1), dtype=np.float32)


def rank_bm25_rankings(
    documents: Sequence[Sequence[str]], queries: Sequence[Sequence[str]], ties: NDArray[np.int64], depth: int
) -> list[Ranking]:
    """Rankings by rank-bm25's ``BM25Okapi``, without documents of a score of 0; it scores in Python, so slowly.

    It is an independent implementation with the same k1 and b; its idf is that of Robertson and Sparck Jones with a
    floor, where bm25s' default has Lucene's.
    """
    if not any(documents):
        return [(np.zeros(0, dtype=np.int64), np.zeros(0))] * len(queries)
    scorer = import_extra("rank_bm25").BM25Okapi([list(terms) for terms in documents], **_PARAMETERS)
    rankings = []
    for terms in queries:
        scores = scorer.get_scores(list(terms))
        found = np.flatnonzero(scores)
        rankings.append(best(found, scores[found], ties, depth))
    return rankings


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
    """The runs of BM25 by method beside rank-bm25's, where the collection has 10,000 documents or fewer."""
    if len(collection.documents) > _CHECKED_DOCUMENTS:
        return {}

    def means(rankings: list[Ranking]) -> dict[str, float]:
        return {measure: float(values.mean()) for measure, values in measure_collection(collection, rankings).items()}

    queries, ties = collection.queries[:_CHECKED_QUERIES], tie_order(collection.doc_ids)
    checks = {}
    for name in [name for name in SPLITTERS if name in runs]:
        ours, split = runs[name].rankings[:_CHECKED_QUERIES], SPLITTERS[name]
        theirs = rank_bm25_rankings(split(encoder, collection.documents), split(encoder, queries), ties, depth)
        tops = [[set(rows[:10].tolist()) for rows, _ in rankings] for rankings in (ours, theirs)]
        shared = sum(len(a & b) for a, b in zip(*tops, strict=True))
        overlap = shared / max(1, sum(map(len, tops[0])))
        checks[name] = Bm25Check(len(queries), means(ours), means(theirs), overlap)
    return checks
