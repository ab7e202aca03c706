"""How all pictures look, and how they are saved: for print, for readers who see few colours, the same each time."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_keytokens.checks import check_choice, checked_float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "HATCHES",
    "LINES",
    "MARKERS",
    "literal_text",
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
