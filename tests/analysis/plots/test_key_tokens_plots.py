from __future__ import annotations

import pytest

pytest.importorskip("matplotlib", reason='pictures need matplotlib (pip install "st-keytokens[analysis]")')

import numpy as np

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis import compare_instructions, compare_pair, explain_pair
from st_keytokens.analysis.pair import PairExplanation, TokenShare
from st_keytokens.analysis.plots import (
    plot_instructions,
    plot_pair,
    plot_pair_comparison,
    plot_token_bars,
    save_figure,
)

A = "Stars form when clouds of gas and dust collapse under their own gravity."
B = "The telescope measured the light of distant galaxies and of nearby stars."
ODD = ["$x$ & <b>", "银河", "مرحبا", "a\x00b", "{", "\\frac", "x" * 80]


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return KeyTokenEncoder(llama_embedder)


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def saved(figure, folder) -> str:
    save_figure(figure, folder / "figure.png")
    save_figure(figure, folder / "figure.svg")
    return (folder / "figure.svg").read_text(encoding="utf-8")


class TestTokenBars:
    def test_bars_are_the_weights(self, tmp_path):
        figure = plot_token_bars([("a", 3.0), ("b", 1.5)], own={"b"}, title="t")
        assert labels(figure) == ["a", "b"]
        widths = {round(bar.get_y() + 0.35): bar.get_width() for bar in figure.axes[0].patches}
        assert widths == {0: 3.0, 1: 1.5}
        colors = {bar.get_facecolor() for bar in figure.axes[0].patches}
        hatches = {bar.get_hatch() for bar in figure.axes[0].patches}
        assert len(colors) == len(hatches) == 2
        assert "<svg" in saved(figure, tmp_path)

    @pytest.mark.filterwarnings("ignore:Glyph .* missing from")
    def test_any_token(self, tmp_path):
        svg = saved(plot_token_bars([(token, 1.0) for token in ODD], title=ODD[0]), tmp_path)
        assert "$x$ &amp; &lt;b&gt;" in svg and "银河" in svg

    def test_none(self):
        with pytest.raises(ValueError, match=r"tokens must hold at least one, got none"):
            plot_token_bars([])


class TestPair:
    def test_the_bars_add_up(self, encoder, tmp_path):
        found = explain_pair(encoder, A, B)
        figure = plot_pair(found, title="a model")
        assert figure.get_suptitle().startswith("a model\n")
        bars = figure.axes[0].patches
        values = [share.contribution for share in found.tokens] + [found.remainder, found.value]
        ends = np.cumsum(values[:-1])
        assert [bar.get_width() for bar in bars] == pytest.approx(values)
        assert [bar.get_x() for bar in bars] == pytest.approx([0, *ends[:-1], 0], abs=1e-9)
        assert ends[-1] == pytest.approx(found.value)
        assert labels(figure)[-2:] == ["(other directions)", "cosine"]
        saved(figure, tmp_path)

    def test_few_tokens_are_drawn_one_by_one(self, encoder):
        found = explain_pair(encoder, A, B)
        figure = plot_pair(found, max_tokens=2)
        assert labels(figure)[2] == f"({len(found.tokens) - 2} more tokens)"
        rest = sum(share.contribution for share in found.tokens[2:])
        assert figure.axes[0].patches[2].get_width() == pytest.approx(rest)

    @pytest.mark.filterwarnings("ignore:Glyph .* missing from")
    def test_negative_parts_and_odd_tokens(self, tmp_path):
        shares = tuple(TokenShare(i, token, 1.0, 0.0, 0.1, -0.1, -0.01 * i) for i, token in enumerate(ODD))
        explained = sum(share.contribution for share in shares)
        found = PairExplanation("$", "\x00", "dot", explained - 0.3, -0.1, "first component", shares, -0.2)
        assert "(first component)" in labels(plot_pair(found))
        saved(plot_pair(found), tmp_path)

    def test_several_embedders(self, encoder, tmp_path):
        found = compare_pair({"one": encoder, "$two$": encoder}, A, B, top_k=4)
        figure = plot_pair_comparison(found)
        assert labels(figure) == ["one", "$two$"]
        for place, explanation in enumerate(found.explanations.values()):
            bars = [bar for bar in figure.axes[0].patches if round(bar.get_y() + 0.34) == place]
            assert sum(bar.get_width() for bar in bars) == pytest.approx(explanation.value)
        saved(figure, tmp_path)


class TestInstructions:
    def test_marks(self, encoder, tmp_path):
        found = compare_instructions(encoder, [A, B], {"ocean $": "The climate of the ocean: "}, top_k=6)
        figure = plot_instructions(found, 1, title="a model")
        assert figure.get_suptitle().startswith(f"a model\n{found.texts[1][:30]}")
        row = found.by_text["ocean $"][1]
        counts = {marks.get_label(): len(marks.get_offsets()) for marks in figure.axes[0].collections}
        assert counts["stayed"] == len(found.by_text["none"][1].tokens) + len(row.tokens) - len(row.entered)
        assert (counts.get("entered", 0), counts.get("left", 0)) == (len(row.entered), len(row.left))
        assert set(labels(figure)) == {t for rows in found.by_text.values() for t, _ in rows[1].tokens}
        saved(figure, tmp_path)

    def test_a_text_without_tokens(self, encoder, tmp_path):
        saved(plot_instructions(compare_instructions(encoder, " ", ["a"])), tmp_path)

    def test_no_such_text(self, encoder):
        with pytest.raises(ValueError, match=r"text must be between 0 and 0, got 1"):
            plot_instructions(compare_instructions(encoder, A, ["a"]), 1)
