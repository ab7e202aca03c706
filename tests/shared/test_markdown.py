from __future__ import annotations

import pytest

from st_keytokens.analysis.estimates import Estimate
from st_keytokens.shared.markdown import markdown_table, preformatted_table, printable, single_line, table_cells

ODD = ["a|b", r"\|", "*b* _c_ `d`", "[x](y)", "<b> ~~s~~ $m$", "two\nlines", "银河", ""]


class TestValues:
    def test_any_text_is_read_back(self):
        head, is_number, rows = table_cells(markdown_table(["|", "n"], [[text, 1] for text in ODD]))
        assert (head, is_number) == (["|", "n"], [False, True])
        assert rows == [[single_line(text), "1"] for text in ODD]

    def test_formats_and_sides(self):
        rows = [["a", 0.12345, 7, None, Estimate(0.5, 0.25, 0.75)], ["b", None, 8, None, None]]
        lines = markdown_table(["text", "float", "int", "none", "estimate"], rows).splitlines()
        assert lines[1] == "| --- | ---: | ---: | --- | ---: |"
        assert lines[2] == "| a | 0.123 | 7 |  | 0.500 [0.250, 0.750] |"
        assert lines[3] == "| b |  | 8 |  |  |"

    def test_no_rows(self):
        assert markdown_table(["a"], []) == "| a |\n| --- |\n"


class TestPreformatted:
    @pytest.mark.parametrize(
        ("left", "marks"), [(1, "--- | ---:"), (2, "--- | ---"), (0, "---: | ---:"), (None, "--- | ---")]
    )
    def test_sides(self, left, marks):
        assert preformatted_table(["*a*", "b"], [["[x](y)", "`c`"]], left=left) == (
            f"| *a* | b |\n| {marks} |\n| [x](y) | `c` |\n"
        )


class TestTexts:
    def test_what_has_no_shape(self):
        assert printable("a\x00\ud800\n\tb") == "a\ufffd\ufffd\n\tb"
        assert single_line(" a\x1b\n\t b ") == "a\ufffd b"

    def test_cut(self):
        assert single_line("four words are here", 10) == "four word…"
        assert single_line("four words", 10) == "four words"
