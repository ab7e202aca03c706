"""Picture of what a text's embedding says: its key tokens as bars."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_keytokens.analysis.tables import plain
from st_keytokens.checks import check_choice, checked_float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "HATCHES",
    "LINES",
    "MARKERS",
    "add_title",
    "label",
    "literal_text",
    "new_figure",
    "place_legend",
    "plot_token_bars",
    "save_figure",
    "series_style",
]


COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""The colours of Okabe and Ito (2008), which colour-blind readers tell apart; those that show best on white first."""

HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "--")
"""Fills of bars, beside the colours, for grey print."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Points of lines, beside the colours."""

LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
"""Dashes of lines, beside the colours."""

_SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text: searchable, and small
    "svg.hashsalt": "st-keytokens",  # ids in the file are the same each time
}
_METADATA = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}


def new_figure(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes, in the style of all pictures; pyplot's state is left alone.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        The figure, which lays itself out, and its axes.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If a size is not a number.
        ValueError: If a size is below 1.
    """
    width, height = checked_float("width", width, minimum=1), checked_float("height", height, minimum=1)
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def series_style(position: int) -> dict[str, Any]:
    """Arguments of ``Axes.plot`` that tell a line from all others by colour, marker and dashes.

    Args:
        position: Which line, from 0; after eight they repeat.

    Returns:
        Keyword arguments.

    >>> series_style(1)["marker"]
    's'
    """
    return {
        "color": COLORS[position % len(COLORS)],
        "marker": MARKERS[position % len(MARKERS)],
        "linestyle": LINES[position % len(LINES)],
        "markersize": 4,
        "linewidth": 1.4,
    }


def save_figure(figure: Figure, path: str | PathLike[str]) -> None:
    """Writes a figure; the same figure gives the same file.

    Args:
        figure: The figure.
        path: Ends in ``.svg`` or ``.png``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the ending is another one.
        OSError: If it cannot be written.
    """
    path = Path(path)
    check_choice("the ending of path", path.suffix.lower(), _METADATA)
    literal_text(figure)
    with _matplotlib().rc_context(_SETTINGS):
        figure.savefig(path, dpi=200, metadata=_METADATA[path.suffix.lower()])


def place_legend(place: Axes | Figure, **settings: Any) -> None:
    """A legend without a frame, where a line or bar has a label.

    Args:
        place: Axes, for a legend among them; a figure, for one outside of its axes.
        **settings: Of ``Axes.legend`` or ``Figure.legend``, such as ``loc``.
    """
    parts: list[Any] = place.axes if isinstance(place.axes, list) else [place]
    if any(axes.get_legend_handles_labels()[1] for axes in parts):
        place.legend(**{"frameon": False, "fontsize": _SETTINGS["font.size"] - 1, "handlelength": 3.5, **settings})


def literal_text(figure: Figure) -> None:
    """Has all text drawn as it stands: a token may hold dollar signs, which would else begin a formula.

    Args:
        figure: Whose text; what is added afterwards is not changed.
    """
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)  # type: ignore[attr-defined]


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as err:
        raise ImportError(
            'matplotlib must be installed for pictures, got none. Run pip install "st-keytokens[analysis]".'
        ) from err
    return matplotlib


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
