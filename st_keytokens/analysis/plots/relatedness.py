"""Pictures of how key tokens agree with human judgements: correlations with intervals, and the pairs themselves."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from st_keytokens.analysis.plots.style import COLORS, MARKERS, label, name_rows, new_figure, place_legend
from st_keytokens.shared.checks import check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.relatedness import Relatedness

__all__ = ["plot_judged_pairs", "plot_relatedness"]


def plot_relatedness(results: Mapping[str, Relatedness]) -> Figure:
    """Draws the correlation of each measure with its interval, a group for each result.

    Args:
        results: By name, such as that of an embedder and a set of pairs.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no result.
    """
    if not results:
        raise ValueError("results must hold at least one, got none.")
    measures = list(next(iter(results.values())).correlations)
    figure, axes = new_figure(6.4, 1.2 + len(results) * (0.3 + 0.15 * len(measures)))
    for position, measure in enumerate(measures):
        offset = 0.8 * ((position + 0.5) / len(measures) - 0.5)
        found = [(row + offset, result.correlations[measure]) for row, result in enumerate(results.values())]
        drawn = [(y, c.spearman, c.low, c.high) for y, c in found if c.spearman is not None]
        if not drawn:
            continue
        y, middle, low, high = (np.array(part, dtype=float) for part in zip(*drawn, strict=True))
        axes.errorbar(
            middle,
            y,
            xerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
            fmt=MARKERS[position],
            color=COLORS[position],
            markersize=5,
            elinewidth=1.2,
            capsize=2,
            label=measure,
        )
    name_rows(axes, range(len(results)), [fill(label(name, 72), 36) for name in results], has_grid=True)
    axes.set_ylim(len(results) - 0.5, -0.5)
    for row in range(1, len(results)):
        axes.axhline(row - 0.5, color="#DDDDDD", linewidth=0.6)
    confidence = next(iter(results.values())).confidence
    axes.set_xlabel(f"Spearman's correlation, {confidence:.0%} interval")
    place_legend(figure, loc="outside lower center", ncols=3)
    return figure


def plot_judged_pairs(result: Relatedness, measure: str = "decoded cosine", *, title: str | None = None) -> Figure:
    """Draws a point for each pair: the measure over the judgement.

    Args:
        result: Of :func:`~st_keytokens.analysis.relatedness.compare_with_judgements`.
        measure: One of its measures.
        title: Above the picture, such as the model's name and the pairs'.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no such measure.
    """
    check_choice("measure", measure, result.values)
    figure, axes = new_figure(4.6, 3.6)
    axes.scatter(
        result.judgements,
        result.values[measure],
        s=8,
        color=COLORS[0],
        alpha=min(0.7, 300 / result.pairs),
        linewidths=0,
        rasterized=True,
    )
    found = result.correlations[measure].spearman
    shown = "no correlation" if found is None else f"Spearman {found:.3f}, {result.pairs:,} pairs"
    axes.set_title("\n".join(filter(None, (title, shown))), loc="left", parse_math=False)
    axes.set_xlabel("human judgement")
    axes.set_ylabel(measure)
    return figure
