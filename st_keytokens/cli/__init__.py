"""The command line: ``st-keytokens``, or ``python -m st_keytokens.cli``.

Each command stands in the module named after it, its options with what it does; ``index`` holds ``add`` too, and
``search`` holds ``explain``. What several commands share: ``options``, ``inputs``, ``encoders``, ``console``. Help and
errors in the arguments do not wait for torch: a command imports what is heavy when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

from st_keytokens import __version__
from st_keytokens.cli.analyze import add_analyze_command
from st_keytokens.cli.calibrate import add_calibrate_command
from st_keytokens.cli.console import Console, UserError, is_out_of_memory, memory_advice, one_line
from st_keytokens.cli.evaluate import add_evaluate_command
from st_keytokens.cli.index import add_index_commands
from st_keytokens.cli.info import add_info_command
from st_keytokens.cli.options import check_arguments
from st_keytokens.cli.search import add_search_commands
from st_keytokens.cli.sparsify import add_sparsify_command
from st_keytokens.cli.tokens import add_tokens_command

__all__ = ["main"]

_COMMANDS = (  # in the order of the help
    add_tokens_command,
    add_calibrate_command,
    add_index_commands,
    add_search_commands,
    add_sparsify_command,
    add_evaluate_command,
    add_analyze_command,
    add_info_command,
)
_OPTIONS = {  # how the command line calls what errors of the library advise
    "text_field": "--text-field",
    "id_field": "--id-field",
    "file_format": "--file-format",
    "LMHead.from_checkpoint": "--backbone",
    "id_column": "--id-column",
    "vector_column": "--vector-column",
    "text_column": "--text-column",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words after the program's name; None: those of this process.

    Returns:
        0; 2 for an error that the user can put right, told in one line on stderr; 130 after Ctrl-C. A closed pipe
        behind stdout ends the command quietly with 0.
    """
    parsed = Namespace(traceback=False)
    try:
        parsed = _parse(arguments)
        check_arguments(parsed)
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8" if parsed.json else None, errors="backslashreplace")
        _run(parsed)
        sys.stdout.flush()
        return 0
    except SystemExit as stop:  # --help, --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        sys.stderr.write("st-keytokens: interrupted\n")
        return 130
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # what is left in the buffer goes nowhere, without a word at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, ValueError, OSError, ImportError, MemoryError, RuntimeError) as err:
        if is_out_of_memory(err):
            message = memory_advice(err, parsed)
        elif isinstance(err, RuntimeError):  # a fault of the program
            raise
        else:
            message = str(err)
        if parsed.traceback:
            traceback.print_exc()
        for name, option in _OPTIONS.items():
            message = message.replace(name, option)
        sys.stderr.write(f"st-keytokens: error: {one_line(message)}\n")
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parse(words: Sequence[str] | None) -> Namespace:
    """The command, as ``command``, its options, and ``run`` and ``check`` of its module."""
    parser = _Parser(
        prog="st-keytokens", description="Key tokens of LLM-based embedders: read them, index them, search by them."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(commands)
    parsed, extra = parser.parse_known_args(words)
    texts = getattr(parsed, "texts", None)
    if isinstance(texts, list) and not any(word.startswith("-") for word in extra):
        texts += extra  # argparse stops at the first option between texts
    elif extra:
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    return parsed


def _run(parsed: Namespace) -> None:
    from st_keytokens.cli.encoders import quiet_libraries

    console = Console(parsed.json, parsed.quiet)
    with quiet_libraries(console.has_progress):
        parsed.run(parsed, console)
