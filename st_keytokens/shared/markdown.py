"""Markdown tables: written from values or from cells that are Markdown already, and read back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["markdown_table", "preformatted_table", "printable", "single_line", "table_cells"]

_MARKUP = str.maketrans({character: f"\\{character}" for character in r"\`*_[]<>|~$"})
_ESCAPED = re.compile(r"\\([\\`*_\[\]<>|~$])")
_BAR = re.compile(r"(?<!\\)\|")  # a space stands before each bar that is not in a cell


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    r"""A Markdown table of values, whatever characters their texts hold.

    Args:
        head: Names of the columns.
        rows: One value for each column: strings have their markup escaped, floats get three decimals, None is an
            empty cell, and anything else stands as its ``str``. A column that holds more than strings stands to the
            right.

    Returns:
        Lines that end in a newline.

    >>> print(markdown_table(["token", "share"], [["a|b", 0.5], ["rest", None]]), end="")
    | token | share |
    | --- | ---: |
    | a\|b | 0.500 |
    | rest |  |
    """
    columns = range(len(head))
    is_text = [all(isinstance(row[column], str | None) for row in rows) for column in columns]
    return _joined([_cell(name) for name in head], is_text, [[_cell(value) for value in row] for row in rows])


def preformatted_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int | None = 1) -> str:
    """A Markdown table of cells that are Markdown already.

    Args:
        head: Names of the columns.
        rows: One cell for each column, without line ends and bars.
        left: How many columns, the first ones, stand to the left; the others stand to the right. None: all do.

    Returns:
        Lines that end in a newline.

    >>> print(preformatted_table(["method", "nDCG@10"], [["*ours*", "**0.5**"]]), end="")
    | method | nDCG@10 |
    | --- | ---: |
    | *ours* | **0.5** |
    """
    return _joined(head, [left is None or column < left for column in range(len(head))], rows)


def table_cells(markdown: str) -> tuple[list[str], list[bool], list[list[str]]]:
    r"""What stands in a Markdown table.

    Args:
        markdown: As :func:`markdown_table` writes it.

    Returns:
        Names of the columns, whether each stands to the right, and the rows; without Markdown's backslashes.

    >>> table_cells(markdown_table(["token", "share"], [["a|b", 0.5]]))
    (['token', 'share'], [False, True], [['a|b', '0.500']])
    """
    lines = [line.strip() for line in markdown.splitlines() if line.startswith("|")]
    head, marks, *rows = ([_ESCAPED.sub(r"\1", part.strip()) for part in _BAR.split(line)[1:-1]] for line in lines)
    return head, [mark.endswith(":") for mark in marks], rows


def single_line(text: str, width: int | None = None) -> str:
    r"""A text on one line, printable, and cut to a width.

    Args:
        text: Any text.
        width: Characters, the last of which is an ellipsis where the text is cut. None: all.

    Returns:
        The line.

    >>> single_line("two\n lines\x1b[2J"), single_line("two\n lines", 6)
    ('two lines\ufffd[2J', 'two l…')
    """
    text = printable(" ".join(text.split()))
    return text if width is None or len(text) <= width else f"{text[: width - 1]}…"


def printable(text: str) -> str:
    r"""A text with U+FFFD for what has no shape: control characters but line ends and tabs, and lone surrogates.

    >>> printable("a\n\x00")
    'a\n\ufffd'
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return single_line(value).translate(_MARKUP)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _joined(head: Sequence[str], is_left: Sequence[bool], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---" if left else "---:" for left in is_left], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
