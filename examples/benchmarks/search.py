"""How fast the embedded index searches, beside a bare kernel, bm25s and exact dense search.

    python examples/benchmarks/search.py --documents 100000 1000000

Synthetic data: 50,000 terms by a shifted Zipf law, 2,000 topics, about 64 terms a document, lognormal weights times
the square root of idf; queries of 16 terms, 10 from one document and 6 common ones. One thread. Every round asks
every contender the same query in turn; bm25s cannot weight query terms, so it ranks differently on the same postings.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bm25s
import numba
import numpy as np
import scipy.sparse
import torch
from environment import write_results
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from st_keytokens.index import HybridIndex, numba_kernels
from st_keytokens.index.kernels import best_rows, padded
from st_keytokens.sparse_embeddings import SparseEmbeddings

VOCAB_SIZE, TOPICS, TERMS, SEED = 50_000, 2_000, 64, 0
DENSE_SHAPE = (100_000, 1024)
CONTENDERS = {
    "bare": "bare term-at-a-time kernel",
    "bare_own": "our compiled loops alone, arrays in memory",
    "scoring": "index: scores and rows",
    "search": "index: search(), embeddings to hits",
    "search_deleted": "index: search(), 1 % deleted",
    "bm25s": "bm25s[numba], same postings",
}


def corpus(num_documents: int, rng: np.random.Generator) -> SparseEmbeddings:
    """Documents: half of the draws from all terms, half from the terms of a topic."""
    law = np.cumsum(1 / (np.arange(VOCAB_SIZE) + 8.0))
    topics = rng.integers(200, VOCAB_SIZE, size=(TOPICS, 200))
    parts = []
    for start in tqdm(range(0, num_documents, 50_000), desc="documents", leave=False):
        size = min(50_000, num_documents - start)
        common = np.searchsorted(law, rng.random((size, TERMS)) * law[-1])
        topical = topics[rng.integers(TOPICS, size=size)][
            np.arange(size)[:, None], rng.integers(200, size=(size, TERMS))
        ]
        terms = np.sort(np.concatenate([common[:, : TERMS * 3 // 5], topical[:, : TERMS * 3 // 5]], axis=1), axis=1)
        weights = rng.lognormal(size=terms.shape).astype(np.float32)
        weights[:, 1:][terms[:, 1:] == terms[:, :-1]] = 0  # a term once
        parts.append(SparseEmbeddings.from_pairs(terms, weights, VOCAB_SIZE).prune(TERMS))
    documents = SparseEmbeddings.concatenate(parts)
    frequency = np.bincount(documents.indices, minlength=VOCAB_SIZE)
    scale = np.sqrt(np.log1p(num_documents / (frequency + 1))).astype(np.float32)
    return SparseEmbeddings(
        documents.indptr, documents.indices, documents.values * scale[documents.indices], VOCAB_SIZE
    )


def queries_for(documents: SparseEmbeddings, count: int, rng: np.random.Generator) -> SparseEmbeddings:
    """The ten heaviest terms of one document, and six common ones."""
    rows = []
    for row in rng.integers(len(documents), size=count).tolist():
        terms, weights = documents[row].prune(10).row(0)
        law = 1 / (np.arange(VOCAB_SIZE) + 8.0)
        common = rng.choice(VOCAB_SIZE, size=6, replace=False, p=law / law.sum())
        rows.append(
            {**dict.fromkeys(common.tolist(), 1.0), **dict(zip(terms.tolist(), weights.tolist(), strict=True))}
        )
    return SparseEmbeddings.from_dicts(rows, VOCAB_SIZE)


@numba.njit
def bare_kernel(indptr, documents, weights, terms, term_weights, scores, limit):  # type: ignore[no-untyped-def]
    """Term at a time into one array, maxima of blocks of 64, partition, gather: nothing deleted, nothing checked."""
    scores[:] = 0
    for j in range(len(terms)):
        weight = term_weights[j]
        for p in range(indptr[terms[j]], indptr[terms[j] + 1]):
            scores[documents[p]] += weight * weights[p]
    num_blocks = (len(scores) + 63) // 64
    maxima = np.zeros(num_blocks, np.float32)
    for block in range(num_blocks):
        best = np.float32(0)
        for row in range(block * 64, min(len(scores), block * 64 + 64)):
            best = max(best, scores[row])
        maxima[block] = best
    bound = np.partition(maxima, num_blocks - limit)[num_blocks - limit] if num_blocks > limit else np.float32(0)
    found = []
    for block in range(num_blocks):
        if maxima[block] >= bound:
            for row in range(block * 64, min(len(scores), block * 64 + 64)):
                if scores[row] >= bound and scores[row] > 0:
                    found.append((-scores[row], row))
    found.sort()
    return found[:limit]


def interleaved(contenders: dict[str, Callable[[int], object]], count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds: every query by every contender in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for query in range(count):
            for name, run in contenders.items():
                start = time.perf_counter()
                run(query)
                if round_:
                    seconds[name].append(time.perf_counter() - start)
    quantiles = {name: statistics.quantiles(times, n=4) for name, times in seconds.items()}
    return {
        name: {"median_ms": middle * 1e3, "quartiles_ms": [low * 1e3, high * 1e3]}
        for name, (low, middle, high) in quantiles.items()
    }


def measure(num_documents: int, num_queries: int, rounds: int, top_k: int) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    documents = corpus(num_documents, rng)
    queries = queries_for(documents, num_queries, rng)
    texts = [f"document {row}: a line of text to be fetched with the hit" for row in range(num_documents)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        start = time.perf_counter()
        with HybridIndex(path, kernel="numba") as index:
            index.add(texts=texts, embeddings=documents)
        build_s = time.perf_counter() - start
        opening = []
        for _ in range(9):
            start = time.perf_counter()
            HybridIndex(path, read_only=True).close()
            opening.append(time.perf_counter() - start)
        copy = Path(folder) / "deleted"
        shutil.copytree(path, copy)
        index, deleted = HybridIndex(path, kernel="numba"), HybridIndex(copy, kernel="numba")
        deleted.delete([str(row) for row in rng.choice(num_documents, num_documents // 100, replace=False)])
        sizes = {file.name: file.stat().st_size for file in path.glob("segments/*/*.npy")}
        with index._reading() as (_, snapshot):
            kernel, scores = index._sparse_tools(snapshot)
        postings = [segment.postings for segment in snapshot.segments]
        matrix = scipy.sparse.csr_matrix(
            (documents.values, documents.indices, documents.indptr), shape=documents.shape
        ).tocsc()
        indptr, rows, weights = matrix.indptr.astype(np.int64), matrix.indices, matrix.data
        own = np.zeros(padded(num_documents), np.float32)
        bare = np.zeros(num_documents, np.float32)
        every_term = np.arange(VOCAB_SIZE, dtype=np.int32)
        rival = bm25s.BM25(backend="numba")
        rival.scores = {"data": weights, "indices": rows, "indptr": indptr, "num_docs": num_documents}
        rival.nonoccurrence_array, rival.unique_token_ids_set = None, set(range(VOCAB_SIZE))
        terms = [queries.row(query) for query in range(num_queries)]
        tokens = [[row[0].tolist()] for row in terms]
        singles = [queries[query] for query in range(num_queries)]

        def own_loops(query: int) -> object:
            own.fill(0)
            numba_kernels.accumulate(every_term, indptr, rows, weights, *terms[query], own)
            return best_rows(own, numba_kernels.candidates(own, np.empty(0, np.uint8), top_k), top_k)

        contenders: dict[str, Callable[[int], object]] = {
            "bare": lambda query: bare_kernel(indptr, rows, weights, *terms[query], bare, top_k),
            "bare_own": own_loops,
            "scoring": lambda query: kernel.best(postings, *terms[query], scores, None, top_k),
            "search": lambda query: index.search(singles[query], mode="sparse", top_k=top_k),
            "search_deleted": lambda query: deleted.search(singles[query], mode="sparse", top_k=top_k),
            "bm25s": lambda query: rival.retrieve(tokens[query], k=top_k, show_progress=False),
        }
        for query in range(num_queries):
            hits = index.search(singles[query], mode="sparse", top_k=top_k)[0]
            if [row for _, row in contenders["bare"](query)] != [int(hit.id) for hit in hits]:  # type: ignore[attr-defined]
                raise RuntimeError(f"the index and the bare kernel rank query {query} differently.")
        times = interleaved(contenders, num_queries, rounds)
        index.close()
        deleted.close()
    touched = statistics.mean(sum(int(indptr[t + 1] - indptr[t]) for t in row) for row, _ in terms) / num_documents
    return {
        "documents": num_documents,
        "postings": documents.nnz,
        "postings_touched_per_document": touched,
        "build_s": build_s,
        "open_ms": statistics.median(opening) * 1e3,
        "bytes_per_posting": sum(size for name, size in sizes.items() if name != "keys.npy") / documents.nnz,
        "times": times,
    }


def dense_search(top_k: int, rounds: int) -> dict[str, float]:
    """Milliseconds of an exact dense search in numpy."""
    rng = np.random.default_rng(SEED)
    rows = rng.standard_normal(DENSE_SHAPE, dtype=np.float32)
    seconds = []
    for query in rng.standard_normal((rounds * 5, DENSE_SHAPE[1]), dtype=np.float32):
        start = time.perf_counter()
        scores = rows @ query
        best = np.argpartition(scores, -top_k)[-top_k:]
        best[np.argsort(-scores[best])]
        seconds.append(time.perf_counter() - start)
    return {"median_ms": statistics.median(seconds) * 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--top-k", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    results = [measure(size, arguments.queries, arguments.rounds, arguments.top_k) for size in arguments.documents]
    dense = dense_search(arguments.top_k, arguments.rounds)
    settings = {"seed": SEED, "threads": 1, **vars(arguments)}
    path = write_results("search", {"settings": settings, "search": results, "dense_100k_1024": dense})
    header = [f"{result['documents']:,} documents" for result in results]
    print(f"| ms a query, top {arguments.top_k} | " + " | ".join(header) + " |")
    print("|---|" + "---|" * len(results))
    for name, title in CONTENDERS.items():
        times = [result["times"][name]["median_ms"] for result in results]
        against = [result["times"]["bare"]["median_ms"] for result in results]
        cells = [f"{ms:.3f} ({ms / base:.2f} x)" for ms, base in zip(times, against, strict=True)]
        print(f"| {title} | " + " | ".join(cells) + " |")
    print(f"| exact dense, numpy, 100,000 x 1024 | {dense['median_ms']:.1f} |" + " |" * (len(results) - 1))
    for title, key, form in (
        ("opening, ms", "open_ms", ".1f"),
        ("building, s", "build_s", ".1f"),
        ("bytes a posting", "bytes_per_posting", ".2f"),
        ("postings touched / documents", "postings_touched_per_document", ".2f"),
    ):
        print(f"| {title} | " + " | ".join(format(result[key], form) for result in results) + " |")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
