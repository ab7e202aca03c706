"""The embedded index from 10,000 to a million documents, beside Qdrant Edge, SQLite, DuckDB and exact dense search.

    python examples/benchmarks/scale_data.py ../shared/data/collections/arxiv-heldout abstracts.npz
    python examples/benchmarks/scale.py abstracts.npz

Every side has a process of its own (scale_worker.py) and the same documents (scale_data.py). The top 10 of each are
compared with ours before anything is timed, and again after adding and deleting. Then blocks of ten queries go to one
side after the other, in an order that is drawn anew for each block; while one works, the others wait. A side that has
used its seconds of a phase is left out of the rest of it, and compared with ours over the queries that it was asked.
Seconds of the processor stand beside those of the clock, as other programs disturb them less.

    python examples/benchmarks/scale.py --filters

measures filters of our index alone, on documents of few random terms, with numbers, dates, names and lists of tags.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from environment import write_results
from scale_data import children, read_data, statistics_of
from scale_tasks import FILTERS, LABELS, Found
from scale_worker import Worker, summary, write_rows
from tqdm import tqdm

from st_keytokens.sparse_embeddings import SparseEmbeddings

SEED, BLOCK, CHECKED, CHANGED = 0, 10, 8, 10_000
TOLERANCE = 1e-4  # relative, of a score that is summed in another order or precision
EXACT = ("index", "qdrant", "sqlite", "duckdb")
SECONDS = {"short-1": 60.0, "short-2": 30.0, "default-1": 30.0, **dict.fromkeys(FILTERS, 20.0), "changed": 15.0}


def is_same(ours: Found, theirs: Found) -> bool:
    """Whether scores agree, and documents do but for those that tie with the last."""
    if len(ours) != len(theirs):
        return False
    scores, others = (np.array([score for _, score in found]) for found in (ours, theirs))
    if not np.allclose(scores, others, rtol=TOLERANCE):
        return False
    last = ours[-1][1] * (1 + TOLERANCE) if ours else 0.0
    return {number for number, score in ours if score > last} <= {number for number, _ in theirs}


def check(workers: dict[str, Worker], when: str) -> None:
    for query in range(CHECKED):
        kinds = [("short", None), *(("short", filter) for filter in FILTERS)]
        for kind, filter in kinds if query else [*kinds, ("default", None)]:  # a long one takes SQL long
            found = {name: workers[name].tell("answer", kind, query, filter) for name in EXACT if name in workers}
            for name, theirs in found.items():
                if not is_same(found["index"], theirs):
                    raise RuntimeError(f"{when}, {name} ranks query {query} ({kind}, {filter}) as {theirs}: {found}")


def interleaved(
    workers: dict[str, Worker], phase: str, queries: list[int], rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Times of one phase, of every side that has it, and how often ours over the same queries."""
    kind = "default" if phase.startswith("default") else "short"
    filter, threads = (phase if phase in FILTERS else None), (2 if phase.endswith("-2") else 1)
    names = [name for name in workers if name in EXACT or phase in ("short-1", "short-2")]
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    elapsed = dict.fromkeys(names, 0.0)
    for start in tqdm(range(0, len(queries), BLOCK), desc=phase, leave=False):
        for name in rng.permutation(names).tolist():
            if elapsed[name] < SECONDS[phase]:
                times = workers[name].tell("ask", kind, queries[start : start + BLOCK], filter, threads)
                wall[name] += times["wall"]
                cpu[name] += times["cpu"]
                elapsed[name] += times["elapsed"]
    found: dict[str, dict[str, float]] = {}
    for name in names:
        count = len(wall[name])
        found[name] = summary(np.array(wall[name]), np.array(cpu[name]), elapsed[name])
        for key, times in (("ratio", wall), ("cpu_ratio", cpu)):
            found[name][key] = float(np.median(times[name]) / np.median(times["index"][:count]))
    return found


def measure(num_documents: int, data: Path, sides: list[str], num_queries: int, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    parents, titles = read_data(data)
    chosen = rng.choice(len(titles["short"]), num_queries, replace=False)
    titles = {kind: rows[chosen] for kind, rows in titles.items()}
    documents = children(parents, num_documents + CHANGED, rng)
    result: dict[str, Any] = {"documents": num_documents, "load_average_before": os.getloadavg()[0]}
    result["data"] = statistics_of(documents, parents, titles)
    for name, rows in {"documents": documents, **titles}.items():
        write_rows(folder, name, rows)
    del documents
    names = [f"dense-{parents.dimension}" if name == "dense" else name for name in sides]
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    arguments = folder, num_documents, parents.vocab_size
    for name in tqdm(rng.permutation(names).tolist(), desc="building", leave=False):
        worker = Worker(name, folder / name, *arguments)
        found[name]["build"] = worker.tell("load")
        worker.end()
    workers = {name: Worker(name, folder / name, *arguments) for name in names}
    for name, worker in workers.items():
        found[name]["open"] = worker.tell("open")
    check(workers, "after building")
    queries = list(range(num_queries))
    for phase in [phase for phase in SECONDS if phase != "changed"]:
        asked = queries if phase == "short-1" else queries[: max(BLOCK, num_queries // 2)]
        asked = queries[CHECKED : LABELS["percent"]] if phase == "new" else asked  # no filter that was asked before
        for name, times in interleaved(workers, phase, asked, rng).items():
            found[name][phase] = times
    for name in names:
        found[name]["memory"] = workers[name].tell("memory")
        if name not in EXACT:
            workers.pop(name).end()
    _change(workers, found, num_documents, queries, rng)
    for worker in workers.values():
        worker.end()
    return {**result, "load_average_after": os.getloadavg()[0], "sides": found}


def measure_filters(num_documents: int, folder: Path) -> dict[str, Any]:
    """What new filters cost our index after opening, and again after adding and deleting."""
    result: dict[str, Any] = {"documents": num_documents, "load_average_before": os.getloadavg()[0]}
    count, vocab_size, rng = num_documents + CHANGED, 1000, np.random.default_rng(SEED)
    terms = np.sort(rng.integers(0, vocab_size // 4, (count, 4)) * 4 + np.arange(4), axis=1).astype(np.int32)
    indptr, values = np.arange(0, terms.size + 1, 4), np.ones(terms.size, np.float32)
    documents = SparseEmbeddings.trusted(indptr, terms.ravel(), values, vocab_size)
    for name, rows in {"documents": documents, "short": documents[:1], "default": documents[:1]}.items():
        write_rows(folder, name, rows)
    arguments = "wide", folder / "wide", folder, num_documents, vocab_size
    worker = Worker(*arguments)
    result["build"] = worker.tell("load")
    worker.end()
    worker = Worker(*arguments)
    result["open"] = worker.tell("open")
    result["filters"] = worker.tell("filters")
    result["memory"] = worker.tell("memory")
    result["add"] = worker.tell("add")
    result["delete"] = worker.tell("delete", rng.choice(count, CHANGED, replace=False).tolist())
    result["filters_after_a_change"] = worker.tell("filters")
    worker.end()
    return {**result, "load_average_after": os.getloadavg()[0]}


def _change(
    workers: dict[str, Worker], found: dict[str, Any], num_documents: int, queries: list[int], rng: np.random.Generator
) -> None:
    """Adds and deletes, searches, compacts, and compares once more."""
    deleted = rng.choice(num_documents + CHANGED, CHANGED, replace=False).tolist()
    for name in rng.permutation(list(workers)).tolist():
        found[name]["add"] = workers[name].tell("add")
        found[name]["delete"] = workers[name].tell("delete", deleted)
    check(workers, "after adding and deleting")
    for name, times in interleaved(workers, "changed", queries[: max(BLOCK, len(queries) // 4)], rng).items():
        found[name]["changed"] = times
    for name in rng.permutation(list(workers)).tolist():
        found[name]["compact"] = workers[name].tell("compact")
        found[name]["memory_after_compacting"] = workers[name].tell("memory")
    check(workers, "after compacting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="what scale_data.py wrote")
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--sides", nargs="+", default=[*EXACT, "dense", "dense-1024"])
    parser.add_argument("--folder", type=Path, help="for the files; several GB for a million documents")
    parser.add_argument("--name", help="of the file in docs/results; scale, or scale-filters")
    parser.add_argument("--filters", action="store_true", help="measure filters of our index alone, without data")
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.filters:
        parser.error("data must be given, or --filters")
    arguments.name = arguments.name or ("scale-filters" if arguments.filters else "scale")
    results: list[dict[str, Any]] = []
    if arguments.filters:
        for size in arguments.documents:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                results.append(measure_filters(size, Path(folder)))
            settings = {"seed": SEED, "documents": arguments.documents}
            path = write_results(arguments.name, {"settings": settings, "sizes": results})
            print(f"{size}: done, {path}", flush=True)
        return
    for size in arguments.documents:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            results.append(measure(size, arguments.data, arguments.sides, arguments.queries, Path(folder)))
        settings = {"seed": SEED, "seconds": SECONDS, **vars(arguments)}
        settings = {name: value.name if isinstance(value, Path) else value for name, value in settings.items()}
        rivals = {name: metadata.version(name) for name in ("qdrant-edge-py", "duckdb")}
        rivals["sqlite"] = sqlite3.sqlite_version
        path = write_results(arguments.name, {"settings": settings, "rivals": rivals, "sizes": results})
        print(f"{size}: done, {path}", flush=True)


if __name__ == "__main__":
    main()
