"""Our retrievers beside the BM25 and fusing retrievers of LlamaIndex and LangChain, all in one run.

    python examples/benchmarks/retrievers.py run --collection ../shared/data/collections/cranfield
    python examples/benchmarks/retrievers.py run --collection ... --embedder FOLDER --called all-MiniLM-L6-v2
    python examples/benchmarks/retrievers.py run --documents 300 --name trial     # bundled abstracts, found by title
    python examples/benchmarks/retrievers.py features                             # what each can do

A run has quality, time to build, time of a query through the framework's own call, and time to open again. Every round
asks all contenders the same query in turn, each time another one first; no query is asked twice, and each contender
has an encoder, and so a cache, of its own. With ``--timed`` only the first queries are asked so, and the rest, for
quality, of contenders that share an encoder and so a forward pass. Builds are timed over the first documents, which
every contender embeds itself; what is asked afterwards is made of all documents with vectors that were embedded once.
``features`` finds out what each can do by doing it (``retriever_probes.py``, ``retriever_kinds.py``).
``docs/results/retrievers.json`` keeps all runs, one for each embedder and collection, and ``retrievers_page.py`` makes
the page.

Needs, beside the two adapters, llama-index-retrievers-bm25, langchain-classic, langchain-community, rank-bm25 and
faiss-cpu.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, environment
from retriever_contenders import REFERENCE, Contender, Missing, Passage, contenders
from retriever_kinds import KINDS, examine
from retriever_probes import PROBES, probe
from tqdm import tqdm

from st_keytokens import KeyTokenEncoder
from st_keytokens.encoder.pooled_vectors import dense_vectors, pooled_vectors, vectors_key
from st_keytokens.evaluation import read_collection
from st_keytokens.evaluation.measures import measure_queries
from st_keytokens.shared.hashes import fingerprint

EXAMPLES = Path(__file__).resolve().parents[1]
TINY = EXAMPLES / "tiny-embedder" / "embedder"
ABSTRACTS = EXAMPLES / "data" / "arxiv-abstracts"
PACKAGES = (
    "langchain-core",
    "langchain-classic",
    "langchain-community",
    "llama-index-core",
    "llama-index-retrievers-bm25",
    "rank-bm25",
    "bm25s",
    "faiss-cpu",
    "PyStemmer",
)
WARM_UP = 3
OPENINGS = 7
BUILT = 100  # documents of which builds are timed
CALIBRATED = 300  # abstracts that the features' encoder learns from


def timed(call: Any, *arguments: Any) -> tuple[float, float, Any]:
    """Seconds on the clock, seconds of the processor, and the result."""
    start, processor = time.perf_counter(), time.process_time()
    result = call(*arguments)
    return time.perf_counter() - start, time.process_time() - processor, result


def time_builds(sides: list[Contender], passages: list[Passage], model: torch.nn.Module) -> list[dict[str, Any]]:
    """How long a retriever takes that embeds these passages itself, and how much of it the transformer."""
    passes: list[float] = []
    handles = [
        model.register_forward_pre_hook(lambda *_: passes.append(-time.process_time())),
        model.register_forward_hook(lambda *_: passes.append(time.process_time())),
    ]
    rows = []
    for side in tqdm(sides, desc="builds"):
        row: dict[str, Any] = {"framework": side.framework, "name": side.name, "build_s": None}
        if side.shares is None:
            passes.clear()
            clock, processor, _ = timed(side.make, passages)
            figures = {"build_s": clock, "build_processor_s": processor, "passes_processor_s": sum(passes)}
            row |= {name: round(seconds, 3) for name, seconds in figures.items()}
        rows.append(row)
    for handle in handles:
        handle.remove()
    return rows


def whole(sides: list[Contender], passages: list[Passage], vectors: np.ndarray, folder: Path) -> list[Any]:
    """Retrievers over all passages, whose vectors are known."""
    retrievers: list[Any] = []
    for side in tqdm(sides, desc="retrievers"):
        if side.shares is None:
            retrievers.append(side.known(passages, vectors))
        else:
            shared, path = retrievers[sides.index(side.shares)], folder / str(len(retrievers))
            side.save(shared, path)
            retrievers.append(side.load(type(shared), path))
    return retrievers


def ask(
    sides: list[Contender], retrievers: list[Any], queries: dict[str, str]
) -> tuple[np.ndarray, list[dict[str, list[str]]]]:
    """Milliseconds, (contenders, queries), and the first ten of each query."""
    times = np.zeros((len(sides), len(queries)))
    rankings: list[dict[str, list[str]]] = [{} for _ in sides]
    for warm_up in range(WARM_UP if queries else 0):
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
    own: list[Contender],
    shared: list[Contender],
    passages: list[Passage],
    vectors: np.ndarray,
    queries: dict[str, str],
    qrels: Any,
    timed_queries: int,
) -> list[dict[str, Any]]:
    """A row for each contender: times of those with an encoder of their own; those that share one ask the rest."""
    encoder = next(side.encoder for side in own if side.encoder is not None)
    rows = time_builds(own, passages[:BUILT], encoder.model[0])
    names = list(queries)
    first, rest = names[:timed_queries], names[timed_queries:]
    with tempfile.TemporaryDirectory() as folder:
        retrievers = whole(own, passages, vectors, Path(folder))
        times, rankings = ask(own, retrievers, {name: queries[name] for name in first})
        openings = open_again(own, retrievers)
    if rest:
        del retrievers
        with tempfile.TemporaryDirectory() as folder:
            retrievers = whole(shared, passages, vectors, Path(folder))
            _, others = ask(shared, retrievers, {name: queries[name] for name in rest})
        rankings = [{**ranking, **other} for ranking, other in zip(rankings, others, strict=True)]
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


def embedded(encoder: KeyTokenEncoder, name: str, texts: list[str], cache: Path | None) -> np.ndarray:
    """Dense vectors of all documents, kept where ``st-keytokens evaluate --cache`` keeps them."""
    content = fingerprint({"vectors": vectors_key(encoder, "document"), "texts": texts})
    path = None if cache is None else cache / f"{name}-document-{content[:16]}"
    pooled, _ = pooled_vectors(encoder, texts, path=path, show_progress_bar=True)
    return dense_vectors(encoder, pooled)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One embedder on one collection."""
    collection = read_collection(options.collection)
    passages = [
        Passage(id, text, "ab"[number % 2])
        for number, (id, text) in enumerate(zip(collection.doc_ids, collection.documents, strict=True))
    ][: options.documents]
    known = {passage.id for passage in passages}
    qrels = {query: judged for query, judged in collection.qrels.items() if known & judged.keys()}
    chosen = sorted(qrels, key=lambda query: hashlib.sha256(query.encode()).hexdigest())[: options.queries]
    qrels = {query: judged for query, judged in qrels.items() if query in set(chosen)}
    texts = dict(zip(collection.query_ids, collection.queries, strict=True))
    queries = {query: texts[query] for query in qrels}

    first = KeyTokenEncoder(options.embedder)
    documents = [passage.text for passage in passages]
    vectors = embedded(first, collection.name, documents, options.cache)
    _, calibration_s, _ = timed(lambda: first.calibrate(documents, embeddings=vectors, show_progress_bar=False))
    own = contenders(lambda **how: KeyTokenEncoder(first.model, calibration=first.calibration, **how))
    one = {
        query: KeyTokenEncoder(first.model, calibration=first.calibration, query=query)
        for query in ("encode", "lookup")
    }
    shared = contenders(lambda query="encode": one[query])
    timed_queries = len(queries) if options.timed is None else min(options.timed, len(queries))
    rows = measure(own, shared, passages, vectors, queries, qrels, timed_queries)
    parameters = sum(parameter.numel() for parameter in first.model.parameters())
    return {
        "env": environment(),
        "embedder": options.called or Path(options.embedder).parent.name,
        "parameters": parameters,
        "collection": options.collection.name,
        "documents": len(passages),
        "queries": len(queries),
        "queries_of": len(collection.query_ids),
        "timed_queries": timed_queries,
        "built_documents": min(BUILT, len(passages)),
        "threads": torch.get_num_threads(),
        "calibration_processor_s": round(calibration_s, 1),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "retrievers": rows,
    }


def features() -> dict[str, Any]:
    """What each can do, with the tiny embedder."""
    with (ABSTRACTS / "corpus.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(CALIBRATED), strict=False)]
    first = KeyTokenEncoder(TINY)
    first.calibrate(texts, show_progress_bar=False)
    sides = contenders(lambda **how: KeyTokenEncoder(first.model, calibration=first.calibration, **how))
    seen = [
        {
            "framework": side.framework,
            "name": side.name,
            "probes": {name: probe(side, name) for name in PROBES},
            "kinds": {kind: examine(side, kind) for kind in KINDS},
        }
        for side in tqdm([side for side in sides if side.shares is None], desc="features")
    ]
    return {
        "env": environment(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "contenders": seen,
    }


def keep(name: str, found: dict[str, Any]) -> None:
    """Puts a run, or the features, in the place of those that were there."""
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {"runs": kept.get("runs", []), "features": kept.get("features")}
    if "contenders" in found:
        kept["features"] = found
    else:
        which = found["embedder"], found["collection"]
        kept["runs"] = [run for run in kept["runs"] if (run["embedder"], run["collection"]) != which] + [found]
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "features"])
    parser.add_argument("--collection", type=Path, default=ABSTRACTS)
    parser.add_argument("--embedder", type=Path, default=TINY)
    parser.add_argument("--called", help="what the page calls the embedder; the name of its folder's folder if not")
    parser.add_argument("--cache", type=Path, help="keeps the vectors of documents, as st-keytokens evaluate does")
    parser.add_argument("--documents", type=int, help="the first so many documents, for a trial")
    parser.add_argument("--queries", type=int, help="so many queries, the first by the SHA-256 of their ids")
    parser.add_argument(
        "--timed", type=int, help="of these, so many with an encoder for each contender, for the times"
    )
    parser.add_argument("--name", default="retrievers", help="of the file in docs/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep(options.name, run(options) if options.what == "run" else features())


if __name__ == "__main__":
    main()
