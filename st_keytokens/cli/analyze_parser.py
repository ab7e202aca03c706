"""The command analyze and its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from st_keytokens.cli import options

__all__ = ["add_analyze"]


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

    command = options.add(
        analyses,
        "alignment",
        "measure how well decoded tokens are the texts' own",
        "st-keytokens analyze alignment MODEL corpus.jsonl --plot alignment.svg",
    )
    command.add_argument("model", metavar="MODEL", help=options.MODEL)
    command.add_argument("input", metavar="INPUT", help=options.INPUT)
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
    options.add_batch_size(command)
    options.add_input_options(command)
    options.add_device_options(command)
    command.set_defaults(method=None)

    command = options.add(
        analyses,
        "spectrum",
        "compare an embedder with its backbone, component by component",
        "st-keytokens analyze spectrum MODEL BACKBONE corpus.jsonl --html spectrum.html",
    )
    command.add_argument("model", metavar="MODEL", help=options.MODEL)
    command.add_argument(
        "backbone",
        metavar="BACKBONE",
        help="the language model that MODEL was made from; directory or name on the Hub",
    )
    command.add_argument("input", metavar="INPUT", help=options.INPUT)
    _add_outputs(command, "; the shift's picture goes to FILE-shift, the contribution's to FILE-contribution")
    options.add_batch_size(command)
    options.add_input_options(command)
    options.add_device_options(command)
    command.set_defaults(method=None)

    command = options.add(
        analyses,
        "instructions",
        "show what an instruction changes in what embeddings say",
        'st-keytokens analyze instructions MODEL --instruction "Find the sentiment: " "I love this film"',
    )
    command.add_argument("model", metavar="MODEL", help=options.MODEL)
    command.add_argument("texts", metavar="TEXT", nargs="*", help="texts; - or none: standard input, line by line")
    command.add_argument("--input", metavar="FILE", help=f"read the texts from here: {options.INPUT}")
    command.add_argument(
        "--instruction",
        metavar="PROMPT",
        action="append",
        required=True,
        help="put before each text, exactly as given; may be repeated",
    )
    command.add_argument("--baseline", metavar="PROMPT", help="what the others are compared with (default: no prompt)")
    command.add_argument(
        "--top-k", metavar="N", type=options.positive, default=10, help="key tokens a text (default: 10)"
    )
    _add_outputs(command, "; of the first text")
    options.add_role(command)
    options.add_batch_size(command)
    options.add_input_options(command)
    options.add_model_options(command)

    command = options.add(
        analyses,
        "pair",
        "explain the similarity of two texts, token by token",
        'st-keytokens analyze pair MODEL "I like apples" "Apples are good" --html pair.html',
    )
    command.add_argument("model", metavar="MODEL", help=options.MODEL)
    command.add_argument("text", metavar="TEXT", help="a text; for the sparse score, the query")
    command.add_argument("other", metavar="OTHER", help="another one; for the sparse score, the document")
    command.add_argument(
        "--top-k", metavar="N", type=options.positive, default=10, help="key tokens of each text (default: 10)"
    )
    command.add_argument("--similarity", choices=("cosine", "dot"), help="of the dense vectors (default: the model's)")
    _add_outputs(command)
    options.add_role(command)
    options.add_model_options(command)


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
