from __future__ import annotations

import itertools

import pytest

pytest.importorskip("matplotlib", reason='pictures need matplotlib (pip install "st-keytokens[analysis]")')

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis import compare_with_judgements
from st_keytokens.analysis.plots import plot_judged_pairs, plot_relatedness, save_figure


@pytest.fixture(scope="module")
def judged(llama_embedder, sentences):
    encoder = KeyTokenEncoder(llama_embedder)
    return compare_with_judgements(encoder, list(itertools.pairwise(sentences[:10])), range(9), samples=20)


def saved(figure, folder) -> str:
    save_figure(figure, folder / "figure.png")
    save_figure(figure, folder / "figure.svg")
    return (folder / "figure.svg").read_text(encoding="utf-8")


class TestRelatedness:
    def test_points_are_the_correlations(self, judged, tmp_path):
        figure = plot_relatedness({"a": judged, "b": judged})
        drawn = {c.get_label(): c.lines[0].get_xdata().tolist() for c in figure.axes[0].containers}
        for name, correlation in judged.correlations.items():
            if correlation.spearman is not None:
                assert drawn[name] == pytest.approx([correlation.spearman] * 2)
        saved(figure, tmp_path)

    def test_pairs(self, judged, tmp_path):
        figure = plot_judged_pairs(judged)
        points = figure.axes[0].collections[0].get_offsets()
        assert points[:, 1].tolist() == pytest.approx(judged.values["decoded cosine"].tolist())
        saved(figure, tmp_path)

    def test_refused(self, judged):
        with pytest.raises(ValueError, match=r"results must hold at least one, got none"):
            plot_relatedness({})
        with pytest.raises(ValueError, match=r"measure must be one of 'dense cosine', .* got 'other'"):
            plot_judged_pairs(judged, "other")
