"""Picture of an instruction comparison: one text's key tokens under each instruction."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from st_keytokens.analysis.plots.style import COLORS, add_title, label, new_figure, place_legend
from st_keytokens.checks import checked_int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.instructions import InstructionComparison

__all__ = ["plot_instructions"]

_KINDS = {"stayed": (0, "o"), "entered": (1, "^"), "left": (6, "x")}  # colour and marker
_AREA = 120.0  # of the strongest token's mark, in square points


def plot_instructions(comparison: InstructionComparison, text: int = 0, *, max_tokens: int = 40) -> Figure:
    """Draws a table of marks: a row for each key token, a column for each instruction.

    Marks are as large as the token is strong beside the strongest of its column; colour and shape tell what stayed,
    what entered and, small, what left.

    Args:
        comparison: Of :func:`~st_keytokens.analysis.instructions.compare_instructions`.
        text: Which of its texts.
        max_tokens: Rows at most: those in most columns.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``text`` is no integer.
        ValueError: If there is no such text.
    """
    text = checked_int("text", text, minimum=0, maximum=len(comparison.texts) - 1)
    columns = {name: rows[text] for name, rows in comparison.by_text.items()}
    base = [token for token, _ in columns[comparison.baseline].tokens]
    held = {token: 0 for column in columns.values() for token, _ in column.tokens}
    for column in columns.values():
        for token, _ in column.tokens:
            held[token] += 1
    tokens = sorted(held, key=lambda token: -held[token])[:max_tokens]
    tokens.sort(
        key=lambda token: (token not in base, -held[token])
    )  # of the baseline first; else in order of strength
    figure, axes = new_figure(2.2 + 1.25 * len(columns), 1.8 + 0.22 * max(3, len(tokens)))
    from matplotlib.collections import PathCollection

    marks: dict[str, list[tuple[int, int, float]]] = {kind: [] for kind in _KINDS}
    for x, column in enumerate(columns.values()):
        entered, left, weights = dict(column.entered), dict(column.left), dict(column.tokens)
        strongest = max(weights.values(), default=1.0)
        for y, token in enumerate(tokens):
            if token in weights:
                kind = "entered" if token in entered else "stayed"
                marks[kind].append((x, y, _AREA * weights[token] / strongest))
            elif token in left:
                marks["left"].append((x, y, 14.0))
    for kind, (color, marker) in _KINDS.items():
        if marks[kind]:
            places, rows, sizes = zip(*marks[kind], strict=True)
            axes.scatter(places, rows, s=sizes, c=COLORS[color], marker=marker, linewidths=1.0, label=kind)
    names = [
        fill(label(name, 48), 16) + (f"\nkept {column.kept:.0%}" if name != comparison.baseline else "\n(baseline)")
        for name, column in columns.items()
    ]
    axes.set_xticks(range(len(columns)), names, parse_math=False)
    axes.set_yticks(range(len(tokens)), [label(token) for token in tokens], parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(max(len(tokens), 1) - 0.4, -0.6)
    add_title(figure, comparison.texts[text])
    place_legend(figure, loc="outside lower center", ncols=3)
    for handle in (mark for legend in figure.legends for mark in legend.legend_handles):
        if isinstance(handle, PathCollection):
            handle.set_sizes([30])
    return figure
