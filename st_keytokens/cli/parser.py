"""The commands and their options."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from st_keytokens import __version__
from st_keytokens.cli.console import UserError

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


_DESCRIPTION = "Key tokens of LLM-based embedders: read them, index them, search by them."
_KINDS = ("npy", "safetensors", "arrow", "faiss", "qdrant", "pgvector", "lancedb")  # of the library, not imported here


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def add_analyze(commands: Any) -> None:
    """Adds the command with its four analyses, whose name is ``analysis``.

    Args:
        commands: What ``add_subparsers`` gave for the commands.
    """
    summary = "show what embeddings say, in tables and pictures"
    analyze = commands.add_parser(
        "analyze", help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    analyses = analyze.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)

    command = add(
        analyses,
        "alignment",
        "measure how well decoded tokens are the texts' own",
        "st-keytokens analyze alignment MODEL corpus.jsonl --plot alignment.svg",
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("input", metavar="INPUT", help=INPUT)
    command.add_argument(
        "--definition",
        choices=("clean", "nie2025"),
        default="clean",
        help="of the measures: ours, or as the published code computes them (default: clean)",
    )
    command.add_argument(
        "--backbone",
        metavar="NAME",
        help="the language model that MODEL was made from: its LM head decodes, and it is measured as well, likewise "
        "pooled (default: MODEL alone, decoded by its own LM head)",
    )
    _add_outputs(command)
    add_batch_size(command)
    add_input_options(command)
    add_device_options(command)
    command.set_defaults(method=None)

    command = add(
        analyses,
        "spectrum",
        "compare an embedder with its backbone, component by component",
        "st-keytokens analyze spectrum MODEL BACKBONE corpus.jsonl --html spectrum.html",
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument(
        "backbone",
        metavar="BACKBONE",
        help="the language model that MODEL was made from; directory or name on the Hub",
    )
    command.add_argument("input", metavar="INPUT", help=INPUT)
    _add_outputs(command, "; the shift's picture goes to FILE-shift, the contribution's to FILE-contribution")
    add_batch_size(command)
    add_input_options(command)
    add_device_options(command)
    command.set_defaults(method=None)

    command = add(
        analyses,
        "instructions",
        "show what an instruction changes in what embeddings say",
        'st-keytokens analyze instructions MODEL --instruction "Find the sentiment: " "I love this film"',
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("texts", metavar="TEXT", nargs="*", help="texts; - or none: standard input, line by line")
    command.add_argument("--input", metavar="FILE", help=f"read the texts from here: {INPUT}")
    command.add_argument(
        "--instruction",
        metavar="PROMPT",
        action="append",
        required=True,
        help="put before each text, exactly as given; may be repeated",
    )
    command.add_argument("--baseline", metavar="PROMPT", help="what the others are compared with (default: no prompt)")
    command.add_argument("--top-k", metavar="N", type=positive, default=10, help="key tokens a text (default: 10)")
    _add_outputs(command, "; of the first text")
    add_role(command)
    add_batch_size(command)
    add_input_options(command)
    add_model_options(command)

    command = add(
        analyses,
        "pair",
        "explain the similarity of two texts, token by token",
        'st-keytokens analyze pair MODEL "I like apples" "Apples are good" --html pair.html',
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("text", metavar="TEXT", help="a text; for the sparse score, the query")
    command.add_argument("other", metavar="OTHER", help="another one; for the sparse score, the document")
    command.add_argument(
        "--top-k", metavar="N", type=positive, default=10, help="key tokens of each text (default: 10)"
    )
    command.add_argument("--similarity", choices=("cosine", "dot"), help="of the dense vectors (default: the model's)")
    _add_outputs(command)
    add_role(command)
    add_model_options(command)


def _add_outputs(command: argparse.ArgumentParser, note: str = "") -> None:
    group = command.add_argument_group("saving")
    group.add_argument("--output", metavar="FILE", type=_file(".json"), help=".json file of all results")
    group.add_argument("--plot", metavar="FILE", type=_file(".svg", ".png"), help=f".svg or .png picture{note}")
    group.add_argument("--html", metavar="FILE", type=_file(".html"), help=".html page that needs no other file")


def _file(*endings: str) -> Callable[[str], Path]:
    """Reads the path of a file to be written."""

    def read(value: str) -> Path:
        path = Path(value)
        if path.suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"must end in {' or '.join(endings)}, got {value}")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"must be in a directory that exists, got {value}")
        return path

    return read


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command, as ``command``, and its options.

    Args:
        arguments: Words of the command line after the program's name; None: those of this process.

    Raises:
        SystemExit: For ``--help`` and ``--version``, when they have been shown.
        UserError: If the words are not a command.
    """
    parser = build_parser()
    parsed, extra = parser.parse_known_args(arguments)
    is_list = parsed.command in ("tokens", "search") or getattr(parsed, "analysis", None) == "instructions"
    if is_list and not any(word.startswith("-") for word in extra):  # argparse stops at the first option between texts
        parsed.texts += extra
    elif extra:
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="st-keytokens", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    command = add(
        commands,
        "tokens",
        "show what the embeddings of texts say",
        'st-keytokens tokens MODEL "The genome of a mouse" --top-k 5',
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("texts", metavar="TEXT", nargs="*", help="texts; - or none: standard input, line by line")
    command.add_argument("--input", metavar="FILE", help=f"read the texts from here: {INPUT}")
    command.add_argument("--top-k", metavar="N", type=positive, default=10, help="key tokens a text (default: 10)")
    command.add_argument(
        "--raw", action="store_true", help="as they are before the correction of a calibration, if there is one"
    )
    add_role(command)
    add_batch_size(command)
    add_input_options(command)
    add_model_options(command)

    command = add(
        commands,
        "calibrate",
        "fit a model's corrections on texts, and save both",
        "st-keytokens calibrate MODEL corpus.jsonl --output calibrated",
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("input", metavar="INPUT", help=INPUT)
    command.add_argument(
        "--output",
        metavar="DIR",
        required=True,
        help="where the model and its key_tokens folder go; where this is the directory MODEL, only the folder",
    )
    command.add_argument(
        "--state", metavar="FILE", help="save progress here; run again to go on after an interruption"
    )
    add_batch_size(command)
    add_input_options(command)
    add_model_options(command)

    command = add(
        commands,
        "index",
        "embed documents and index them; run again to go on after an interruption",
        "st-keytokens index MODEL corpus.jsonl my-index",
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("input", metavar="INPUT", help=INPUT)
    command.add_argument("index", metavar="INDEX_DIR", help="directory of the index, new or begun earlier")
    command.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        help="calibrate the model on these documents first (default: if it has no calibration)",
    )
    add_batch_size(command)
    add_input_options(command)
    add_model_options(command)

    command = add(commands, "add", "add documents to an index", "st-keytokens add my-index more.jsonl --replace")
    command.add_argument("index", metavar="INDEX_DIR", help="directory of the index")
    command.add_argument("input", metavar="INPUT", help=INPUT)
    command.add_argument(
        "--replace", action="store_true", help="replace documents whose text or metadata has changed (default: keep)"
    )
    add_batch_size(command)
    add_input_options(command)
    add_stored_model_options(command)

    command = add(
        commands,
        "search",
        "search an index",
        'st-keytokens search my-index "heart disease" --filter \'{"year": {"$gte": 2000}}\' --explain',
    )
    command.add_argument("index", metavar="INDEX_DIR", help="directory of the index")
    command.add_argument("texts", metavar="QUERY", nargs="*", help="queries; - or none: standard input, line by line")
    command.add_argument("--input", metavar="FILE", help=f"read the queries from here: {INPUT}")
    command.add_argument(
        "--mode",
        choices=("sparse", "dense", "hybrid"),
        help="compare key tokens, dense vectors or both (default: hybrid; with --lookup, sparse)",
    )
    command.add_argument("--top-k", metavar="N", type=positive, default=10, help="hits a query (default: 10)")
    command.add_argument("--filter", metavar="JSON", help='only documents with such metadata, as {"lang": "en"}')
    command.add_argument("--lookup", action="store_true", help="weigh the query's own words, without a forward pass")
    command.add_argument(
        "--explain", action="store_true", help="show the key tokens that each hit shares with the query"
    )
    add_batch_size(command)
    add_input_options(command)
    add_stored_model_options(command)

    command = add(
        commands,
        "explain",
        "show which key tokens a query shares with a document",
        'st-keytokens explain my-index "heart disease" doc-17',
    )
    command.add_argument("index", metavar="INDEX_DIR", help="directory of the index")
    command.add_argument("query", metavar="QUERY", help="the query")
    command.add_argument("document", metavar="DOC_ID", help="id of the document")
    command.add_argument("--lookup", action="store_true", help="weigh the query's own words, without a forward pass")
    add_stored_model_options(command)

    command = add(
        commands,
        "sparsify",
        "turn stored dense embeddings into sparse ones, without embedding anything",
        "st-keytokens sparsify MODEL embeddings.parquet --text-column text --output sparse",
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument(
        "embeddings",
        metavar="EMBEDDINGS",
        help="file ending in .npy, .safetensors, .parquet, .arrow or .faiss, directory of Parquet or Arrow files, of "
        "LanceDB or of Qdrant, or URL of a Qdrant server or a PostgreSQL database with pgvector",
    )
    command.add_argument("--kind", choices=_KINDS, help="what EMBEDDINGS is (default: by its name)")
    command.add_argument("--table", metavar="NAME", help="table or collection, where EMBEDDINGS has several")
    command.add_argument(
        "--id-column", metavar="NAME", help="column of the ids (default: id; Qdrant: the points' ids)"
    )
    command.add_argument(
        "--vector-column",
        metavar="NAME",
        help="column, tensor or named vector (default: embedding; LanceDB: vector; others: the only one)",
    )
    command.add_argument(
        "--text-column", metavar="NAME", help="column of the texts, for their own words (default: none)"
    )
    command.add_argument(
        "--texts", metavar="FILE", help=f"the texts from elsewhere, by id or, where there are none, in order: {INPUT}"
    )
    command.add_argument(
        "--output",
        metavar="PATH",
        required=True,
        help=".npz file, a CSR matrix for scipy.sparse; or directory of Parquet shards, where a run that was "
        "interrupted goes on",
    )
    command.add_argument(
        "--shard-rows", metavar="N", type=positive, default=100_000, help="rows of a shard (default: 100000)"
    )
    add_role(command)
    command.add_argument(
        "--batch-size", metavar="N", type=positive, help="rows decoded at a time (default: 256; on CUDA 2048)"
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the product with the LM head, part of the fingerprint (default: the LM head's own)",
    )
    add_input_options(command)
    add_model_options(command)

    command = add(
        commands,
        "evaluate",
        "compare dense, sparse and hybrid search on test collections",
        "st-keytokens evaluate scifact cranfield --model MODEL --output results.json --table results.md",
    )
    command.add_argument(
        "collections", metavar="COLLECTION", nargs="+", help="directories in the BEIR layout; several are averaged"
    )
    command.add_argument("--model", metavar="MODEL", required=True, help=MODEL)
    command.add_argument(
        "--methods", metavar="NAMES", help="methods, with commas between (default: all; an error names them)"
    )
    command.add_argument(
        "--baseline", metavar="NAME", default="dense", help="the method that differences are from (default: dense)"
    )
    command.add_argument("--output", metavar="FILE", required=True, help=".json file of everything, query by query")
    command.add_argument("--table", metavar="FILE", help=".md file of tables")
    command.add_argument(
        "--cache", metavar="DIR", help="keep the embeddings here; runs on the same texts then embed nothing again"
    )
    command.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        help="calibrate the model on each collection's documents (default: if it has no calibration)",
    )
    command.add_argument("--split", metavar="NAME", default="test", help="judgements qrels/NAME.tsv (default: test)")
    command.add_argument("--queries", metavar="FILE", help="queries in each collection (default: queries.jsonl)")
    command.add_argument(
        "--depth", metavar="N", type=positive, default=1000, help="documents ranked for a query (default: 1000)"
    )
    command.add_argument(
        "--samples",
        metavar="N",
        type=positive,
        default=10_000,
        help="of the significance test and the intervals (default: 10000)",
    )
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of both (default: 0)")
    add_batch_size(command)
    add_model_options(command, has_method=False)

    add_analyze(commands)

    command = add(commands, "info", "describe a model or an index", "st-keytokens info my-index --json")
    command.add_argument("model", metavar="MODEL|INDEX_DIR", help=f"{MODEL}; or directory of an index")
    add_model_options(command)
    return parser
