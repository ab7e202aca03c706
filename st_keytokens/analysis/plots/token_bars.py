"""Picture of what a text's embedding says: its key tokens as bars."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from st_keytokens.analysis.plots.style import COLORS, HATCHES, new_figure, place_legend
from st_keytokens.analysis.tables import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["add_title", "label", "plot_token_bars"]

_WIDTH = 24  # characters of a token that are shown


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
            axes.barh(
                places,
                [tokens[i][1] for i in places],
                height=0.7,
                color=COLORS[kind],
                hatch=HATCHES[kind],
                edgecolor="white",
                label=name,
            )
    axes.set_yticks(range(len(tokens)), [label(token) for token, _ in tokens], parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("weight")
    if own:
        place_legend(figure, loc="outside lower center", ncols=2)
    if title:
        add_title(figure, title)
    return figure


def add_title(figure: Figure, *texts: str) -> None:
    """Puts texts above a picture, one a line, each cut to the picture's width.

    Args:
        figure: The picture.
        *texts: Any texts.
    """
    width = int(13 * figure.get_figwidth())  # characters, of which an inch holds about thirteen
    title = "\n".join(label(text, width) for text in texts)
    figure.suptitle(title, x=0.01, ha="left", size=10, parse_math=False)


def label(text: str, width: int = _WIDTH) -> str:
    """A text on one line, cut to a width.

    >>> label("a very long token that goes on and on")
    'a very long token that …'
    """
    text = plain(text)
    return text if len(text) <= width else text[: width - 1] + "…"
