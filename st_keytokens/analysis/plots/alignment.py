"""Alignment in pictures: by the number of decoded terms, and its rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from st_keytokens.analysis.alignment import Alignment, AlignmentComparison, Estimate
from st_keytokens.analysis.plots.style import COLORS, HATCHES, new_figure, place_legend, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_alignment", "plot_alignment_rates", "plot_hits"]


def plot_alignment(comparison: AlignmentComparison | Alignment) -> Figure:
    """Shares of own terms among the first k decoded ones, by k, with their intervals.

    Args:
        comparison: What was measured.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = new_figure()
    _draw_by_k(axes, comparison, lambda row: row.shares)
    axes.set_ylabel("share of own terms among the first k")
    return figure


def plot_hits(comparison: AlignmentComparison | Alignment) -> Figure:
    """Hit@k, by k, with its intervals.

    Args:
        comparison: What was measured.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = new_figure()
    _draw_by_k(axes, comparison, lambda row: row.hits)
    axes.set_ylabel("Hit@k: share of texts with an own term")
    return figure


def plot_alignment_rates(comparison: AlignmentComparison | Alignment) -> Figure:
    """Local and global alignment rates as bars, with their intervals.

    Args:
        comparison: What was measured.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    rows = _rows(comparison)
    figure, axes = new_figure(height=1.2 + 0.5 * len(rows))
    for offset, label in enumerate(("local alignment rate", "global alignment rate")):
        estimates: list[Estimate] = [getattr(row, label.replace(" ", "_")) for row in rows.values()]
        places = [position + 0.4 * offset for position in range(len(rows))]
        axes.barh(
            places,
            [found.value for found in estimates],
            height=0.36,
            color=COLORS[offset],
            hatch=HATCHES[offset],
            edgecolor="white",
            label=label,
        )
        for place, found in zip(places, estimates, strict=True):
            low, high = (found.value if end is None else end for end in (found.low, found.high))
            axes.plot([low, high], [place, place], color="black", linewidth=1)
    axes.set_yticks([position + 0.2 for position in range(len(rows))], list(rows))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    place_legend(axes)
    return figure


def _draw_by_k(
    axes: Axes, comparison: AlignmentComparison | Alignment, values: Callable[[Alignment], dict[int, Estimate]]
) -> None:
    rows = _rows(comparison)
    ks = list(values(next(iter(rows.values()))))
    for position, (name, row) in enumerate(rows.items()):
        estimates = list(values(row).values())
        style = series_style(position)
        axes.plot(ks, [found.value for found in estimates], label=name, **style)
        ends = [(found.low, found.high) for found in estimates]
        low = [found.value if end[0] is None else end[0] for found, end in zip(estimates, ends, strict=True)]
        high = [found.value if end[1] is None else end[1] for found, end in zip(estimates, ends, strict=True)]
        axes.fill_between(ks, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("k, first decoded terms")
    place_legend(axes)


def _rows(comparison: AlignmentComparison | Alignment) -> dict[str, Alignment]:
    return {"": comparison} if isinstance(comparison, Alignment) else comparison.rows
