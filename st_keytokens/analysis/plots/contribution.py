"""Picture of contributions: what the first component and the rest of an embedding feed to its decoded tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from st_keytokens.analysis.plots.style import COLORS, HATCHES, new_figure, place_legend
from st_keytokens.analysis.plots.token_bars import label
from st_keytokens.checks import checked_int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.contribution_result import Contribution

__all__ = ["plot_contribution"]

_HEIGHT = 0.4  # of a bar; a token has two


def plot_contribution(contribution: Contribution, *, text: int | None = None, max_tokens: int = 8) -> Figure:
    """Draws the tokens that are decoded, those that the first component alone gives, and those of the rest alone.

    Each token has two bars, the first component's contribution and the rest's, and a point at their sum, its logit.

    Args:
        contribution: Of :func:`~st_keytokens.analysis.contribution.measure_contribution`.
        text: Which of the texts kept in detail, from 0. None: the average of all texts.
        max_tokens: Tokens of each of the three groups, at most the contribution's ``top_k``.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If a number is not an integer.
        ValueError: If there is no such text, or ``max_tokens`` is below 1.
    """
    max_tokens = checked_int("max_tokens", max_tokens, minimum=1)
    if text is None:
        title = f"average of {contribution.count:,} texts"
        groups = [contribution.mean_tokens(part) for part in ("logit", "first", "rest")]
    else:
        if not 0 <= checked_int("text", text, minimum=0) < len(contribution.texts):
            raise ValueError(
                f"text must be one of the {len(contribution.texts)} texts kept in detail, counted from 0, got {text}. "
                "Measure with more examples."
            )
        found = contribution.texts[text]
        title = f"text {text + 1}" if found.text is None else found.text
        groups = [found.tokens, found.first_tokens, found.rest_tokens]
    groups = [group[:max_tokens] for group in groups]
    tokens = [token for group in groups for token in group]
    places = np.concatenate(
        [np.arange(len(group)) + number + sum(map(len, groups[:number])) for number, group in enumerate(groups)]
    )
    figure, axes = new_figure(6.4, 1.3 + 0.24 * (len(tokens) + len(groups) - 1))
    parts = {"first component": [token.first for token in tokens], "rest": [token.rest for token in tokens]}
    for number, (name, values) in enumerate(parts.items()):
        style: dict[str, Any] = {"color": COLORS[1 - number], "hatch": HATCHES[1 - number], "edgecolor": "white"}
        axes.barh(places + (number - 0.5) * _HEIGHT, values, height=_HEIGHT, label=name, **style)
    axes.plot([token.logit for token in tokens], places, "D", color="black", markersize=3, label="sum (logit)")
    axes.set_yticks(places, [label(token.token) for token in tokens], parse_math=False)
    axes.invert_yaxis()
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
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.set_xlabel("contribution to the logit")
    axes.set_title(label(title, 60), loc="left", parse_math=False)
    place_legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.55 / figure.get_figheight()), ncols=3)
    return figure
