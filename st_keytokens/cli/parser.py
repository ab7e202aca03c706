"""The commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from st_keytokens import __version__
from st_keytokens.cli.console import UserError
from st_keytokens.cli.options import (
    INPUT,
    MODEL,
    add,
    add_batch_size,
    add_input_options,
    add_model_options,
    add_role,
    add_stored_model_options,
    positive,
)

_DESCRIPTION = "Key tokens of LLM-based embedders: read them, index them, search by them."
_KINDS = ("npy", "safetensors", "arrow", "faiss", "qdrant", "pgvector", "lancedb")  # of the library, not imported here


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


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

    from st_keytokens.cli.analyze_parser import add_analyze  # which takes its parts from here

    add_analyze(commands)

    command = add(commands, "info", "describe a model or an index", "st-keytokens info my-index --json")
    command.add_argument("model", metavar="MODEL|INDEX_DIR", help=f"{MODEL}; or directory of an index")
    add_model_options(command)
    return parser
