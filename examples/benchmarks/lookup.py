"""From a query's text to its hits: with a forward pass of the tiny embedder, and without one.

python examples/benchmarks/lookup.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from environment import write_results

from st_keytokens import HybridIndex, KeyTokenEncoder

BLOCK = 20  # queries in a row of one kind: a forward pass leaves caches and threads in a state of its own
EXAMPLES = Path(__file__).resolve().parents[1]


def read(name: str) -> list[dict[str, str]]:
    with (EXAMPLES / "data" / "arxiv-abstracts" / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    arguments = parser.parse_args()
    documents, titles = read("corpus.jsonl"), [q["text"] for q in read("queries.jsonl")[: arguments.queries]]
    texts = [document["text"] for document in documents]
    encoder = KeyTokenEncoder(EXAMPLES / "tiny-embedder" / "embedder", cache_size=0)
    encoder.calibrate(texts, show_progress_bar=False)
    seconds: dict[str, list[tuple[float, float]]] = {"encode": [], "lookup": []}  # of encode_query, of search
    with HybridIndex(encoder=encoder) as index:
        index.add([document["_id"] for document in documents], texts)
        for mode in ("encode", "lookup"):  # compiles kernels, fills caches
            index.search(encoder.encode_query(titles[:5], query=mode), mode="sparse")
        for first in range(0, len(titles), BLOCK):
            for mode in ("encode", "lookup"):
                for title in titles[first : first + BLOCK]:
                    start = time.perf_counter()
                    query = encoder.encode_query(title, query=mode)
                    between = time.perf_counter()
                    index.search(query, mode="sparse", top_k=10)
                    seconds[mode].append((between - start, time.perf_counter() - between))
    totals = {mode: sorted(map(sum, parts)) for mode, parts in seconds.items()}
    medians = {mode: statistics.median(values) for mode, values in totals.items()}
    encoding = {mode: statistics.median(first for first, _ in parts) for mode, parts in seconds.items()}
    ratio = medians["encode"] / medians["lookup"]
    results = {
        "documents": len(documents),
        "queries": len(titles),
        "median_s": medians,
        "median_encode_query_s": encoding,
        "p99_s": {mode: values[int(len(values) * 0.99)] for mode, values in totals.items()},
        "encode_over_lookup": ratio,
    }
    path = write_results("lookup", results)
    print("| a query, text to ten hits | median | of that encode_query | p99 |\n|---|---|---|---|")
    for mode in medians:
        times = (medians[mode], encoding[mode], results["p99_s"][mode])
        print(f"| {mode} | " + " | ".join(f"{value * 1e3:.3f} ms" for value in times) + " |")
    print(f"\nwith a pass / without: {ratio:.0f}\n{path}")


if __name__ == "__main__":
    main()
