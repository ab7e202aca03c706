"""Alignment in pictures: by the number of decoded terms, and its rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from st_keytokens.analysis.plots.style import add_title, bar_style, name_rows, new_figure, place_legend, series_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.alignment import Alignment, AlignmentComparison
    from st_keytokens.analysis.estimates import Estimate

__all__ = ["plot_alignment", "plot_alignment_rates"]


def plot_alignment(comparison: AlignmentComparison | Alignment, *, title: str | None = None) -> Figure:
    """Shares of own terms among the first k decoded ones, by k, with their intervals.

    Args:
        comparison: What was measured.
        title: Above the picture, such as the model's name and what texts were measured.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = new_figure()
    ks: list[int] = []
    for position, (name, row) in enumerate(_rows(comparison).items()):
        ks, style = list(row.shares), series_style(position)
        values, lows, highs = _ends(row.shares.values())
        axes.plot(ks, values, label=name, **style)
        axes.fill_between(ks, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("k, first decoded terms")
    axes.set_ylabel("share of own terms among the first k")
    place_legend(axes)
    if title:
        add_title(figure, title)
    return figure


def plot_alignment_rates(comparison: AlignmentComparison | Alignment, *, title: str | None = None) -> Figure:
    """Local and global alignment rates as bars, with their intervals.

    Args:
        comparison: What was measured.
        title: Above the picture, such as the model's name and what texts were measured.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    rows = _rows(comparison)
    figure, axes = new_figure(height=1.4 + 0.5 * len(rows))
    for offset, label in enumerate(("local alignment rate", "global alignment rate")):
        values, lows, highs = _ends(getattr(row, label.replace(" ", "_")) for row in rows.values())
        places = [position + 0.4 * offset for position in range(len(rows))]
        axes.barh(places, values, height=0.36, label=label, **bar_style(offset))
        for place, *ends in zip(places, lows, highs, strict=True):
            axes.plot(ends, [place, place], color="black", linewidth=1)
    name_rows(axes, [position + 0.2 for position in range(len(rows))], rows, has_zero=False, has_grid=True)
    axes.set_xlim(left=0)
    axes.set_xlabel("alignment rate, 0 to 1")
    place_legend(figure, loc="outside lower center", ncols=2)
    if title:
        add_title(figure, title)
    return figure


def _ends(estimates: Iterable[Estimate]) -> tuple[list[float], list[float], list[float]]:
    """Values and the ends of their intervals; the value itself where there is none."""
    found = list(estimates)
    return (
        [e.value for e in found],
        [e.value if e.low is None else e.low for e in found],
        [e.value if e.high is None else e.high for e in found],
    )


def _rows(comparison: AlignmentComparison | Alignment) -> dict[str, Alignment]:
    from st_keytokens.analysis.alignment import Alignment

    return {"": comparison} if isinstance(comparison, Alignment) else comparison.rows
