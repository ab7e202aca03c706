"""Picture of a spectrum: singular values by component."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_keytokens.analysis.plots.style import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.spectrum import Spectrum

__all__ = ["plot_singular_values"]


def plot_singular_values(spectrum: Spectrum, *, title: str | None = None) -> Figure:
    """Draws singular values over the root of the number of texts: what each component is worth in a single embedding.

    Args:
        spectrum: Of :func:`~st_keytokens.analysis.spectrum.measure_spectrum`.
        title: Above the picture.

    Returns:
        The figure; its vertical axis is logarithmic, and components beyond the rank are left out.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = new_figure(6.4, 3.4)
    values = spectrum.singular_values[: spectrum.rank] / spectrum.count**0.5
    axes.semilogy(np.arange(1, len(values) + 1), values, color=COLORS[0], linewidth=1.4)
    axes.semilogy(1, values[0], color=COLORS[1], marker="o", markersize=6, linestyle="none")
    axes.annotate(
        f"first component: {values[0]:.3g},\n{spectrum.shares[0]:.1%} of the squared length",
        (1, values[0]),
        (10, 0),
        textcoords="offset points",
        va="center",
        color=COLORS[1],
    )
    axes.margins(x=0.02, y=0.12)
    axes.yaxis.set_major_formatter("{x:g}")  # the default writes powers as formulas, which the style leaves unread
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("component")
    axes.set_ylabel("root mean square projection")
    if title:
        axes.set_title(title, loc="left", parse_math=False)
    return figure
