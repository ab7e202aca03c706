"""Markdown tables of what texts and tokens say, whatever characters they hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_MARKUP = str.maketrans({character: f"\\{character}" for character in r"\`*_[]<>|~$"})
_ESCAPED = re.compile(r"\\([\\`*_\[\]<>|~$])")
_BAR = re.compile(r"(?<!\\)\|")  # a space stands before each bar that is not in a cell


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    r"""A Markdown table; numbers stand to the right, floats with three decimals, None as an empty cell.

    Args:
        head: Names of the columns.
        rows: One value for each column.

    Returns:
        Lines that end in a newline.

    >>> print(markdown_table(["token", "share"], [["a|b", 0.5], ["rest", None]]), end="")
    | token | share |
    | --- | --: |
    | a\|b | 0.500 |
    | rest |  |
    """
    is_number = [any(isinstance(row[column], int | float) for row in rows) for column in range(len(head))]
    lines = [
        [cell(name) for name in head],
        ["--:" if number else "---" for number in is_number],
        *([cell(v) for v in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table_cells(markdown: str) -> tuple[list[str], list[bool], list[list[str]]]:
    r"""What stands in a Markdown table.

    Args:
        markdown: As :func:`markdown_table` writes it.

    Returns:
        Names of the columns, whether each holds numbers, and the rows; without Markdown's backslashes.

    >>> table_cells(markdown_table(["token", "share"], [["a|b", 0.5]]))
    (['token', 'share'], [False, True], [['a|b', '0.500']])
    """
    lines = [line.strip() for line in markdown.splitlines() if line.startswith("|")]
    head, marks, *rows = ([_ESCAPED.sub(r"\1", part.strip()) for part in _BAR.split(line)[1:-1]] for line in lines)
    return head, [mark.endswith(":") for mark in marks], rows


def cell(value: object) -> str:
    """A value as it stands in a table: on one line, its characters without a meaning in Markdown."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return plain(str(value)).translate(_MARKUP)


def plain(text: str) -> str:
    r"""A text on one line, with U+FFFD for what has no shape of its own: control characters and lone surrogates.

    >>> plain("two\n lines\x1b[2J")
    'two lines\ufffd[2J'
    """
    return "".join(
        "\ufffd" if unicodedata.category(character) in ("Cc", "Cs") else character
        for character in " ".join(text.split())
    )
