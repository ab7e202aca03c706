"""What the command line understands: its commands, their words, and what becomes of errors."""

from __future__ import annotations

import argparse
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

from st_keytokens import __version__
from st_keytokens.cli.analyze import add_analyze_command
from st_keytokens.cli.calibrate import add_calibrate_command
from st_keytokens.cli.console import Console, ReaderGoneError, UserError, is_out_of_memory, memory_advice, one_line
from st_keytokens.cli.evaluate import add_evaluate_command
from st_keytokens.cli.index import add_index_commands
from st_keytokens.cli.info import add_info_command
from st_keytokens.cli.options import check_arguments
from st_keytokens.cli.search import add_search_commands
from st_keytokens.cli.sparsify import add_sparsify_command
from st_keytokens.cli.streams import INTERRUPTED, Interrupts, abandon
from st_keytokens.cli.tokens import add_tokens_command

__all__ = ["run_command"]

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


_EXIT_CODES = (
    "exit codes: 0, done; 1, a fault of the program, with a traceback; 2, something that you can put right, told in "
    "one line on stderr; 130, interrupted by Ctrl-C."
)


def run_command(words: Sequence[str], interrupts: Interrupts) -> int:
    """Runs one command; see :func:`st_keytokens.cli.main`.

    Args:
        words: Those after the program's name.
        interrupts: What notices Ctrl-C.
    """
    parsed = Namespace(traceback=False)
    try:
        parsed = _parse(words)
        return _run(parsed, interrupts)
    except BaseException as err:
        interrupts.settle()
        return _code(err, parsed, interrupts)


def _code(err: BaseException, parsed: Namespace, interrupts: Interrupts) -> int:
    """The exit code of an error, which is told; a fault of the program is raised."""
    if isinstance(err, SystemExit):  # --help, --version
        failed = _flush_results()
        if failed is None or isinstance(failed, BrokenPipeError):
            return int(err.code or 0)
        err = failed
    if isinstance(err, KeyboardInterrupt) or interrupts.happened:
        how = getattr(parsed, "how_to_go_on", None)
        sys.stderr.write(f"{INTERRUPTED}{'' if how is None else f'; {how(parsed)}'}\n")
        _flush_results()
        return 130
    if isinstance(err, ReaderGoneError):
        return 0
    if not isinstance(err, (UserError, ValueError, OSError, ImportError, MemoryError, RuntimeError)):
        raise err
    if is_out_of_memory(err):
        message = memory_advice(err, parsed)
    elif isinstance(err, RuntimeError):  # a fault of the program
        raise err
    else:
        message = str(err)
    if parsed.traceback:
        traceback.print_exc()
    for name, option in _OPTIONS.items():
        message = message.replace(name, option)
    sys.stderr.write(f"st-keytokens: error: {one_line(message)}\n")
    return 2


def _flush_results() -> OSError | None:
    """Leaves nothing in stdout's buffer, of which Python would make an error at the end where the reader has gone."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError as err:
            abandon(sys.stdout)
            return err
    return None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        try:
            (file or sys.stderr).write(message)  # what it overrides passes over errors
        except BrokenPipeError as err:
            abandon(file)
            raise ReaderGoneError from err
        except OSError:
            abandon(file)
            raise


def _parse(words: Sequence[str]) -> Namespace:
    """The command, as ``command``, its options, and ``run`` and ``check`` of its module."""
    parser = _Parser(
        prog="st-keytokens",
        description="Key tokens of LLM-based embedders: read them, index them, search by them.",
        epilog=_EXIT_CODES,
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
    parsed.words = words
    return parsed


def _run(parsed: Namespace, interrupts: Interrupts) -> int:
    check_arguments(parsed)
    if sys.stdout is None:
        raise UserError("standard output must be open, got a closed one. Send it to /dev/null if it is not wanted.")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8" if parsed.json else None, errors="backslashreplace")
    with interrupts.ending_at_once():  # half imported, torch ends a process with an error of C++
        from st_keytokens.cli.encoders import quiet_libraries

    console = Console(parsed.json, parsed.quiet, parsed.is_streaming)
    with quiet_libraries(console.has_progress):
        parsed.run(parsed, console)
    return 0
