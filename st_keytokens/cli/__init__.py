"""The command line: ``st-keytokens``, or ``python -m st_keytokens.cli``."""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

from st_keytokens.cli.console import Console, UserError, is_out_of_memory, memory_advice, one_line
from st_keytokens.cli.parser import check_arguments, parse_arguments

__all__ = ["main"]

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
        parsed = parse_arguments(arguments)
        check_arguments(parsed)
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8" if parsed.json else None, errors="backslashreplace")
        _run(parsed.command, parsed)
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


def _run(command: str, parsed: Namespace) -> None:
    from st_keytokens.cli import analyzing, evaluating, index_commands, model_commands, sparsifying
    from st_keytokens.cli.models import quiet_libraries

    commands = {
        "tokens": model_commands.tokens,
        "calibrate": model_commands.calibrate,
        "index": index_commands.index,
        "add": index_commands.add,
        "search": index_commands.search,
        "explain": index_commands.explain,
        "sparsify": sparsifying.sparsify,
        "info": index_commands.info,
        "evaluate": evaluating.evaluate,
        "analyze": analyzing.analyze,
    }
    console = Console(parsed.json, parsed.quiet)
    with quiet_libraries(console.has_progress):
        commands[command](parsed, console)
