"""Our retrievers beside the BM25 retrievers of LlamaIndex and LangChain, on one collection in one run.

    python examples/benchmarks/retrievers.py                                   # the bundled abstracts, found by title
    python examples/benchmarks/retrievers.py --collection ../shared/data/collections/scifact

Quality, time to build, time of a query through the framework's own call, time to open again, and what each can do,
every cell of which is found out by doing it (``retriever_probes.py``). Every round asks all contenders the same query
in turn; no query is asked twice, and each contender has an encoder, and so a cache, of its own. Needs, beside the two
adapters, llama-index-retrievers-bm25, langchain-classic, langchain-community and rank-bm25.
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
from environment import RESULTS, write_results
from retriever_contenders import Contender, Passage, contenders
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
)
WARM_UP = 3


def seconds(call: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def open_again(contender: Contender, retriever: Any, query: str) -> float | None:
    """Seconds from the folder to the first answer; None where there is nothing to save."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            contender.save(retriever, Path(folder, "saved"))
        except AttributeError:
            return None
        start = time.perf_counter()
        contender.search(contender.load(type(retriever), Path(folder, "saved")), query)
        return time.perf_counter() - start


def measure(sides: list[Contender], passages: list[Passage], queries: dict[str, str], qrels: Any) -> list[dict]:
    retrievers, rows = [], []
    for side in sides:
        took, retriever = seconds(side.make, passages)
        retrievers.append(retriever)
        rows.append({"framework": side.framework, "name": side.name, "build_s": round(took, 2)})
    times: list[list[float]] = [[] for _ in sides]
    rankings: list[dict[str, list[str]]] = [{} for _ in sides]
    for warm_up in range(WARM_UP):
        for side, retriever in zip(sides, retrievers, strict=True):
            side.search(retriever, f"warm-up question {warm_up}")
    for turn, (query_id, query) in enumerate(tqdm(queries.items(), desc="queries")):
        for place in range(len(sides)):
            number = (turn + place) % len(sides)
            took, found = seconds(sides[number].search, retrievers[number], query)
            times[number].append(took * 1000)
            rankings[number][query_id] = [hit.id for hit in found][:10]
    for number, row in enumerate(rows):
        values = measure_queries(qrels, rankings[number], {"nDCG@10": "nDCG@10"})["nDCG@10"]
        row["ndcg@10"] = round(float(values.mean()), 4)
        row["median_ms"] = round(statistics.median(times[number]), 2)
        row["p95_ms"] = round(float(np.percentile(times[number], 95)), 2)
        again = open_again(sides[number], retrievers[number], "the first question after opening")
        row["open_s"] = None if again is None else round(again, 3)
    return rows


def page(results: dict[str, Any]) -> str:
    """The results as Markdown, worst quality first."""
    lines = [
        "# Retrievers side by side",
        "",
        f"{results['documents']:,} documents, {results['queries']:,} queries of {results['collection']}, one run of "
        f"`examples/benchmarks/retrievers.py`, {results['threads']} thread. Embedder: {results['embedder']}, "
        f"calibrated on the documents in {results['calibration_s']:.0f} s, which no row counts. A build embeds every "
        "document where there are embeddings. Queries go through the framework's own call, one after the other; a "
        "query takes one forward pass where it is embedded. Opening again ends with the first answer. The BM25 "
        "retrievers are as they come, with their defaults.",
        "",
        "| framework | retriever | nDCG@10 | build, s | query, median ms | p95 ms | open again, s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(results["retrievers"], key=lambda row: row["ndcg@10"]):
        again = "cannot" if row["open_s"] is None else f"{row['open_s']:.3f}"
        lines.append(
            f"| {row['framework']} | {row['name']} | {row['ndcg@10']:.3f} | {row['build_s']:.1f} | "
            f"{row['median_ms']:.2f} | {row['p95_ms']:.2f} | {again} |"
        )
    names = list(PROBES)
    lines += [
        "",
        "What each can do. Every cell was found out by doing it, through the calls that the framework has for it; "
        "what was seen is in the JSON file beside this page.",
        "",
        f"| framework | retriever | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for row in results["features"]:
        cells = " | ".join(row["probes"][name]["cell"] for name in names)
        lines.append(f"| {row['framework']} | {row['name']} | {cells} |")
    lines += [
        "",
        "*Persist with settings*: the same answers after loading, with settings that are not the defaults. *Async*: "
        "the event loop goes on during a search. *Chinese*: the right text first, alone, for six words of six texts. "
        "*Explanation*: with a hit come tokens whose numbers sum to one of its scores.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, default=EXAMPLES / "data" / "arxiv-abstracts")
    parser.add_argument("--embedder", type=Path, default=EXAMPLES / "tiny-embedder" / "embedder")
    parser.add_argument("--documents", type=int, help="the first so many documents, for a trial")
    parser.add_argument("--name", default="retrievers", help="of the files in docs/results")
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
    calibration_s, _ = seconds(lambda: first.calibrate([passage.text for passage in passages]))

    def new_encoder(**how: Any) -> KeyTokenEncoder:
        return KeyTokenEncoder(first.model, calibration=first.calibration, **how)

    sides = contenders(new_encoder)
    rows = measure(sides, passages, queries, qrels)
    features = [
        {"framework": side.framework, "name": side.name, "probes": {name: probe(side, name) for name in PROBES}}
        for side in sides
        if side.encoder is None or side.encoder.query == "encode"
    ]
    results = {
        "collection": options.collection.name,
        "embedder": options.embedder.parent.name,
        "documents": len(passages),
        "queries": len(queries),
        "threads": torch.get_num_threads(),
        "calibration_s": round(calibration_s, 1),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "retrievers": rows,
        "features": features,
    }
    write_results(options.name, results)
    path = RESULTS / f"{options.name}.md"
    path.write_text(page(results), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
