"""Pictures of the analyses, drawn by matplotlib (``pip install "st-keytokens[analysis]"``)."""

from __future__ import annotations

from st_keytokens.analysis.plots.alignment import plot_alignment, plot_alignment_rates
from st_keytokens.analysis.plots.key_tokens import (
    plot_instructions,
    plot_pair,
    plot_pair_comparison,
    plot_token_bars,
)
from st_keytokens.analysis.plots.relatedness import plot_judged_pairs, plot_relatedness
from st_keytokens.analysis.plots.spectrum import (
    plot_contribution,
    plot_shift_sweep,
    plot_variation,
)
from st_keytokens.analysis.plots.style import save_figure

__all__ = [
    "plot_alignment",
    "plot_alignment_rates",
    "plot_contribution",
    "plot_instructions",
    "plot_judged_pairs",
    "plot_pair",
    "plot_pair_comparison",
    "plot_relatedness",
    "plot_shift_sweep",
    "plot_token_bars",
    "plot_variation",
    "save_figure",
]
