"""The picture of scale_page.py: costs against the number of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

NAMES = {
    "index": "HybridIndex",
    "qdrant": "Qdrant Edge",
    "sqlite": "SQLite postings",
    "duckdb": "DuckDB postings",
    "dense-256": "dense, 256",
    "dense-1024": "dense, 1024",
}
STYLES = {
    "index": ("o", "#009E73"),
    "qdrant": ("s", "#D55E00"),
    "sqlite": ("v", "#0072B2"),
    "duckdb": ("^", "#E69F00"),
    "dense-256": ("D", "#CC79A7"),
    "dense-1024": ("P", "#000000"),
}
PANELS = {
    "a query, ms of the processor": ("short-1", "cpu_median_ms", 1.0),
    "a query with a new filter of 1 %, ms of the processor": ("new", "cpu_median_ms", 1.0),
    "build, s of the processor": ("build", "cpu_s", 1.0),
    "resident memory, MiB": ("memory", "resident", 1 / (1 << 20)),
}


def draw(sizes: list[dict[str, Any]], file: Path) -> None:
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (title, (part, key, factor)) in zip(grid.flat, PANELS.items(), strict=True):
        for name, (marker, color) in STYLES.items():
            points = [
                (size["documents"], size["sides"][name][part][key] * factor)
                for size in sizes
                if part in size["sides"].get(name, {})
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, color=color, linewidth=1, label=NAMES[name])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("documents")
        axes.grid(alpha=0.3)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(file, metadata={"Date": None})
