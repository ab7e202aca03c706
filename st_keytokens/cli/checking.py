"""What can be wrong with the arguments of a command, found before anything that takes seconds is imported."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from st_keytokens.cli.console import UserError


def check_arguments(arguments: Namespace) -> None:
    """Checks that what is named exists, and that options go together.

    Raises:
        UserError: If not.
    """
    given = vars(arguments)
    if isinstance(given.get("texts"), list) and given["texts"] and given["input"] is not None:
        raise UserError("texts must be given as arguments or with --input, got both. Leave one out.")
    for name, label in {"input": "input", "texts": "--texts"}.items():
        path = given.get(name)
        if isinstance(path, str) and path != "-" and not Path(path).exists():
            raise UserError(f"{label} must be a file or directory that exists, got {path!r}.")
    if "embeddings" in given and "://" not in given["embeddings"] and not Path(given["embeddings"]).exists():
        raise UserError(f"embeddings must be a file or directory that exists, got {given['embeddings']!r}.")
    index = given.get("index")
    if index is not None and arguments.command != "index" and not Path(index, "index.sqlite").is_file():
        raise UserError(f"INDEX_DIR must be the directory of an index, got {index!r}.")
    if arguments.model is not None:
        model_path(arguments.model)
    if arguments.command == "search" and arguments.lookup and arguments.mode in ("dense", "hybrid"):
        raise UserError(f"--mode must be sparse with --lookup, which makes no dense vectors, got {arguments.mode}.")
    if arguments.command == "sparsify":
        _check_output("--output", arguments.output, Path(arguments.output).suffix and ".npz")
    if arguments.command == "evaluate":
        _check_collections(arguments)


def model_path(name: str) -> str:
    """The whole path of a model's directory, or its name on the Hub.

    Raises:
        UserError: If it can be neither.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        return str(path.resolve())
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # brings an HTTP client with it

    try:
        validate_repo_id(name)
    except HFValidationError as err:
        raise UserError(f"model must be a directory that exists or a name on the Hub, got {name!r}.") from err
    return name


def _check_output(label: str, name: str, ending: str) -> None:
    path = Path(name)
    if path.suffix != ending:
        raise UserError(f"{label} must end in {ending}, got {path}.")
    if not path.parent.is_dir():
        raise UserError(f"{label} must be in a directory that exists, got {path}.")


def _check_collections(arguments: Namespace) -> None:
    names = set()
    for path in map(Path, arguments.collections):
        if not path.is_dir():
            raise UserError(f"COLLECTION must be a directory that exists, got {str(path)!r}.")
        if path.resolve().name in names:
            raise UserError(f"COLLECTION must be named once, got two directories of the name {path.resolve().name!r}.")
        names.add(path.resolve().name)
    _check_output("--output", arguments.output, ".json")
    if arguments.table is not None:
        _check_output("--table", arguments.table, ".md")
