"""What the command line writes, and where: results to stdout, messages and progress to stderr."""

from __future__ import annotations

import errno
import json
import sys
import unicodedata
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from st_keytokens.cli.streams import abandon

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")  # torch's CPU allocators raise RuntimeError
_WIDTH = 160  # characters of the error that are shown; CUDA's goes on with advice to programmers


def is_out_of_memory(err: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of an accelerator, has run out.

    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")), is_out_of_memory(KeyError())
    (True, False)
    """
    if isinstance(err, RuntimeError):
        return any(sign in str(err).lower() for sign in _SIGNS)
    return isinstance(err, MemoryError) or (isinstance(err, OSError) and err.errno == errno.ENOMEM)


def memory_advice(err: BaseException, arguments: Namespace) -> str:
    """The error, one of those of :func:`is_out_of_memory`, and the options that help."""
    found = one_line(str(err) or type(err).__name__, _WIDTH)
    size = getattr(arguments, "batch_size", None)
    if size is None:
        return f"memory must hold the model and a text, got: {found} Choose another --device."
    return (
        f"--batch-size must be small enough for the memory there is, got {size}: {found} Make it smaller, or choose "
        "another --device."
    )


class UserError(Exception):
    """Something that the user can put right; its message is shown as one line."""


class ReaderGoneError(Exception):
    """Nobody reads the results any more, and results are all that the command is for."""


class Console:
    """Writes results for people or, with ``is_json``, one JSON object a line for programs.

    Args:
        is_json: Whether stdout is JSON lines.
        is_quiet: Whether messages and progress bars are left out.
        is_streaming: Whether results are all that the command is for: it ends when nobody reads them any more. Others
            do their work to the end.
    """

    def __init__(self, is_json: bool = False, is_quiet: bool = False, is_streaming: bool = False) -> None:
        self.is_json = is_json
        self.is_quiet = is_quiet
        self.is_streaming = is_streaming

    @property
    def has_progress(self) -> bool:
        """Whether progress bars are shown: only on a terminal."""
        return not self.is_quiet and sys.stderr.isatty()

    def result(self, value: dict[str, Any], lines: Sequence[str]) -> None:
        """One result: ``value`` for programs, ``lines`` for people."""
        shown = [json.dumps(value, ensure_ascii=False)] if self.is_json else lines
        try:
            sys.stdout.write("".join(line + "\n" for line in shown))
            sys.stdout.flush()
        except BrokenPipeError as err:
            abandon(sys.stdout)
            if self.is_streaming:
                raise ReaderGoneError from err
        except OSError as err:
            abandon(sys.stdout)
            raise UserError(f"results must go to a standard output that takes them, got: {err}.") from err

    def message(self, text: str) -> None:
        """A remark that is no result."""
        if not self.is_quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "") -> list[str]:
    """Lines of a table: numbers to the right, with four decimals where they are not whole; the last column as it is.

    >>> table(["weight", "token"], [[1.5, "genome"], [12, "cell"]])
    ['weight  token', '1.5000  genome', '    12  cell']
    """
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    is_number = [any(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    lines = []
    for row in [list(header), *cells]:
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, is_number, strict=True)
        ]
        lines.append((indent + "  ".join([*padded[:-1], row[-1]])).rstrip())
    return lines


def one_line(text: str, width: int | None = None) -> str:
    r"""A text on one line, without what moves a terminal's cursor, and cut to a width.

    >>> one_line("two\n lines\x1b[2J", 9)
    'two line…'
    """
    text = " ".join(text.split())
    text = "".join("\ufffd" if unicodedata.category(character)[0] == "C" else character for character in text)
    return text if width is None or len(text) <= width else text[: width - 1] + "…"
