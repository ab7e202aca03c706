"""The style of all pictures, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_keytokens.shared.checks import check_choice, checked_float
from st_keytokens.shared.markdown import single_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "HATCHES",
    "MARKERS",
    "add_title",
    "bar_style",
    "label",
    "name_rows",
    "new_figure",
    "place_legend",
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


def new_figure(width: float = 6.4, height: float = 4.0, title: str | None = None) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes, in the style of all pictures; pyplot's state is left alone.

    Args:
        width: In inches.
        height: In inches.
        title: Above the axes, to the left.

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
        axes = figure.add_subplot()
    if title:
        axes.set_title(title, loc="left", parse_math=False)
    return figure, axes


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


def bar_style(position: int) -> dict[str, Any]:
    """Arguments of ``Axes.barh`` that tell bars from others by colour and hatching.

    Args:
        position: Which bars, from 0; there are eight.

    Returns:
        Keyword arguments.

    >>> bar_style(1)["hatch"]
    '//'
    """
    return {"color": COLORS[position], "hatch": HATCHES[position], "edgecolor": "white"}


def name_rows(
    axes: Axes, places: Iterable[float], names: Iterable[str], *, has_zero: bool = True, has_grid: bool = False
) -> None:
    """Names the rows of a picture, the first one on top.

    Args:
        axes: The picture's.
        places: Of the rows.
        names: Of the rows.
        has_zero: Whether a line marks zero.
        has_grid: Whether lines go down from the values' axis.
    """
    axes.set_yticks(list(places), list(names), parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    if has_grid:
        axes.grid(visible=True, axis="x")
    if has_zero:
        axes.axvline(0, color="#666666", linewidth=0.8)


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
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)  # type: ignore[attr-defined]  # a token's dollar signs would else begin a formula
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


def add_title(figure: Figure, *texts: str) -> None:
    """Puts texts above a picture, one a line, each cut to the picture's width.

    Args:
        figure: The picture.
        *texts: Any texts.
    """
    width = int(13 * figure.get_figwidth())  # characters, of which an inch holds about thirteen
    title = "\n".join(label(text, width) for text in texts)
    figure.suptitle(title, x=0.01, ha="left", size=10, parse_math=False)


def label(text: str, width: int = 24) -> str:
    """A text on one line, cut to a width in characters.

    >>> label("a very long token that goes on and on")
    'a very long token that …'
    """
    return single_line(text, width)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as err:
        raise ImportError(
            'matplotlib must be installed for pictures, got none. Run pip install "st-keytokens[analysis]".'
        ) from err
    return matplotlib
