"""The command evaluate: methods compared on test collections."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_keytokens.cli.console import Console, UserError, one_line, table
from st_keytokens.cli.options import (
    MODEL,
    add_batch_size,
    add_calibrate,
    add_command,
    add_model_options,
    check_output,
    positive,
    run_again,
)

if TYPE_CHECKING:
    from st_keytokens.evaluation.collections import Collection

_MEASURE = "nDCG@10"
_SHOWN_IDS = 3


def add_evaluate_command(commands: Any) -> None:
    """Adds the command ``evaluate``."""
    command = add_command(
        commands,
        "evaluate",
        "compare dense, sparse and hybrid search on test collections",
        "st-keytokens evaluate scifact cranfield --model MODEL --output results.json --table results.md",
        _run,
        _check,
        how_to_go_on=lambda arguments: (
            run_again(arguments) if arguments.cache else "without --cache, the embeddings were not kept"
        ),
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
    add_calibrate(command, "each collection's documents")
    command.add_argument("--split", metavar="NAME", default="test", help="judgements qrels/NAME.tsv (default: test)")
    command.add_argument("--queries", metavar="FILE", help="queries in each collection (default: queries.jsonl)")
    command.add_argument(
        "--depth", metavar="N", type=positive, default=1000, help="documents ranked for a query (default: 1000)"
    )
    command.add_argument(
        "--fusion-depth",
        metavar="N",
        type=positive,
        default=100,
        help="hits of each side that a hybrid fuses (default: 100, as a search for ten hits)",
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


def _check(arguments: Namespace) -> None:
    names = set()
    for path in map(Path, arguments.collections):
        if not path.is_dir():
            raise UserError(f"COLLECTION must be a directory that exists, got {str(path)!r}.")
        name = path.resolve().name
        if name in names:
            raise UserError(f"COLLECTION must be named once, got two directories of the name {name!r}.")
        names.add(name)
    check_output("--output", arguments.output, ".json")
    if arguments.table is not None:
        check_output("--table", arguments.table, ".md")


def _run(arguments: Namespace, console: Console) -> None:
    """Compares methods on collections, and saves what they reached after each."""
    from st_keytokens.cli.encoders import load_encoder
    from st_keytokens.evaluation.collections import read_collection
    from st_keytokens.evaluation.comparison import Evaluation, chosen_methods, run_comparison

    methods = None if arguments.methods is None else [name.strip() for name in arguments.methods.split(",")]
    methods = chosen_methods(methods, arguments.baseline)
    collections = [
        read_collection(path, split=arguments.split, queries=arguments.queries) for path in arguments.collections
    ]
    for collection in collections:
        _report_findings(collection, console)
    encoder = load_encoder(arguments)
    comparisons = []
    for collection in collections:
        comparison = run_comparison(
            collection,
            encoder,
            methods=methods,
            baseline=arguments.baseline,
            calibrate=arguments.calibrate,
            depth=arguments.depth,
            fusion_depth=arguments.fusion_depth,
            samples=arguments.samples,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            cache=arguments.cache,
            name=Path(arguments.model).name,  # of a folder, not where it is on this machine
            show_progress_bar=console.has_progress,
        )
        comparisons.append(comparison)
        evaluation = Evaluation(comparisons)
        evaluation.save(arguments.output, arguments.table)
        found = comparison.to_dict()
        for result in found["methods"].values():
            del result["per_query"]
        counts = f"{len(collection.documents):,} documents, {len(collection.queries):,} queries"
        console.result(
            {name: value for name, value in found.items() if name not in ("query_ids", "environment")},
            [f"{one_line(collection.name)}: {counts}", *_lines(found["methods"])],
        )
    names = [collection.name for collection in collections]
    found = evaluation.to_dict()["macro_average"]
    value = {"macro_average": found, "collections": names, "output": arguments.output, "table": arguments.table}
    saved = f"Saved in {arguments.output}{f' and {arguments.table}' if arguments.table else ''}."
    lines = [f"Macro average of {len(names)} collections", *_lines(found)] if len(names) > 1 else []
    console.result(value, [*lines, saved])


def _report_findings(collection: Collection, console: Console) -> None:
    for name, finding in collection.report.findings.items():
        examples = ", ".join(map(one_line, finding.examples[:_SHOWN_IDS]))
        console.message(f"{one_line(collection.name)}: {name.replace('_', ' ')}: {finding.count:,} ({examples})")


def _lines(methods: dict[str, Any]) -> list[str]:
    """A table of the methods, the worst difference from the baseline first."""
    from st_keytokens.evaluation.tables import sorted_by_difference

    names = sorted_by_difference(methods)
    measures = list(methods[names[0]]["means"])
    rows = []
    for name in names:
        found = methods[name]["differences"].get(_MEASURE)
        without = methods[name].get("costs", {}).get("queries_without_terms")
        rows.append(
            [
                *(methods[name]["means"][measure] for measure in measures),
                "" if found is None else f"{found['mean']:+.4f}",
                "" if found is None else f"{found['p_holm']:.4f}",
                "" if not without else f"{without:,}",
                name,
            ]
        )
    return table([*measures, "difference", "p", "queries without terms", "method"], rows, "  ")
