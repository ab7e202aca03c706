"""Markdown tables of comparisons, made from their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["comparison_table"]

_SHARED = {"encode_documents": "documents encoded", "encode_queries": "queries encoded", "calibrate": "calibrated"}


def comparison_table(comparison: Mapping[str, Any], measure: str = "nDCG@10") -> str:
    """A comparison as Markdown: the worst difference from the baseline first, then costs, then what was odd.

    Args:
        comparison: Of ``Comparison.to_dict``, or its JSON read back.
        measure: By which the rows are sorted, and whose differences are shown.

    Returns:
        Markdown with a heading.
    """
    report, seconds = comparison["collection"]["report"], comparison["seconds"]
    methods, model = comparison["methods"], comparison["settings"]["model"] or "without a name"
    measures = list(next(iter(methods.values()))["means"])
    lines = [
        f"## {comparison['collection']['name']}",
        "",
        f"{report['documents']:,} documents, {report['queries']:,} queries, model {model}. "
        f"Differences of {measure} from {comparison['baseline']}, with 95 % bootstrap intervals and p-values of the "
        f"randomisation test, corrected by Holm's method. Largest losses first.",
        "",
    ]
    head = ["method", *measures, "difference", "p", "terms/document", "terms/query", "index MB", "passes/query"]
    head += ["ms/query", "queries without terms"]
    lines += [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]

    def difference(name: str) -> float:
        found = methods[name]["differences"]
        return float(found[measure]["mean"]) if found else 0.0

    for name in sorted(methods, key=difference):
        lines.append(_row(_cells(name, methods[name], measure, measures, seconds, report["queries"])))
    shared = ", ".join(f"{label} in {seconds[name]:.1f} s" for name, label in _SHARED.items() if name in seconds)
    lines += ["", f"Shared by all methods: {shared}. ms/query holds its share of it only where a pass is needed."]
    odd = {name: found for name, found in report.items() if isinstance(found, dict) and found["count"]}
    if odd:
        lines += ["", "Found in the collection:", ""]
        lines += [
            f"- {name.replace('_', ' ')}: {found['count']:,} (for instance {', '.join(found['examples'][:3])})"
            for name, found in odd.items()
        ]
    return "\n".join(lines) + "\n"


def _cells(
    name: str, method: Mapping[str, Any], measure: str, measures: list[str], seconds: Mapping[str, float], queries: int
) -> list[str]:
    costs, found = method["costs"], method["differences"].get(measure)
    spent = sum(costs["seconds"].get(part, 0.0) for part in ("weigh_queries", "score", "fuse"))
    spent += seconds["encode_queries"] * costs["forward_passes"]
    return [
        name,
        *(f"{method['means'][name]:.3f}" for name in measures),
        f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]" if found else "baseline",
        f"{found['p_holm']:.4f}" if found else "",
        *("" if costs[key] is None else f"{costs[key]:.0f}" for key in ("document_active_dims", "query_active_dims")),
        f"{costs['index_bytes'] / 1e6:.1f}",
        str(costs["forward_passes"]),
        f"{1000 * spent / queries:.2f}",
        str(costs["queries_without_terms"]),
    ]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
