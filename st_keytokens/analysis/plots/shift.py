"""Picture of a shift sweep: alignment and information as functions of λ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from st_keytokens.analysis.plots.style import new_figure, place_legend, series_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.shift_result import ShiftSweep

__all__ = ["plot_shift_sweep"]

_HEADROOM = 1.55  # of the vertical axis, above 1: where the names of the marks stand, clear of the lines
_CROWDED = 0.05  # of the axis: marks that close have their names on both sides


def plot_shift_sweep(sweep: ShiftSweep, *, title: str | None = None) -> Figure:
    """Draws Hit@k, alignment rates and information by λ, with intervals of the local rate and the λ that stand out.

    Information is drawn over the binary logarithm of the number of texts, its upper bound.

    Args:
        sweep: Of :func:`~st_keytokens.analysis.shift_sweep.sweep_shift`.
        title: Above the picture.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = new_figure(6.4, 5.2)
    local = [alignment.local_alignment_rate for alignment in sweep.alignments]
    lines = {f"Hit@{k}": [alignment.hits[k].value for alignment in sweep.alignments] for k in sweep.alignments[0].hits}
    lines["local alignment rate"] = [rate.value for rate in local]
    lines["global alignment rate"] = [alignment.global_alignment_rate.value for alignment in sweep.alignments]
    texts = sweep.alignments[0].text_count + sweep.alignments[0].without_terms
    if texts > 1:
        lines["information / log₂ N"] = (sweep.information / math.log2(texts)).tolist()
    for number, (name, values) in enumerate(lines.items()):
        style = series_style(number)
        axes.plot(sweep.shifts, values, label=name, **style)
        if name == "local alignment rate" and texts > 1:
            ends = np.array([(rate.low, rate.high) for rate in local], dtype=np.float64)
            axes.fill_between(sweep.shifts, ends[:, 0], ends[:, 1], color=style["color"], alpha=0.25, linewidth=0)
    marks = [(0.0, "no shift"), (-sweep.coefficient, "component gone"), (sweep.suggested_shift, "suggested")]
    marks += [] if sweep.variation is None else [(sweep.variation, "v₁")]
    left, right = axes.get_xlim()
    marks = sorted(mark for mark in marks if left <= mark[0] <= right)
    for (value, name), (following, _) in zip(marks, [*marks[1:], (math.inf, "")], strict=True):
        is_variation, is_crowded = name == "v₁", following - value < _CROWDED * (right - left)
        axes.axvline(
            value, color="black", linewidth=1.6 if is_variation else 0.8, linestyle="-" if is_variation else ":"
        )
        axes.annotate(
            f"{name} ({value:.3g})" if value else name,
            (value, 1),
            (-3 if is_crowded else 3, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            ha="right" if is_crowded else "left",
            va="top",
            size=8,
            weight="bold" if is_variation else "normal",
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8},
        )
    axes.set_xlim(left, right)
    axes.set_ylim(-0.02, _HEADROOM)
    axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_xlabel("shift λ along the first component")
    place_legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    if title:
        axes.set_title(title, loc="left", parse_math=False)
    return figure
