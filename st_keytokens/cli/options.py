"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = [
    "INPUT",
    "MODEL",
    "add",
    "add_batch_size",
    "add_device_options",
    "add_input_options",
    "add_model_options",
    "add_role",
    "add_stored_model_options",
    "positive",
]

INPUT = (
    "JSON Lines, CSV or TSV with a header, plain text with one document a line, a BEIR directory, a directory of text "
    "files, each also as .gz or .xz, or - for standard input"
)
MODEL = "directory of a sentence-transformers model, or its name on the Hub"


def add(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Adds a command with the options that all have.

    Args:
        commands: What ``add_subparsers`` gave.
        name: Of the command.
        summary: What it does, in a few words.
        example: A command line.

    Returns:
        Its parser.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"Example: {example}",
        allow_abbrev=False,
    )
    command.add_argument("--json", action="store_true", help="write JSON lines")
    command.add_argument("-q", "--quiet", action="store_true", help="no messages, no progress bars")
    command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return command


def add_role(command: argparse.ArgumentParser) -> None:
    """Adds ``--role``."""
    command.add_argument(
        "--role", choices=("document", "query"), default="document", help="what the texts are (default: document)"
    )


def add_batch_size(command: argparse.ArgumentParser, size: int = 32, what: str = "texts a forward pass") -> None:
    """Adds ``--batch-size``, of so many texts unless it is given."""
    command.add_argument("--batch-size", metavar="N", type=positive, default=size, help=f"{what} (default: {size})")


def add_input_options(command: argparse.ArgumentParser) -> None:
    """Adds how a file is to be read."""
    group = command.add_argument_group("reading")
    group.add_argument("--text-field", metavar="NAME", help="field of the text (default: text, after the title)")
    group.add_argument("--id-field", metavar="NAME", help="field of the id (default: _id or id)")
    group.add_argument(
        "--file-format", choices=("jsonl", "csv", "tsv", "text"), help="default: by the end of the file's name"
    )


def add_model_options(command: argparse.ArgumentParser, has_method: bool = True) -> None:
    """Adds where a model runs, where its LM head is and, where it has a say, how terms are weighed."""
    group = add_device_options(command)
    group.add_argument("--backbone", metavar="NAME", help="where the LM head is, if the model cannot tell")
    if not has_method:
        command.set_defaults(method=None)
        return
    group.add_argument("--method", metavar="NAME", help="how terms are weighed: default, literal, decoded, nie2025")


def add_stored_model_options(command: argparse.ArgumentParser) -> None:
    """Adds where a model runs, for commands that read an index, which knows the rest."""
    group = add_device_options(command)
    group.add_argument("--model", metavar="MODEL", help="where the index's model is, if it has moved")
    command.set_defaults(backbone=None, method=None)


def add_device_options(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds where a model runs, in a group that is returned."""
    group = command.add_argument_group("model")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best one there is)")
    group.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    return group


def positive(value: str) -> int:
    """Reads a whole number of at least 1.

    Raises:
        ArgumentTypeError: If it is none.
    """
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {value}")
    return number
