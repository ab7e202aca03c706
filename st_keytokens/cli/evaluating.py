"""The command evaluate: methods compared on test collections."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from st_keytokens.cli.console import Console, one_line, table
from st_keytokens.cli.models import load_encoder
from st_keytokens.evaluation.collections import Collection, read_collection
from st_keytokens.evaluation.comparison import Evaluation, chosen_methods, run_comparison
from st_keytokens.evaluation.tables import sorted_by_difference

_MEASURE = "nDCG@10"
_SHOWN_IDS = 3


def evaluate(arguments: Namespace, console: Console) -> None:
    """Compares methods on collections, and saves what they reached after each."""
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
            fusion_depth=arguments.depth,
            samples=arguments.samples,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            cache=arguments.cache,
            name=arguments.model,
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
