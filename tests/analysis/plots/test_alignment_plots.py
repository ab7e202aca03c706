from __future__ import annotations

import numpy as np
import pytest
import torch

from st_keytokens import LMHead
from st_keytokens.analysis import AlignmentComparison, alignment_of_embeddings
from st_keytokens.analysis.plots import plot_alignment, plot_alignment_rates

pytest.importorskip("matplotlib", reason="pictures need the extra analysis")


def three_token_head():
    return LMHead(torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])))


@pytest.fixture(scope="module")
def comparison():
    generator = np.random.default_rng(0)
    rows = {
        name: alignment_of_embeddings(
            generator.normal(size=(9, 2)).astype(np.float32), three_token_head(), [[0], [1, 2], [2]] * 3, ks=[1, 2, 3]
        )
        for name in ("raw", "corrected")
    }
    return AlignmentComparison(rows, True, 1.0, {})


class TestLines:
    def test_values_and_intervals_are_drawn(self, comparison):
        figure = plot_alignment(comparison, title="a model")
        (axes,) = figure.axes
        assert figure.get_suptitle() == "a model"
        assert axes.get_ylim()[0] == 0
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["raw", "corrected"]
        for line, band, row in zip(axes.lines, axes.collections, comparison.rows.values(), strict=True):
            estimates = row.shares
            assert line.get_xdata().tolist() == [1, 2, 3]
            assert line.get_ydata().tolist() == [found.value for found in estimates.values()]
            heights = band.get_paths()[0].vertices[:, 1]
            assert heights.min() == min(found.low for found in estimates.values())
            assert heights.max() == max(found.high for found in estimates.values())

    def test_a_single_alignment_of_a_single_text(self):
        found = alignment_of_embeddings(np.ones((1, 2), dtype=np.float32), three_token_head(), [[0]])
        (axes,) = plot_alignment(found).axes
        assert len(axes.lines) == 1
        assert axes.get_legend() is None


class TestRates:
    def test_bars(self, comparison):
        figure = plot_alignment_rates(comparison, title="a model")
        (axes,) = figure.axes
        assert figure.get_suptitle() == "a model"
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlabel() == "alignment rate, 0 to 1"
        widths = [bar.get_width() for bar in axes.patches]
        rows = comparison.rows.values()
        assert widths == [row.local_alignment_rate.value for row in rows] + [
            row.global_alignment_rate.value for row in rows
        ]
        assert len({bar.get_hatch() for bar in axes.patches}) == 2
