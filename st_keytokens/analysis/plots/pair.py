"""Pictures of a pair: what each key token adds to the similarity, for one embedder or several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st_keytokens.analysis.plots.style import COLORS, HATCHES, add_title, label, new_figure, place_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.pair import PairComparison, PairExplanation

__all__ = ["plot_pair", "plot_pair_comparison"]

_BLACK = 6  # of COLORS: the sum


def plot_pair(explanation: PairExplanation, *, max_tokens: int = 20) -> Figure:
    """Draws how a similarity adds up: each bar starts where the one above it ends.

    Args:
        explanation: Of :func:`~st_keytokens.analysis.pair.explain_pair`.
        max_tokens: Tokens drawn one by one, the largest contributions; the rest are one bar.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    shown, rest = explanation.tokens[:max_tokens], explanation.tokens[max_tokens:]
    rows = [(label(share.token), share.contribution, 0 if share.contribution >= 0 else 1) for share in shown]
    if rest:
        rows.append((f"({len(rest)} more tokens)", sum(share.contribution for share in rest), 0))
    if explanation.common_part != "nothing":
        rows.append((f"({explanation.common_part})", explanation.common, 2))
    rows.append(("(other directions)", explanation.remainder, 5))
    figure, axes = new_figure(6.4, 1.3 + 0.24 * (len(rows) + 1))
    names = {0: "token, for", 1: "token, against", 2: "taken away before decoding", 5: "none of these tokens"}
    start, drawn = 0.0, set()
    for place, (_, value, kind) in enumerate(rows):
        name = None if kind in drawn else names[kind]
        drawn.add(kind)
        style: dict[str, Any] = {"color": COLORS[kind], "hatch": HATCHES[kind], "edgecolor": "white", "height": 0.7}
        axes.barh(place, value, left=start, label=name, **style)
        axes.plot([start + value] * 2, [place - 0.35, place + 1.35], color="#666666", linewidth=0.6)
        axes.annotate(
            f"{value:+.3f}",
            (max(start, start + value), place),
            (3, 0),
            textcoords="offset points",
            va="center",
            size=8,
        )
        start += value
    axes.barh(len(rows), explanation.value, color=COLORS[_BLACK], height=0.7)
    axes.annotate(
        f"{explanation.value:.3f}",
        (max(0.0, explanation.value), len(rows)),
        (3, 0),
        textcoords="offset points",
        va="center",
        size=8,
    )
    labels = [*(row[0] for row in rows), explanation.similarity]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.set_xlabel(f"{explanation.similarity}, added up from the top")
    add_title(figure, explanation.text, explanation.other)
    place_legend(figure, loc="outside lower center", ncols=2)
    return figure


def plot_pair_comparison(comparison: PairComparison) -> Figure:
    """Draws the parts of the similarity under each embedder as one bar, its tokens named where there is room.

    Args:
        comparison: Of :func:`~st_keytokens.analysis.pair_comparison.compare_pair`.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = new_figure(7.2, 1.5 + 0.95 * len(comparison.explanations))
    bars = []
    for found in comparison.explanations.values():
        tokens = [(share.token, share.contribution, 0) for share in found.tokens]
        common = [] if found.common_part == "nothing" else [("", found.common, 2)]
        bars.append([*tokens, *common, ("", found.remainder, 5)])
    span = max(sum(abs(value) for _, value, _ in parts) for parts in bars)
    names = {0: "tokens", 2: "taken away before decoding", 5: "none of these tokens"}
    for place, (found, parts) in enumerate(zip(comparison.explanations.values(), bars, strict=True)):
        right = left = 0.0
        for token, value, kind in parts:
            start = right if value >= 0 else left
            style: dict[str, Any] = {
                "color": COLORS[kind],
                "hatch": HATCHES[kind],
                "edgecolor": "white",
                "height": 0.68,
            }
            axes.barh(place, value, left=start, label=names.pop(kind, None), **style)
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
        axes.annotate(
            f"{found.value:.3f}", (found.value, place - 0.4), (0, 2), textcoords="offset points", ha="center", size=8
        )
    axes.set_yticks(range(len(comparison.explanations)), list(comparison.explanations), parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.set_xlabel("similarity (black line), and its parts")
    add_title(figure, comparison.text, comparison.other)
    place_legend(figure, loc="outside lower center", ncols=3)
    return figure
