"""The spectral analysis in pictures: variation, contribution and shift of the first component."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from st_keytokens.analysis.plots.style import (
    COLORS,
    add_title,
    bar_style,
    label,
    name_rows,
    new_figure,
    place_legend,
    series_style,
)
from st_keytokens.shared.checks import checked_int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.contribution import Contribution
    from st_keytokens.analysis.shift import ShiftSweep
    from st_keytokens.analysis.spectrum import Variation

__all__ = ["plot_contribution", "plot_shift_sweep", "plot_variation"]

_HEIGHT = 0.4  # of a bar; a token has two
_CROWDED = 0.05  # of the axis: marks that close have their names moved apart


def plot_variation(variation: Variation, *, components: int = 50, title: str | None = None) -> Figure:
    """Draws the variation of the first components as bars, with 95 % confidence intervals, the first one marked.

    Args:
        variation: Of :func:`~st_keytokens.analysis.spectrum.measure_variation`.
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
    figure, axes = new_figure(6.4, 3.4, title)
    places = np.arange(1, len(shown) + 1)
    axes.bar(1, shown[0], width=0.8, **bar_style(1))
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
    axes.set_ylabel("mean change, in embedding units")
    return figure


def plot_contribution(
    contribution: Contribution, *, text: int = 0, max_tokens: int = 8, title: str | None = None
) -> Figure:
    """Draws the tokens of a text that are decoded, those that the first component alone gives, and those of the rest.

    Each token has two bars, the first component's contribution and the rest's, and a point at their sum, its logit.

    Args:
        contribution: Of :func:`~st_keytokens.analysis.contribution.measure_contribution`.
        text: Which of the texts kept in detail, from 0.
        max_tokens: Tokens of each of the three groups, at most the contribution's ``top_k``.
        title: Above the text, such as the model's name.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If a number is not an integer.
        ValueError: If there is no such text, or ``max_tokens`` is below 1.
    """
    max_tokens = checked_int("max_tokens", max_tokens, minimum=1)
    if checked_int("text", text, minimum=0) >= len(contribution.texts):
        raise ValueError(
            f"text must be one of the {len(contribution.texts)} texts kept in detail, counted from 0, got {text}. "
            "Measure with more examples."
        )
    found = contribution.texts[text]
    groups = [found.tokens, found.first_tokens, found.rest_tokens]
    groups = [group[:max_tokens] for group in groups]
    tokens = [token for group in groups for token in group]
    places = np.concatenate(
        [np.arange(len(group)) + number + sum(map(len, groups[:number])) for number, group in enumerate(groups)]
    )
    figure, axes = new_figure(6.4, 1.6 + 0.24 * (len(tokens) + len(groups) - 1))
    parts = {"first component": [token.first for token in tokens], "rest": [token.rest for token in tokens]}
    for number, (name, values) in enumerate(parts.items()):
        axes.barh(places + (number - 0.5) * _HEIGHT, values, height=_HEIGHT, label=name, **bar_style(1 - number))
    axes.plot([token.logit for token in tokens], places, "D", color="black", markersize=3, label="sum (logit)")
    name_rows(axes, places, [label(token.token) for token in tokens], has_grid=True)
    axes.margins(x=0.03, y=0.01)
    names = ("decoded", "first component\nalone decodes", "rest alone\ndecodes")
    start = 0
    for name, group in zip(names, groups, strict=True):
        middle = places[start : start + len(group)].mean() if group else 0.0
        axes.annotate(
            name,
            (1, middle),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            size=8,
        )
        start += len(group)
        if start < len(tokens):
            axes.axhline(places[start] - 1, color="#BBBBBB", linewidth=0.8)
    axes.set_xlabel("contribution to the logit")
    add_title(figure, *filter(None, (title, f"text {text + 1}" if found.text is None else found.text)))
    place_legend(figure, loc="outside lower center", ncols=3)
    return figure


def plot_shift_sweep(sweep: ShiftSweep, *, title: str | None = None) -> Figure:
    """Draws Hit@k, alignment rates and information by λ, with intervals of the local rate and the λ that stand out.

    Information is drawn over the binary logarithm of the number of texts, its upper bound.

    Args:
        sweep: Of :func:`~st_keytokens.analysis.shift.sweep_shift`.
        title: Above the picture.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = new_figure(6.4, 5.4)
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
            (-5 if is_crowded else 1, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            size=8,
            weight="bold" if is_variation else "normal",
        )
    axes.set_xlim(left, right)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("shift λ along the first component, in embedding units")
    axes.set_ylabel("rate or share, 0 to 1")
    if title:
        add_title(figure, title)
    place_legend(figure, loc="outside lower center", ncols=3)
    return figure
