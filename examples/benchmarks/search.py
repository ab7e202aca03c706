"""How fast the embedded index searches, beside a bare kernel, bm25s and exact dense search.

    python examples/benchmarks/search.py

Synthetic data: 50,000 terms by a shifted Zipf law, 2,000 topics, at most 64 terms a document, lognormal weights times
the square root of idf; queries of 16 terms, 10 from one document and 6 common ones. One thread. Every contender is
asked every query, in an order that is drawn anew for each; bm25s cannot weight query terms, so it ranks differently on
the same postings. No query is asked twice but where that is said: the documents of its hits are read from disk, until
the index has read enough to read them all, as it does where its database has less than 16 MiB (the two small sizes).
The index is opened with its defaults. 24 GB of memory are enough for a million documents.
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
import torch
from environment import write_results
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from st_keytokens.index import HybridIndex
from st_keytokens.sparse_embeddings import SparseEmbeddings

VOCAB_SIZE, TOPICS, TERMS, SEED = 50_000, 2_000, 64, 0
LAW = 1 / (np.arange(VOCAB_SIZE) + 8.0)
DENSE_SHAPE, DENSE_EVERY = (100_000, 1024), 10
WARM_UP = 20  # queries that are not counted: caches fill, compilers finish
CONTENDERS = {
    "bare": "bare kernel: scores and rows",
    "bm25s": "bm25s[numba] on the same postings: scores and rows",
    "search": "index: search(), embeddings to hits with text",
    "search_again": "index: search(), a query asked before",
    "search_deleted": "index: search(), 1 % deleted",
    "dense": "exact dense search in numpy, 100,000 x 1024",
}
Contender = Callable[[int], Any]


def corpus(num_documents: int, rng: np.random.Generator) -> SparseEmbeddings:
    """Documents: half of the draws from all terms, half from the terms of a topic."""
    law = np.cumsum(LAW)
    topics = rng.integers(200, VOCAB_SIZE, size=(TOPICS, 200))
    parts = []
    for start in tqdm(range(0, num_documents, 50_000), desc="documents", leave=False):
        size = min(50_000, num_documents - start)
        draws = (size, TERMS * 3 // 5)  # of each kind; some are drawn twice
        common = np.searchsorted(law, rng.random(draws) * law[-1])
        topical = topics[rng.integers(TOPICS, size=size)][np.arange(size)[:, None], rng.integers(200, size=draws)]
        terms = np.sort(np.concatenate([common, topical], axis=1), axis=1)
        weights = rng.lognormal(size=terms.shape).astype(np.float32)
        weights[:, 1:][terms[:, 1:] == terms[:, :-1]] = 0  # a term once
        parts.append(SparseEmbeddings.from_pairs(terms, weights, VOCAB_SIZE).prune(TERMS))
    documents = SparseEmbeddings.concatenate(parts)
    frequency = np.bincount(documents.indices, minlength=VOCAB_SIZE)
    scale = np.sqrt(np.log1p(num_documents / (frequency + 1))).astype(np.float32)
    return documents.with_values(documents.values * scale[documents.indices])


def queries_for(documents: SparseEmbeddings, count: int, rng: np.random.Generator) -> SparseEmbeddings:
    """The ten heaviest terms of one document, and six common ones."""
    rows = []
    for row in rng.integers(len(documents), size=count).tolist():
        terms, weights = documents[row].prune(10).row(0)
        common = rng.choice(VOCAB_SIZE, size=6, replace=False, p=LAW / LAW.sum())
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


def interleaved(contenders: dict[str, Contender], count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Milliseconds: every query by every contender, in any order; dense search, which empties caches, now and then."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for query in tqdm(range(count), desc="queries", leave=False):
        names = [name for name in contenders if name != "dense" or query % DENSE_EVERY == 0]
        for name in rng.permutation(names).tolist():
            start = time.perf_counter()
            contenders[name](query)
            seconds[name].append(time.perf_counter() - start)
    quantiles = {
        name: statistics.quantiles(times[WARM_UP // (DENSE_EVERY if name == "dense" else 1) :], n=4)
        for name, times in seconds.items()
    }
    return {
        name: {"median_ms": middle * 1e3, "quartiles_ms": [low * 1e3, high * 1e3]}
        for name, (low, middle, high) in quantiles.items()
    }


def dense_search(top_k: int, count: int, rng: np.random.Generator) -> Contender:
    """Exact dense search: the matrix product with a query, and its best rows."""
    rows = rng.standard_normal(DENSE_SHAPE, dtype=np.float32)
    queries = rng.standard_normal((count, DENSE_SHAPE[1]), dtype=np.float32)

    def search(query: int) -> Any:
        scores = rows @ queries[query]
        best = np.argpartition(scores, -top_k)[-top_k:]
        return best[np.argsort(-scores[best])]

    return search


def rivals(documents: SparseEmbeddings, queries: SparseEmbeddings, top_k: int) -> dict[str, Contender]:
    """The bare kernel and bm25s, over the same arrays."""
    columns = documents.to_scipy().tocsc()
    indptr, rows, weights = columns.indptr.astype(np.int64), columns.indices, columns.data
    scores = np.zeros(len(documents), np.float32)
    retriever = bm25s.BM25(backend="numba")
    retriever.scores = {"data": weights, "indices": rows, "indptr": indptr, "num_docs": len(documents)}
    retriever.nonoccurrence_array, retriever.unique_token_ids_set = None, set(range(VOCAB_SIZE))
    terms = list(queries)
    tokens = [[row.tolist()] for row, _ in terms]
    return {
        "bare": lambda query: bare_kernel(indptr, rows, weights, *terms[query], scores, top_k),
        "bm25s": lambda query: retriever.retrieve(tokens[query], k=top_k, show_progress=False),
    }


def opening_ms(path: Path) -> float:
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        HybridIndex(path, read_only=True).close()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3


def measure(num_documents: int, num_queries: int, top_k: int) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    documents = corpus(num_documents, rng)
    queries = queries_for(documents, num_queries + WARM_UP, rng)
    singles = [queries[query] for query in range(len(queries))]
    contenders = rivals(documents, queries, top_k)
    texts = [f"document {row}: a line of text to be fetched with the hit" for row in range(num_documents)]
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder) / "index", Path(folder) / "deleted"
        start = time.perf_counter()
        with HybridIndex(path) as index:
            index.add(texts=texts, embeddings=documents)
        build_s = time.perf_counter() - start
        shutil.copytree(path, copy)
        with HybridIndex(path) as index, HybridIndex(path) as asked, HybridIndex(copy) as deleted:
            deleted.delete([str(row) for row in rng.choice(num_documents, num_documents // 100, replace=False)])
            contenders |= {
                "search": lambda query: index.search(singles[query], mode="sparse", top_k=top_k),
                "search_again": lambda query: asked.search(singles[query], mode="sparse", top_k=top_k),
                "search_deleted": lambda query: deleted.search(singles[query], mode="sparse", top_k=top_k),
            }
            for query in range(len(queries)):
                rows = [int(hit.id) for hit in contenders["search_again"](query)[0]]
                if query < WARM_UP and rows != [row for _, row in contenders["bare"](query)]:
                    raise RuntimeError(f"the index and the bare kernel rank query {query} differently.")
            if num_documents == DENSE_SHAPE[0]:
                contenders["dense"] = dense_search(top_k, len(queries), rng)
            times = interleaved(contenders, len(queries), rng)
        sizes = {file.stem: file.stat().st_size for file in path.glob("segments/*/*.npy")}
        touched = np.bincount(documents.indices, minlength=VOCAB_SIZE)[queries.indices].sum()
        return {
            "documents": num_documents,
            "postings": documents.nnz,
            "postings_touched_per_document": float(touched) / len(queries) / num_documents,
            "build_s": build_s,
            "open_ms": opening_ms(path),
            "bytes_per_posting": sum(size for name, size in sizes.items() if name != "keys") / documents.nnz,
            "times": times,
        }


def table(results: list[dict[str, Any]], top_k: int) -> list[str]:
    """Lines of Markdown: milliseconds, and in brackets how often the bare kernel's."""
    lines = [f"| ms a query, top {top_k} | " + " | ".join(f"{r['documents']:,} documents" for r in results) + " |"]
    lines.append("|---|" + "---|" * len(results))
    for name, title in CONTENDERS.items():
        medians = [result["times"].get(name, {}).get("median_ms") for result in results]
        bases = [result["times"]["bare"]["median_ms"] for result in results]
        cells = [
            "" if ms is None else f"{ms:.3f} ({ms / base:.2f} x)" for ms, base in zip(medians, bases, strict=True)
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for title, key, form in (
        ("opening, ms", "open_ms", ".1f"),
        ("building, s", "build_s", ".1f"),
        ("bytes a posting, all files but keys and texts", "bytes_per_posting", ".2f"),
        ("postings touched / documents", "postings_touched_per_document", ".2f"),
    ):
        lines.append(f"| {title} | " + " | ".join(format(result[key], form) for result in results) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--top-k", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    results = [measure(size, arguments.queries, arguments.top_k) for size in arguments.documents]
    settings = {"seed": SEED, "threads": 1, **vars(arguments)}
    path = write_results("search", {"settings": settings, "search": results})
    print("\n".join([*table(results, arguments.top_k), "", str(path)]))


if __name__ == "__main__":
    main()
