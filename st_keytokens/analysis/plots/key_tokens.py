"""Key tokens in pictures: of a text, of a pair of texts, and of a text under several instructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from st_keytokens.analysis.plots.style import (
    COLORS,
    add_title,
    bar_style,
    label,
    name_rows,
    new_figure,
    place_legend,
)
from st_keytokens.shared.checks import checked_int

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from st_keytokens.analysis.instructions import InstructionComparison
    from st_keytokens.analysis.pair import PairComparison, PairExplanation

__all__ = ["plot_instructions", "plot_pair", "plot_pair_comparison", "plot_token_bars"]

_FOR, _AGAINST, _COMMON, _OTHER, _SUM = 0, 1, 2, 5, 6  # of COLORS: the parts of a similarity
_NAMES = {_COMMON: "taken away before decoding", _OTHER: "none of these tokens"}
_KINDS = {"stayed": (0, "o"), "entered": (1, "^"), "left": (6, "x")}  # colour and marker
_AREA = 120.0  # of the strongest token's mark, in square points


def plot_token_bars(
    tokens: Sequence[tuple[str, float]], *, own: Collection[str] = (), title: str | None = None
) -> Figure:
    """Draws key tokens with their weights, the first on top.

    Args:
        tokens: As :meth:`KeyTokenEncoder.key_tokens` gives them for a text.
        own: Those that the text itself holds; they are drawn apart from the others, by colour and by hatching.
        title: Above the picture.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no token.
    """
    if not tokens:
        raise ValueError(
            "tokens must hold at least one, got none. A text without a term of its own has no key tokens."
        )
    figure, axes = new_figure(5.0, 1.0 + 0.24 * max(3, len(tokens)))
    kinds = ("in the text", "not in the text") if own else ("key tokens",)
    for kind, name in enumerate(kinds):
        places = [i for i, (token, _) in enumerate(tokens) if not own or (token in own) == (kind == 0)]
        if places:
            axes.barh(places, [tokens[i][1] for i in places], height=0.7, label=name, **bar_style(kind))
    name_rows(axes, range(len(tokens)), [label(token) for token, _ in tokens], has_zero=False)
    axes.set_xlabel("weight")
    if own:
        place_legend(figure, loc="outside lower center", ncols=2)
    if title:
        add_title(figure, title)
    return figure


def plot_pair(explanation: PairExplanation, *, max_tokens: int = 20, title: str | None = None) -> Figure:
    """Draws how a similarity adds up: each bar starts where the one above it ends.

    Args:
        explanation: Of :func:`~st_keytokens.analysis.pair.explain_pair`.
        max_tokens: Tokens drawn one by one, the largest contributions; the rest are one bar.
        title: Above the texts, such as the model's name.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    shown, rest = explanation.tokens[:max_tokens], explanation.tokens[max_tokens:]
    rows = [(label(s.token), s.contribution, _FOR if s.contribution >= 0 else _AGAINST) for s in shown]
    if rest:
        rows.append((f"({len(rest)} more tokens)", sum(share.contribution for share in rest), _FOR))
    if explanation.common_part != "nothing":
        rows.append((f"({explanation.common_part})", explanation.common, _COMMON))
    rows.append(("(other directions)", explanation.remainder, _OTHER))
    figure, axes = new_figure(6.4, 1.3 + 0.24 * (len(rows) + 1))
    start, names = 0.0, {_FOR: "token, for", _AGAINST: "token, against", **_NAMES}
    for place, (_, value, kind) in enumerate(rows):
        axes.barh(place, value, left=start, label=names.pop(kind, None), height=0.7, **bar_style(kind))
        axes.plot([start + value] * 2, [place - 0.35, place + 1.35], color="#666666", linewidth=0.6)
        _write(axes, f"{value:+.3f}", (max(start, start + value), place))
        start += value
    axes.barh(len(rows), explanation.value, color=COLORS[_SUM], height=0.7)
    _write(axes, f"{explanation.value:.3f}", (max(0.0, explanation.value), len(rows)))
    labels = [*(row[0] for row in rows), explanation.similarity]
    name_rows(axes, range(len(labels)), labels)
    axes.margins(x=0.12)
    axes.set_xlabel(f"{explanation.similarity}, added up from the top")
    add_title(figure, *filter(None, (title, explanation.text, explanation.other)))
    place_legend(figure, loc="outside lower center", ncols=2)
    return figure


def plot_pair_comparison(comparison: PairComparison) -> Figure:
    """Draws the parts of the similarity under each embedder as one bar, its tokens named where there is room.

    Args:
        comparison: Of :func:`~st_keytokens.analysis.pair.compare_pair`.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = new_figure(7.2, 1.5 + 0.95 * len(comparison.explanations))
    bars = []
    for found in comparison.explanations.values():
        tokens = [(share.token, share.contribution, _FOR) for share in found.tokens]
        common = [] if found.common_part == "nothing" else [("", found.common, _COMMON)]
        bars.append([*tokens, *common, ("", found.remainder, _OTHER)])
    span = max(sum(abs(value) for _, value, _ in parts) for parts in bars)
    names = {_FOR: "tokens", **_NAMES}
    for place, (found, parts) in enumerate(zip(comparison.explanations.values(), bars, strict=True)):
        right = left = 0.0
        for token, value, kind in parts:
            start = right if value >= 0 else left
            axes.barh(place, value, left=start, label=names.pop(kind, None), height=0.68, **bar_style(kind))
            is_wide = abs(value) > 0.0135 * span * len(label(token))
            if token and (is_wide or abs(value) > 0.022 * span):
                axes.text(
                    start + value / 2,
                    place,
                    label(token, 24 if is_wide else 9),
                    rotation=0 if is_wide else 90,
                    ha="center",
                    va="center",
                    color="white",
                    size=8,
                    parse_math=False,
                )
            right, left = (right + value, left) if value >= 0 else (right, left + value)
        axes.plot([found.value] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
        _write(axes, f"{found.value:.3f}", (found.value, place - 0.4), (0, 2), ha="center", va="baseline")
    name_rows(axes, range(len(bars)), comparison.explanations)
    kinds = dict.fromkeys(found.similarity for found in comparison.explanations.values())
    axes.set_xlabel(f"{' or '.join(kinds)} (black line), and its parts")
    add_title(figure, comparison.text, comparison.other)
    place_legend(figure, loc="outside lower center", ncols=3)
    return figure


def plot_instructions(
    comparison: InstructionComparison, text: int = 0, *, max_tokens: int = 40, title: str | None = None
) -> Figure:
    """Draws a table of marks: a row for each key token, a column for each instruction.

    Marks are as large as the token is strong beside the strongest of its column; colour and shape tell what stayed,
    what entered and, small, what left.

    Args:
        comparison: Of :func:`~st_keytokens.analysis.instructions.compare_instructions`.
        text: Which of its texts.
        max_tokens: Rows at most: those in most columns.
        title: Above the text, such as the model's name.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``text`` is no integer.
        ValueError: If there is no such text.
    """
    text = checked_int("text", text, minimum=0, maximum=len(comparison.texts) - 1)
    columns = {name: rows[text] for name, rows in comparison.by_text.items()}
    base = {token for token, _ in columns[comparison.baseline].tokens}
    held = Counter(token for column in columns.values() for token, _ in column.tokens)
    tokens = [token for token, _ in held.most_common(max_tokens)]
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
    add_title(figure, *filter(None, (title, comparison.texts[text])))
    place_legend(figure, loc="outside lower center", ncols=3)
    for handle in (mark for legend in figure.legends for mark in legend.legend_handles):
        if isinstance(handle, PathCollection):
            handle.set_sizes([30])
    return figure


def _write(
    axes: Axes, text: str, place: tuple[float, float], offset: tuple[int, int] = (3, 0), va: str = "center", **how: Any
) -> None:
    axes.annotate(text, place, offset, textcoords="offset points", va=va, size=8, **how)
