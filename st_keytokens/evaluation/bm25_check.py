"""BM25 of bm25s beside that of rank-bm25, an independent and slower implementation, on small collections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.evaluation.bm25 import import_bm25, split_words
from st_keytokens.evaluation.collections import Collection
from st_keytokens.evaluation.measures import measure_collection
from st_keytokens.evaluation.runs import Ranking, Run, best, tie_order

__all__ = ["Bm25Check", "check_bm25", "rank_bm25_rankings"]

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
