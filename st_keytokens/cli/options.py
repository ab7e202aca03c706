"""Options that several commands have, and the checks of what they name. Nothing here imports torch."""

from __future__ import annotations

import argparse
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from st_keytokens.cli.console import Console, UserError

INPUT = (
    "JSON Lines, CSV or TSV with a header, plain text with one document a line, a BEIR directory, a directory of text "
    "files (hidden ones are left out), or - for standard input; UTF-8, or UTF-16 with a byte order mark; also "
    "compressed: gzip, bzip2, xz, Zstandard"
)
MODEL = "directory of a sentence-transformers model, or its name on the Hub"
_TEXTS = {  # arguments that are texts, not paths, and what errors call them
    "texts": "texts",
    "query": "QUERY",
    "document": "DOC_ID",
    "text": "TEXT",
    "other": "OTHER",
    "filter": "--filter",
    "instruction": "--instruction",
    "baseline": "--baseline",
    "text_field": "--text-field",
    "id_field": "--id-field",
}


def add_command(
    commands: Any,
    name: str,
    summary: str,
    example: str,
    run: Callable[[Namespace, Console], None],
    check: Callable[[Namespace], None] | None = None,
    *,
    is_streaming: bool = False,
    how_to_go_on: Callable[[Namespace], str] | None = None,
) -> ArgumentParser:
    """A new command with the options that all have.

    ``check`` refuses arguments before anything is loaded, ``is_streaming`` is of :class:`Console`, and
    ``how_to_go_on`` says what to do after an interruption.
    """
    command: ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"Example: {example}",
        allow_abbrev=False,
    )
    command.set_defaults(run=run, check=check, is_streaming=is_streaming, how_to_go_on=how_to_go_on)
    command.add_argument("--json", action="store_true", help="write JSON lines")
    command.add_argument("-q", "--quiet", action="store_true", help="no messages, no progress bars")
    command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return command


def add_model(command: ArgumentParser) -> None:
    """Adds ``MODEL``."""
    command.add_argument("model", metavar="MODEL", help=MODEL)


def add_input(command: ArgumentParser) -> None:
    """Adds ``INPUT``, the documents."""
    command.add_argument("input", metavar="INPUT", help=INPUT)


def add_texts(command: ArgumentParser, name: str = "TEXT", what: str = "texts") -> None:
    """Adds texts as arguments, and ``--input`` in their place; see ``read_texts``."""
    command.add_argument("texts", metavar=name, nargs="*", help=f"{what}; - or none: standard input, line by line")
    command.add_argument("--input", metavar="FILE", help=f"read the {what} from here: {INPUT}")


def add_index_directory(command: ArgumentParser, note: str = "") -> None:
    """Adds ``INDEX_DIR``."""
    command.add_argument("index", metavar="INDEX_DIR", help=f"directory of the index{note}")


def add_top_k(command: ArgumentParser, what: str) -> None:
    """Adds ``--top-k``."""
    command.add_argument("--top-k", metavar="N", type=positive, default=10, help=f"{what} (default: 10)")


def add_lookup(command: ArgumentParser) -> None:
    """Adds ``--lookup``."""
    command.add_argument("--lookup", action="store_true", help="weigh the query's own words, without a forward pass")


def add_calibrate(command: ArgumentParser, texts: str) -> None:
    """Adds ``--calibrate`` and ``--no-calibrate``."""
    command.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        help=f"calibrate the model on {texts} (default: if it has no calibration)",
    )


def add_role(command: ArgumentParser) -> None:
    """Adds ``--role``."""
    command.add_argument(
        "--role", choices=("document", "query"), default="document", help="what the texts are (default: document)"
    )


def add_batch_size(command: ArgumentParser) -> None:
    """Adds ``--batch-size``."""
    command.add_argument(
        "--batch-size", metavar="N", type=positive, default=32, help="texts a forward pass at most (default: 32)"
    )


def add_input_options(command: ArgumentParser) -> None:
    """Adds how a file is to be read."""
    group = command.add_argument_group("reading")
    group.add_argument("--text-field", metavar="NAME", help="field of the text (default: text, after the title)")
    group.add_argument("--id-field", metavar="NAME", help="field of the id (default: _id or id)")
    group.add_argument(
        "--file-format", choices=("jsonl", "csv", "tsv", "text"), help="default: by the end of the file's name"
    )


def add_model_options(command: ArgumentParser, has_method: bool = True) -> None:
    """Adds where a model runs, where its LM head is and, where it has a say, how terms are weighed."""
    group = add_device_options(command)
    group.add_argument(
        "--model-dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: as transformers loads them)",
    )
    group.add_argument("--backbone", metavar="NAME", help="where the LM head is, if the model cannot tell")
    group.add_argument(
        "--recipe",
        metavar="NAME",
        help="the known embedder that MODEL is a copy of, or prompteol: the one-word prompt for a language model",
    )
    if has_method:
        group.add_argument(
            "--method", metavar="NAME", help="how terms are weighed: default, literal, decoded, nie2025"
        )
        group.add_argument("--terms", choices=("words", "tokens"), help="what a term is (default: words)")
        group.add_argument(
            "--language", metavar="NAME", help="of the words' stemmer, such as german, or none (default: english)"
        )


def add_stored_model_options(command: ArgumentParser) -> None:
    """Adds where a model runs, for commands that read an index, which knows the rest."""
    group = add_device_options(command)
    group.add_argument("--model", metavar="MODEL", help="where the index's model is, if it has moved")


def add_device_options(command: ArgumentParser) -> argparse._ArgumentGroup:
    """Adds where a model runs, in a group that is returned."""
    options = ("backbone", "recipe", "method", "terms", "language", "model_dtype")
    command.set_defaults(**dict.fromkeys(options))  # for commands without these options
    group = command.add_argument_group("model")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best one there is)")
    group.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    return group


def run_again(arguments: Namespace) -> str:
    """How to go on after an interruption, for commands that keep what they have done."""
    return "run the same command again to go on"


def positive(value: str) -> int:
    """Reads a whole number of at least 1."""
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {value}")
    return number


def check_arguments(arguments: Namespace) -> None:
    """Checks that what is named exists, and that options go together; a ``UserError`` says what does not."""
    given = vars(arguments)
    for name, label in _TEXTS.items():
        value = given.get(name)
        if isinstance(value, list):
            given[name] = [_checked_text(label, text) for text in value]
        elif value is not None and (name, arguments.command) != ("texts", "sparsify"):  # there a path
            given[name] = _checked_text(label, value)
    if isinstance(given.get("texts"), list) and given["texts"] and given["input"] is not None:
        raise UserError("texts must be given as arguments or with --input, got both. Leave one out.")
    if given.get("input") not in (None, "-"):
        check_exists("input", given["input"])
    index = given.get("index")
    if index is not None and arguments.command != "index" and not is_index(index):
        is_empty = Path(index).is_dir() and not any(Path(index).iterdir())
        advice = " It is empty; make one there: st-keytokens index." if is_empty else ""
        raise UserError(f"INDEX_DIR must be the directory of an index, got {index!r}.{advice}")
    if arguments.model is not None and not is_index(arguments.model):  # info takes either
        model_path(arguments.model)
    if arguments.check is not None:
        arguments.check(arguments)


def is_index(path: str) -> bool:
    """Whether a directory holds an index, which one whose copy was killed does once the copy is finished."""
    directory = Path(os.path.abspath(path))
    if not directory.exists() and directory.parent.is_dir():
        begin = f".{directory.name}.keytokens-"
        if any(name.startswith(begin) for name in os.listdir(directory.parent)):
            from st_keytokens.index.store import finish_copy  # brings NumPy with it

            finish_copy(directory)
    return Path(directory, "index.sqlite").is_file()


def _checked_text(label: str, text: str) -> str:
    """A text of the command line, which is UTF-8 whatever the locale says."""
    if not any("\udc80" <= character <= "\udcff" for character in text):  # bytes that the locale cannot decode
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError as err:
        raise UserError(
            f"{label} must be UTF-8, got the byte 0x{err.object[err.start]:02x} in {text!r}. Convert it to UTF-8."
        ) from err


def check_exists(label: str, path: str) -> None:
    """Refuses the path of something to be read that is not there."""
    if not Path(path).exists():
        raise UserError(f"{label} must be a file or directory that exists, got {path!r}.")


def check_output(label: str, name: str, ending: str) -> None:
    """Refuses the path of something to be written that has another ending, or stands in no directory."""
    path = Path(name)
    if path.suffix != ending:
        raise UserError(f"{label} must end in {ending}, got {path}.")
    if not path.parent.is_dir():
        raise UserError(f"{label} must be in a directory that exists, got {path}.")


def model_path(name: str) -> str:
    """The whole path of a model's directory, or its name on the Hub; a ``UserError`` if it can be neither."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        return str(path.resolve())
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # brings an HTTP client with it

    try:
        validate_repo_id(name)
    except HFValidationError as err:
        raise UserError(f"model must be a directory that exists or a name on the Hub, got {name!r}.") from err
    return name
