"""Runs: the ranking of every query by one method, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_keytokens.index.fusion import FusedHit
from st_keytokens.index.search import default_depth

__all__ = ["Ranking", "Run"]

Ranking = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Rows of documents, best first, and their scores."""

FUSION_DEPTH = default_depth(10)
"""How many hits of each side of a hybrid are fused where nothing is said: as many as in a search for ten."""

POSTING_BYTES = 8  # a document number and a weight, four bytes each
_CHUNK = 64  # queries scored at a time


@dataclass(frozen=True)
class Run:
    """What a method found, and what it cost.

    Attributes:
        rankings: For each query rows of documents with scores, best first.
        seconds: Wall time by part: ``weigh_documents``, ``weigh_queries``, ``index``, ``score``, ``fuse``, where the
            method has such a part. The forward passes are not in it.
        index_bytes: 8 for each posting, 4 for each number of a dense vector.
        forward_passes: Of the model for each query, 0 or 1.
        queries_without_terms: Queries for which the method had nothing to search with: no term, or a zero vector. A
            fused one counts those of its sparse part.
        document_active_dims: Mean number of terms of a document; None where there are no terms.
        query_active_dims: Mean number of terms of a query; None where there are no terms.
    """

    rankings: list[Ranking]
    seconds: dict[str, float]
    index_bytes: int
    forward_passes: int
    queries_without_terms: int = 0
    document_active_dims: float | None = None
    query_active_dims: float | None = None


def tie_order(doc_ids: list[str]) -> NDArray[np.int64]:
    """Place of each row among the ids in ascending order, by which equal scores are ranked.

    >>> tie_order(["b", "c", "a"]).tolist()
    [1, 2, 0]
    """
    places = np.empty(len(doc_ids), dtype=np.int64)
    places[sorted(range(len(doc_ids)), key=doc_ids.__getitem__)] = np.arange(len(doc_ids))
    return places


def best(rows: NDArray[np.int64], scores: NDArray[Any], ties: NDArray[np.int64], depth: int) -> Ranking:
    """Of some rows and their scores the ``depth`` best: descending, equal scores by ``ties``, exactly also at the cut.

    >>> best(np.array([0, 1, 2]), np.array([1.0, 2.0, 1.0]), np.array([1, 2, 0]), 2)[0].tolist()
    [1, 2]
    """
    if len(rows) > depth:
        is_kept = scores >= np.partition(scores, len(scores) - depth)[len(scores) - depth]
        rows, scores = rows[is_kept], scores[is_kept]
    order = np.lexsort((ties[rows], -scores))[:depth]
    return rows[order], scores[order].astype(np.float64)


def sparse_run(
    documents: scipy.sparse.csr_matrix,
    queries: scipy.sparse.csr_matrix,
    ties: NDArray[np.int64],
    depth: int,
    *,
    forward_passes: int,
    seconds: dict[str, float],
) -> Run:
    """Ranks by dot product, exactly; only documents that share a term with the query are ranked.

    Documents ``(num_documents, num_terms)`` and queries ``(num_queries, num_terms)`` have weights above zero;
    ``seconds`` are those of the parts before this.
    """
    start = time.perf_counter()
    asked = np.unique(queries.indices)
    postings = _columns(documents, asked).T.tocsr()
    indexed = time.perf_counter()
    rankings, narrow = [], _columns(queries, asked)
    for first in range(0, queries.shape[0], _CHUNK):
        scores = (narrow[first : first + _CHUNK] @ postings).tocsr()
        for begin, end in zip(scores.indptr[:-1], scores.indptr[1:], strict=True):
            rows = scores.indices[begin:end].astype(np.int64)
            rankings.append(best(rows, scores.data[begin:end], ties, depth))
    return Run(
        rankings,
        {**seconds, "index": indexed - start, "score": time.perf_counter() - indexed},
        index_bytes=POSTING_BYTES * int(documents.nnz),
        forward_passes=forward_passes,
        queries_without_terms=int((np.diff(queries.indptr) == 0).sum()),
        document_active_dims=documents.nnz / documents.shape[0],
        query_active_dims=queries.nnz / queries.shape[0],
    )


def _columns(matrix: scipy.sparse.csr_matrix, columns: NDArray[Any]) -> scipy.sparse.csr_matrix:
    """Some columns, ascending, of a matrix that may be far wider than what it holds."""
    places = np.searchsorted(columns, matrix.indices)
    is_kept = places < len(columns)
    is_kept[is_kept] = columns[places[is_kept]] == matrix.indices[is_kept]
    indptr = np.concatenate([[0], np.cumsum(is_kept)])[matrix.indptr]
    parts = matrix.data[is_kept], places[is_kept], indptr
    return scipy.sparse.csr_matrix(parts, shape=(matrix.shape[0], len(columns)))


def dense_run(
    model: SentenceTransformer,
    documents: NDArray[np.float32],
    queries: NDArray[np.float32],
    ties: NDArray[np.int64],
    depth: int,
) -> Run:
    """Ranks all documents by the model's own similarity, exactly. A query whose vector is zero finds nothing."""
    start = time.perf_counter()
    every = np.arange(len(documents))
    is_zero = (queries == 0).all(axis=1)
    rankings = []
    for first in range(0, len(queries), _CHUNK):
        scores = model.similarity(torch.from_numpy(queries[first : first + _CHUNK]), torch.from_numpy(documents))
        for position, row in enumerate(scores.cpu().numpy(), first):
            rows = every[:0] if is_zero[position] else every
            rankings.append(best(rows, row[rows], ties, depth))
    return Run(
        rankings,
        {"score": time.perf_counter() - start},
        index_bytes=documents.size * 4,
        forward_passes=1,
        queries_without_terms=int(is_zero.sum()),
    )


def fused_run(
    dense: Run,
    sparse: Run,
    fuse: Callable[..., list[FusedHit[int]]],
    ties: NDArray[np.int64],
    depth: int,
    fusion_depth: int,
    weights: Mapping[str, float] | None = None,
) -> Run:
    """Fuses the ``fusion_depth`` best of two runs of the same queries by a function of ``FUSIONS``.

    Seconds and bytes are the sums of the parts', and one forward pass serves both.
    """
    start = time.perf_counter()
    rankings = []
    for pair in zip(dense.rankings, sparse.rankings, strict=True):
        named = {
            name: list(zip(rows[:fusion_depth].tolist(), scores[:fusion_depth].tolist(), strict=True))
            for name, (rows, scores) in zip(("dense", "sparse"), pair, strict=True)
        }
        fused = fuse(named, weights=weights)
        rows = np.array([hit.id for hit in fused], dtype=np.int64)
        rankings.append(best(rows, np.array([hit.score for hit in fused]), ties, depth))
    fusing = {"fuse": time.perf_counter() - start}
    names = [*dense.seconds, *(name for name in sparse.seconds if name not in dense.seconds)]
    return Run(
        rankings,
        {name: dense.seconds.get(name, 0.0) + sparse.seconds.get(name, 0.0) for name in names} | fusing,
        index_bytes=dense.index_bytes + sparse.index_bytes,
        forward_passes=max(dense.forward_passes, sparse.forward_passes),
        queries_without_terms=sparse.queries_without_terms,
        document_active_dims=sparse.document_active_dims,
        query_active_dims=sparse.query_active_dims,
    )
