"""Our retrievers beside the BM25 retrievers of LlamaIndex and LangChain, on one collection in one run.

    python examples/benchmarks/retrievers.py --collection ../shared/data/collections/scifact
    python examples/benchmarks/retrievers.py --documents 300 --name trial        # bundled abstracts, found by title

Quality, time to build, time of a query through the framework's own call, time to open again, and what each can do,
every cell of which is found out by doing it (``retriever_probes.py``). Every round asks all contenders the same query
in turn, each time another one first; no query is asked twice, and each contender has an encoder, and so a cache, of
its own. Needs, beside the two adapters, llama-index-retrievers-bm25, langchain-classic, langchain-community, rank-bm25
and faiss-cpu. ``retrievers_page.py`` makes the page.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write_results
from retriever_contenders import REFERENCE, Contender, Missing, Passage, contenders
from retriever_probes import PROBES, probe
from tqdm import tqdm

from st_keytokens import KeyTokenEncoder
from st_keytokens.evaluation import read_collection
from st_keytokens.evaluation.measures import measure_queries

EXAMPLES = Path(__file__).resolve().parents[1]
PACKAGES = (
    "langchain-core",
    "langchain-classic",
    "langchain-community",
    "llama-index-core",
    "llama-index-retrievers-bm25",
    "rank-bm25",
    "bm25s",
    "faiss-cpu",
)
WARM_UP = 3
OPENINGS = 7


def timed(call: Any, *arguments: Any) -> tuple[float, float, Any]:
    """Seconds on the clock, seconds of the processor, and the result."""
    start, processor = time.perf_counter(), time.process_time()
    result = call(*arguments)
    return time.perf_counter() - start, time.process_time() - processor, result


def build(
    sides: list[Contender], passages: list[Passage], model: torch.nn.Module, folder: Path
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Retrievers, and how long they took, of which how long in the transformer."""
    passes: list[float] = []
    handles = [
        model.register_forward_pre_hook(lambda *_: passes.append(-time.process_time())),
        model.register_forward_hook(lambda *_: passes.append(time.process_time())),
    ]
    retrievers, rows = [], []
    for side in tqdm(sides, desc="builds"):
        row: dict[str, Any] = {"framework": side.framework, "name": side.name, "build_s": None}
        if side.shares is None:
            passes.clear()
            clock, processor, retriever = timed(side.make, passages)
            figures = {"build_s": clock, "build_processor_s": processor, "passes_processor_s": sum(passes)}
            row |= {name: round(seconds, 2) for name, seconds in figures.items()}
        else:
            shared, path = retrievers[sides.index(side.shares)], folder / str(len(rows))
            side.save(shared, path)
            retriever = side.load(type(shared), path)
        retrievers.append(retriever)
        rows.append(row)
    for handle in handles:
        handle.remove()
    return retrievers, rows


def ask(
    sides: list[Contender], retrievers: list[Any], queries: dict[str, str]
) -> tuple[np.ndarray, list[dict[str, list[str]]]]:
    """Milliseconds, (contenders, queries), and the first ten of each query."""
    times = np.zeros((len(sides), len(queries)))
    rankings: list[dict[str, list[str]]] = [{} for _ in sides]
    for warm_up in range(WARM_UP):
        for side, retriever in zip(sides, retrievers, strict=True):
            side.search(retriever, f"warm-up question {warm_up}")
    for turn, (query_id, query) in enumerate(tqdm(queries.items(), desc="queries")):
        for place in range(len(sides)):
            number = (turn + place) % len(sides)
            clock, _, found = timed(sides[number].search, retrievers[number], query)
            times[number, turn] = clock * 1000
            rankings[number][query_id] = [hit.id for hit in found][:10]
    return times, rankings


def open_again(sides: list[Contender], retrievers: list[Any]) -> list[float | None]:
    """Median seconds from the folder to the first answer, in turn; None where there is nothing to save."""
    times: list[list[float]] = [[] for _ in sides]
    with tempfile.TemporaryDirectory() as folder:
        for number, (side, retriever) in enumerate(zip(sides, retrievers, strict=True)):
            try:
                side.save(retriever, Path(folder, str(number)))
            except Missing:
                continue
        for turn in tqdm(range(OPENINGS), desc="openings"):
            for number, (side, retriever) in enumerate(zip(sides, retrievers, strict=True)):
                path = Path(folder, str(number))
                if path.exists():
                    query = f"the first question after opening number {turn}"  # not yet in a cache
                    clock, _, _ = timed(lambda: side.search(side.load(type(retriever), path), query))  # noqa: B023
                    times[number].append(clock)
    return [statistics.median(values) if values else None for values in times]


def measure(
    sides: list[Contender], passages: list[Passage], queries: dict[str, str], qrels: Any, model: torch.nn.Module
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        retrievers, rows = build(sides, passages, model, Path(folder))
        times, rankings = ask(sides, retrievers, queries)
        openings = open_again(sides, retrievers)
    reference = [(row["framework"], row["name"]) for row in rows].index(REFERENCE)
    for number, row in enumerate(rows):
        values = measure_queries(qrels, rankings[number], {"nDCG@10": "nDCG@10"})["nDCG@10"]
        row["ndcg@10"] = round(float(values.mean()), 4)
        row["median_ms"] = round(float(np.median(times[number])), 3)
        row["p95_ms"] = round(float(np.percentile(times[number], 95)), 3)
        row["median_ratio"] = round(float(np.median(times[number] / times[reference])), 2)  # query by query
        again = openings[number]
        row["open_s"] = None if again is None else round(again, 4)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, default=EXAMPLES / "data" / "arxiv-abstracts")
    parser.add_argument("--embedder", type=Path, default=EXAMPLES / "tiny-embedder" / "embedder")
    parser.add_argument("--documents", type=int, help="the first so many documents, for a trial")
    parser.add_argument("--name", default="retrievers", help="of the file in docs/results")
    options = parser.parse_args()
    torch.set_num_threads(1)

    collection = read_collection(options.collection)
    passages = [
        Passage(id, text, "ab"[number % 2])
        for number, (id, text) in enumerate(zip(collection.doc_ids, collection.documents, strict=True))
    ][: options.documents]
    known = {passage.id for passage in passages}
    qrels = {query: judged for query, judged in collection.qrels.items() if known & judged.keys()}
    texts = dict(zip(collection.query_ids, collection.queries, strict=True))
    queries = {query: texts[query] for query in qrels}

    first = KeyTokenEncoder(options.embedder)
    _, calibration_s, _ = timed(first.calibrate, [passage.text for passage in passages])

    def new_encoder(**how: Any) -> KeyTokenEncoder:
        return KeyTokenEncoder(first.model, calibration=first.calibration, **how)

    sides = contenders(new_encoder)
    features = [
        {"framework": side.framework, "name": side.name, "probes": {name: probe(side, name) for name in PROBES}}
        for side in tqdm([side for side in sides if side.shares is None], desc="features")
    ]
    results = {
        "collection": options.collection.name,
        "embedder": options.embedder.parent.name,
        "documents": len(passages),
        "queries": len(queries),
        "threads": torch.get_num_threads(),
        "calibration_processor_s": round(calibration_s, 1),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "retrievers": measure(sides, passages, queries, qrels, first.model[0]),
        "features": features,
    }
    write_results(options.name, results)


if __name__ == "__main__":
    main()
