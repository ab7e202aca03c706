"""The tables of docs/results/quality.md and its picture, from the JSON files of st-keytokens evaluate.

python examples/benchmarks/quality_page.py

The page says with which commands the files are made. Tables stand between comments that name their model; the text
around them is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
METHODS = {
    "nie2025": "the paper's method",
    "nie2025-remove": "the paper's method, first component removed",
    "bm25-stemmed": "BM25 stemmed",
    "dense": "dense",
    "key-tokens-lookup": "key terms, no forward pass for the query",
    "key-tokens-64": "key terms, 64 per document",
    "key-tokens": "key terms",
    "dense+bm25-stemmed-rrf": "dense + BM25 stemmed, reciprocal ranks",
    "dense+bm25-stemmed-score": "dense + BM25 stemmed, equal weights",
    "dense+bm25-stemmed-adaptive": "dense + BM25 stemmed, fused as ours",
    "dense+key-tokens-lookup-score": "dense + key terms, own words alone, equal weights",
    "dense+key-tokens-lookup-adaptive": "dense + key terms, own words alone",
    "dense+key-tokens-score": "dense + key terms, all decoded terms, equal weights",
    "dense+key-tokens-adaptive": "dense + key terms, all decoded terms",
    "dense+key-tokens-hybrid-adaptive": "**dense + key terms, the default**",
}
SHOWN = {  # in the picture, from the bottom
    "dense+key-tokens-hybrid-adaptive": "dense + key terms",
    "dense+bm25-stemmed-adaptive": "dense + BM25, fused as ours",
    "dense+bm25-stemmed-rrf": "dense + BM25, reciprocal ranks",
    "key-tokens": "key terms",
    "key-tokens-lookup": "key terms, no forward pass",
    "bm25-stemmed": "BM25 stemmed",
    "dense": "dense",
}
PICTURED = {"all-minilm-l6-v2": "all-MiniLM-L6-v2", "embeddinggemma-300m": "EmbeddingGemma 300M"}
OURS, OTHERS = "#0072B2", "#999999"


def read(model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"quality-{model}.json").read_text(encoding="utf-8"))
    return found


def means(found: dict[str, Any], method: str) -> list[float]:
    """nDCG@10 of a method: of each collection, then the macro average."""
    values = [collection["methods"][method]["means"]["nDCG@10"] for collection in found["collections"]]
    return [*values, sum(values) / len(values)]


def table(model: str) -> str:
    """A model's methods, the worst first, with differences from the rival."""
    found = read(model)
    names = [collection["collection"]["name"] for collection in found["collections"]]
    lines = [f"| nDCG@10 | {' | '.join(names)} | mean | difference |", "|---" * (len(names) + 3) + "|"]
    for method in sorted(found["macro_average"], key=lambda name: means(found, name)[-1]):
        cells = [f"{value:.3f}" for value in means(found, method)]
        if method == found["baseline"]:
            cells.append("baseline")
        else:
            differs = found["macro_average"][method]["differences"]["nDCG@10"]
            cells.append(f"{differs['mean']:+.3f} [{differs['low']:+.3f}, {differs['high']:+.3f}]")
        lines.append(f"| {METHODS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture() -> None:
    """Macro averages of two models side by side, as bars from zero."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axis, (model, title) in zip(figure.subplots(1, 2, sharey=True), PICTURED.items(), strict=True):
        found = read(model)
        values = [means(found, method)[-1] for method in SHOWN]
        colors = [OURS if "key" in method else OTHERS for method in SHOWN]
        bars = axis.barh(list(SHOWN.values()), values, color=colors)
        axis.bar_label(bars, [f"{value:.3f}" for value in values], padding=3, fontsize=9)
        axis.set_xlim(0, 1.15 * max(values))
        axis.set_title(f"{title}, mean of {len(found['collections'])} collections", fontsize=10)
        axis.set_xlabel("nDCG@10")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "quality.svg", metadata={"Date": None})


def main() -> None:
    page = (RESULTS / "quality.md").read_text(encoding="utf-8")
    for model in re.findall(r"<!-- (\S+): begin -->", page):
        before, rest = page.split(f"<!-- {model}: begin -->")
        after = rest.split(f"<!-- {model}: end -->")[1]
        page = f"{before}<!-- {model}: begin -->\n\n{table(model)}\n\n<!-- {model}: end -->{after}"
    (RESULTS / "quality.md").write_text(page, encoding="utf-8")
    picture()


if __name__ == "__main__":
    main()
