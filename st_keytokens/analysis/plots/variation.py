"""Picture of a variation: by how much an embedder changes each component of its backbone's embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_keytokens.analysis.plots.style import COLORS, HATCHES, new_figure
from st_keytokens.checks import checked_int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.variation import Variation

__all__ = ["plot_variation"]


def plot_variation(variation: Variation, *, components: int = 50, title: str | None = None) -> Figure:
    """Draws the variation of the first components as bars, with 95 % confidence intervals, the first one marked.

    Args:
        variation: Of :func:`~st_keytokens.analysis.variation.measure_variation`.
        components: How many.
        title: Above the picture.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``components`` is not an integer.
        ValueError: If ``components`` is below 1.
    """
    shown = variation.variations[: checked_int("components", components, minimum=1)]
    figure, axes = new_figure(6.4, 3.4)
    places = np.arange(1, len(shown) + 1)
    axes.bar(1, shown[0], width=0.8, color=COLORS[1], hatch=HATCHES[1], edgecolor="white")
    axes.bar(places[1:], shown[1:], width=0.8, color=COLORS[0])
    if variation.count > 1:
        ends = variation.intervals()[: len(shown)]
        axes.vlines(places, ends[:, 0], ends[:, 1], color="black", linewidth=0.9)
    shares = variation.mean_change_shares
    share = "" if np.isnan(shares[0]) else f",\n{shares[0]:.0%} of the mean change"
    axes.annotate(
        f"first component: {shown[0]:.3g}{share}",
        (1.4, shown[0]),
        (8, 0),
        textcoords="offset points",
        va="bottom" if shown[0] < 0 else "top",
        color=COLORS[1],
    )
    axes.axhline(0, color="#666666", linewidth=0.8)
    axes.margins(x=0.02, y=0.1)
    axes.set_xlabel(f"component of the backbone's embeddings ({len(shown)} of {len(variation.variations)})")
    axes.set_ylabel("variation")
    if title:
        axes.set_title(title, loc="left", parse_math=False)
    return figure
