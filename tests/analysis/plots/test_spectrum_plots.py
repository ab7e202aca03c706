from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason='pictures need matplotlib (pip install "st-keytokens[analysis]")')

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis.contribution import measure_contribution
from st_keytokens.analysis.plots import (
    plot_contribution,
    plot_shift_sweep,
    plot_variation,
    save_figure,
)
from st_keytokens.analysis.shift import sweep_shift
from st_keytokens.analysis.spectrum import measure_variation


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return KeyTokenEncoder(llama_embedder)


@pytest.fixture(scope="module")
def variation(encoder, sentences):
    vectors = encoder.model.encode(sentences)
    noise = np.random.default_rng(0).normal(size=vectors.shape)
    return measure_variation(0.7 * vectors + 0.1 * noise, vectors)


@pytest.fixture(scope="module")
def contribution(encoder, variation, sentences):
    return measure_contribution(encoder, sentences, component=variation.spectrum, examples=2)


@pytest.fixture(scope="module")
def sweep(encoder, variation, sentences):
    return sweep_shift(encoder, sentences, component=variation, max_document_share=0.5)


def texts_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


class TestVariation:
    def test_bars(self, variation):
        figure = plot_variation(variation, components=12)
        bars = [patch.get_height() for patch in figure.axes[0].patches]
        np.testing.assert_allclose(bars, variation.variations[:12])
        assert figure.axes[0].patches[0].get_hatch()
        assert figure.axes[0].get_xlabel() == "component of the backbone's embeddings (12 of 32)"

    def test_intervals(self, variation):
        segments = plot_variation(variation, components=4).axes[0].collections[0].get_segments()
        np.testing.assert_allclose(np.array(segments)[:, :, 1], variation.intervals()[:4])

    def test_one_text_has_no_intervals(self):
        figure = plot_variation(measure_variation(np.array([[1.0, 2.0]]), np.array([[3.0, 1.0]])))
        assert not figure.axes[0].collections

    def test_components(self, variation):
        with pytest.raises(ValueError, match="components must be >= 1"):
            plot_variation(variation, components=0)


class TestContribution:
    @pytest.mark.parametrize("text", [0, 1])
    def test_bars_are_the_parts(self, contribution, text):
        axes = plot_contribution(contribution, text=text, max_tokens=3).axes[0]
        found = contribution.texts[text]
        groups = [found.tokens, found.first_tokens, found.rest_tokens]
        tokens = [token for group in groups for token in group[:3]]
        widths = [patch.get_width() for patch in axes.patches]
        np.testing.assert_allclose(widths, [t.first for t in tokens] + [t.rest for t in tokens])
        assert len(axes.get_yticklabels()) == 9
        np.testing.assert_allclose(axes.lines[0].get_xdata(), [t.logit for t in tokens])

    def test_tokens_of_markup(self, tmp_path):
        from st_keytokens import KeyTokenHead, LMHead, Vocabulary

        lm_head = LMHead(torch.nn.Embedding.from_pretrained(torch.eye(2).repeat(2, 1)[:3]))
        head = KeyTokenHead(lm_head, Vocabulary(["$x$", "<b>", r"\alpha"], kind="plain"))
        found = measure_contribution(head, ["$"], embeddings=np.ones((1, 2)), component=torch.tensor([1.0, 0.0]))
        save_figure(plot_contribution(found, text=0), tmp_path / "tokens.svg")
        content = (tmp_path / "tokens.svg").read_text(encoding="utf-8")
        assert "$x$" in content
        assert "&lt;b&gt;" in content

    def test_the_model_and_the_text_are_named(self, contribution, sentences):
        figure = plot_contribution(contribution, text=1, title="backbone")
        assert figure.get_suptitle() == f"backbone\n{sentences[1]}"
        assert figure.axes[0].get_xlabel() == "contribution to the logit"

    def test_texts(self, contribution):
        with pytest.raises(ValueError, match="one of the 2 texts kept in detail, counted from 0, got 2"):
            plot_contribution(contribution, text=2)


class TestShiftSweep:
    def test_lines(self, sweep):
        axes = plot_shift_sweep(sweep, title="shift").axes[0]
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        rates = [alignment.local_alignment_rate.value for alignment in sweep.alignments]
        np.testing.assert_allclose(lines["local alignment rate"], rates)
        np.testing.assert_allclose(lines["information / log₂ N"], sweep.information / np.log2(50))
        assert {"Hit@1", "Hit@10", "global alignment rate"} <= lines.keys()

    def test_marks(self, sweep):
        names = " ".join(texts_of(plot_shift_sweep(sweep)))
        for name in (f"v₁ ({sweep.variation:.3g})", "no shift", "component gone", "suggested"):
            assert name in names

    def test_axes_begin_at_zero_and_the_marks_stand_above_them(self, sweep):
        figure = plot_shift_sweep(sweep, title="backbone, 50 texts")
        (axes,) = figure.axes
        assert axes.get_ylim() == (0, 1.02)
        assert figure.get_suptitle() == "backbone, 50 texts"
        assert axes.get_xlabel() == "shift λ along the first component, in embedding units"
        figure.draw_without_rendering()
        assert all(text.get_window_extent().y0 >= axes.bbox.y1 for text in axes.texts)

    def test_one_text(self, encoder, variation, sentences):
        figure = plot_shift_sweep(sweep_shift(encoder, sentences[:1], component=variation))
        assert "information / log₂ N" not in {line.get_label() for line in figure.axes[0].lines}


class TestSaving:
    @pytest.mark.parametrize("ending", ["svg", "png"])
    def test_files(self, variation, contribution, sweep, tmp_path, ending):
        figures = [
            plot_variation(variation),
            plot_contribution(contribution),
            plot_shift_sweep(sweep),
        ]
        for number, figure in enumerate(figures):
            path = tmp_path / f"{number}.{ending}"
            save_figure(figure, path)
            assert path.stat().st_size > 4000
