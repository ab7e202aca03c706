"""nDCG@10 against terms a document and against queries a second, from the JSON of quality_tokens.py and ablation.py.

python examples/benchmarks/quality_tokens_picture.py

Writes docs/results/quality-tokens.svg.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
MODELS = {"tiny-embedder": "tiny-embedder", "all-minilm-l6-v2": "all-MiniLM-L6-v2"}
METHODS = {
    "bm25-tokens": ("BM25, same tokens", "s", "#000000"),
    "nie2025": ("paper's method", "v", "#D55E00"),
    "dense": ("dense", "D", "#0072B2"),
    "key-tokens-lookup": ("key tokens, no pass", "^", "#E69F00"),
    "key-tokens": ("key tokens", "o", "#009E73"),
    "dense+key-tokens-lookup-adaptive": ("dense + key tokens", "P", "#CC79A7"),
}


def queries_a_second(collections: list[dict[str, Any]], method: str) -> float:
    """Queries over the seconds that embedding, weighing and ranking them took."""
    seconds = 0.0
    for collection in collections:
        costs = collection["methods"][method]["costs"]
        parts = ("weigh_queries", "score", "fuse")
        seconds += sum(costs["seconds"].get(part, 0.0) for part in parts)
        seconds += costs["forward_passes"] * collection["seconds"]["encode_queries"]
    return sum(len(collection["query_ids"]) for collection in collections) / seconds


def main() -> None:
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    for row, (name, title) in zip(axes, MODELS.items(), strict=True):
        collections = json.loads((RESULTS / f"quality-tokens-{name}.json").read_text(encoding="utf-8"))["collections"]
        variants = json.loads((RESULTS / f"ablation-{name}.json").read_text(encoding="utf-8"))["variants"]
        pruned = [values for variant, values in variants.items() if variant.startswith("max_document_terms = ")]
        pruned.append(variants["default"])
        points = sorted((fmean(v["terms_a_document"] for v in p.values()), p) for p in pruned)
        known = set(variants["default"])
        row[0].plot(
            [terms for terms, _ in points],
            [fmean(v["nDCG@10"] for v in values.values()) for _, values in points],
            color=METHODS["key-tokens"][2],
            linewidth=1,
        )
        for method, (label, marker, color) in METHODS.items():
            over = [c["methods"][method] for c in collections if c["collection"]["name"] in known]
            value = fmean(m["means"]["nDCG@10"] for m in over)
            terms = over[0]["costs"]["document_active_dims"]
            if terms is not None and not method.startswith("dense"):
                mean = fmean(m["costs"]["document_active_dims"] for m in over)
                row[0].plot(mean, value, marker, color=color, label=label)
            every = fmean(c["methods"][method]["means"]["nDCG@10"] for c in collections)
            row[1].plot(queries_a_second(collections, method), every, marker, color=color, label=label)
        for axis, label in zip(row, ("terms a document", "queries a second"), strict=True):
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel(label)
            axis.set_title(title, fontsize=10)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("nDCG@10")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(RESULTS / "quality-tokens.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
