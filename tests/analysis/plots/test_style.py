from __future__ import annotations

import subprocess
import sys

import pytest

from st_keytokens.analysis import plots
from st_keytokens.analysis.plots.style import COLORS, HATCHES, new_figure, place_legend, save_figure, series_style

pytest.importorskip("matplotlib", reason="pictures need the extra analysis")


class TestFigure:
    def test_size_and_no_pyplot(self):
        code = (
            "import sys; from st_keytokens.analysis.plots.style import new_figure; figure, axes = new_figure(5, 3); "
            "assert figure.get_size_inches().tolist() == [5, 3] and axes.figure is figure; "
            "assert 'matplotlib.pyplot' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_settings_of_the_caller_stay(self):
        import matplotlib

        before = dict(matplotlib.rcParams)
        new_figure()
        assert dict(matplotlib.rcParams) == before

    def test_series_can_be_told_apart(self):
        styles = [series_style(position) for position in range(8)]
        for name in ("color", "marker", "linestyle"):
            assert len({style[name] for style in styles}) == 8
        assert len(COLORS) == len(HATCHES) == 8
        assert series_style(8) == styles[0]

    def test_legend_only_where_something_is_labelled(self):
        _, axes = new_figure()
        axes.plot([0], [0])
        place_legend(axes)
        assert axes.get_legend() is None
        axes.plot([0], [0], label="a line")
        place_legend(axes, loc="lower left")
        assert not axes.get_legend().get_frame_on()

    def test_legend_of_a_figure(self):
        figure, axes = new_figure()
        place_legend(figure, loc="outside lower center")
        assert not figure.legends
        axes.plot([0], [0], label="a line")
        place_legend(figure, loc="outside lower center")
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a line"]

    def test_validation(self):
        with pytest.raises(ValueError, match="width must be finite and >= 1"):
            new_figure(0)


class TestNames:
    def test_the_package_names_every_picture(self):
        modules = (plots.alignment, plots.key_tokens, plots.relatedness, plots.spectrum)
        assert {name for module in modules for name in module.__all__} | {"save_figure"} == set(plots.__all__)


class TestSave:
    @pytest.mark.parametrize("ending", [".svg", ".png"])
    def test_same_figure_same_file(self, tmp_path, ending):
        for name in ("a", "b"):
            figure, axes = new_figure(3, 2)
            axes.plot([0, 1], [0, 1], label="$1 and 2$", **series_style(1))
            axes.legend()
            save_figure(figure, tmp_path / (name + ending))
        assert (tmp_path / ("a" + ending)).read_bytes() == (tmp_path / ("b" + ending)).read_bytes()

    def test_text_stays_text(self, tmp_path):
        figure, axes = new_figure(3, 2)
        axes.set_xlabel("$1 of 2$")
        save_figure(figure, str(tmp_path / "a.svg"))
        assert "$1 of 2$" in (tmp_path / "a.svg").read_text(encoding="utf-8")

    def test_dollar_signs_are_no_formula(self, tmp_path):
        figure, axes = new_figure(3, 2)
        axes.barh([0, 1], [1, 2])
        axes.set_yticks([0, 1], ["$$", r"$\no$"])
        save_figure(figure, tmp_path / "a.svg")
        assert r"$\no$" in (tmp_path / "a.svg").read_text(encoding="utf-8")

    def test_other_endings(self, tmp_path):
        with pytest.raises(ValueError, match=r"ending of path must be one of '.svg', '.png', got '.gif'"):
            save_figure(new_figure()[0], tmp_path / "a.gif")
