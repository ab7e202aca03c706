"""Markdown tables of comparisons, made from their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from st_keytokens.shared.markdown import preformatted_table

__all__ = ["comparison_table", "evaluation_table", "sorted_by_difference"]

_MEASURE = "nDCG@10"  # by which rows are sorted, and whose differences are shown
_SHARED = {"encode_documents": "documents encoded", "encode_queries": "queries encoded", "calibrate": "calibrated"}
_PARTS = ("weigh_documents", "index", "weigh_queries", "score", "fuse")
_PRECISION = "with 95 % bootstrap intervals and p-values of the randomisation test, corrected by Holm's method"


def evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Comparisons as Markdown: the macro average where there are several collections, then each of them.

    Args:
        evaluation: Of ``Evaluation.to_dict``, or its JSON read back.

    Returns:
        Markdown with headings.
    """
    collections, environment = evaluation["collections"], evaluation["environment"]
    parts = [_macro_table(evaluation)] if len(collections) > 1 else []
    parts += [comparison_table(comparison) for comparison in collections]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    parts.append(
        f"Measured {environment['date']} on {environment['device']} ({environment['cpu']}, {environment['threads']} "
        f"threads), commit {environment['commit'] or 'unknown'}, Python {environment['python']}, {packages}.\n"
    )
    return "\n".join(parts)


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """A comparison as Markdown: measures, the worst difference from the baseline first, then costs, then what was odd.

    Args:
        comparison: Of ``Comparison.to_dict``, or its JSON read back.

    Returns:
        Markdown with a heading.
    """
    report, seconds = comparison["collection"]["report"], comparison["seconds"]
    methods, model = comparison["methods"], comparison["settings"]["model"]
    names = sorted_by_difference(methods)
    measures = list(methods[names[0]]["means"])
    shared = ", ".join(f"{label} in {seconds[name]:.1f} s" for name, label in _SHARED.items() if name in seconds)
    blocks = [
        f"## {comparison['collection']['name']}\n",
        f"{report['documents']:,} documents, {report['queries']:,} queries, model {model}. Differences of {_MEASURE} "
        f"from {comparison['baseline']}, {_PRECISION}. Largest losses first.\n",
        preformatted_table(
            ["method", *measures, "difference", "p"],
            [[name, *_means(methods[name], measures), *_difference(methods[name])] for name in names],
        ),
        f"Shared by all methods: {shared}. ms/query holds its share of it only where a pass is needed.\n",
        preformatted_table(
            ["method", "terms/document", "terms/query", "index MB", "passes/query", "ms/query"]
            + [f"{part.replace('_', ' ')}, s" for part in _PARTS]
            + ["queries without terms"],
            [[name, *_costs(methods[name]["costs"], seconds, report["queries"])] for name in names],
        ),
    ]
    blocks += [
        f"rank-bm25 over the same terms as {name}, first {check['queries']} queries: {_MEASURE} "
        f"{check['rank_bm25'][_MEASURE]:.3f} (bm25s {check['bm25s'][_MEASURE]:.3f}), {check['overlap']:.1%} of bm25s' "
        f"ten best documents in common.\n"
        for name, check in comparison["bm25_checks"].items()
    ]
    odd = {name: found for name, found in report.items() if isinstance(found, dict) and found["count"]}
    if odd:
        lines = [
            f"- {name.replace('_', ' ')}: {found['count']:,} (for instance {', '.join(found['examples'][:3])})\n"
            for name, found in odd.items()
        ]
        blocks += ["Found in the collection:\n", "".join(lines)]
    return "\n".join(blocks)


def sorted_by_difference(methods: Mapping[str, Any]) -> list[str]:
    """Names of methods, the largest loss of nDCG@10 against the baseline first, whose own difference is 0.

    Args:
        methods: Of a comparison's or a macro average's JSON, with their differences.
    """

    def difference(name: str) -> float:
        found = methods[name]["differences"]
        return float(found[_MEASURE]["mean"]) if found else 0.0

    return sorted(methods, key=difference)


def _macro_table(evaluation: Mapping[str, Any]) -> str:
    averages, collections = evaluation["macro_average"], evaluation["collections"]
    names = sorted_by_difference(averages)
    measures = [measure for measure in averages[names[0]]["means"] if measure != _MEASURE]
    rows = [
        [
            name,
            *(f"{comparison['methods'][name]['means'][_MEASURE]:.3f}" for comparison in collections),
            *_means(averages[name], [_MEASURE]),
            *_difference(averages[name]),
            *_means(averages[name], measures),
        ]
        for name in names
    ]
    head = ["method", *(comparison["collection"]["name"] for comparison in collections), "macro average"]
    head += ["difference", "p", *(f"macro {measure}" for measure in measures)]
    return (
        f"## Macro average\n\n{_MEASURE} of {len(collections)} collections, which count alike. Differences from "
        f"{evaluation['baseline']}, {_PRECISION}; queries are resampled within their collection. Largest losses "
        f"first.\n\n{preformatted_table(head, rows)}"
    )


def _means(method: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    return [f"{method['means'][measure]:.3f}" for measure in measures]


def _difference(method: Mapping[str, Any]) -> list[str]:
    found = method["differences"].get(_MEASURE)
    if found is None:
        return ["baseline", ""]
    return [f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]", f"{found['p_holm']:.4f}"]


def _costs(costs: Mapping[str, Any], shared: Mapping[str, float], queries: int) -> list[str]:
    seconds = costs["seconds"]
    spent = sum(seconds.get(part, 0.0) for part in ("weigh_queries", "score", "fuse"))
    spent += shared["encode_queries"] * costs["forward_passes"]
    return [
        *("" if costs[key] is None else f"{costs[key]:.0f}" for key in ("document_active_dims", "query_active_dims")),
        f"{costs['index_bytes'] / 1e6:.1f}",
        str(costs["forward_passes"]),
        f"{1000 * spent / queries:.2f}",
        *(f"{seconds[part]:.2f}" if part in seconds else "" for part in _PARTS),
        str(costs["queries_without_terms"]),
    ]
