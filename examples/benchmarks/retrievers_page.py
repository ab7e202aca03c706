"""docs/results/retrievers.md from the JSON files that retrievers.py wrote, the first one in full.

python examples/benchmarks/retrievers_page.py retrievers retrievers-cranfield
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from environment import RESULTS

from st_keytokens.shared.markdown import preformatted_table

OURS = "KeyTokens"
SPARSE, HYBRID, LOOKUP = "KeyTokensRetriever", "KeyTokensHybridRetriever", "KeyTokensRetriever, lookup"

TOP = """# Retrievers side by side

Measured by `examples/benchmarks/retrievers.py`, one run for each collection, and written down by `retrievers_page.py`.
Embedder: {embedder}, calibrated on the documents beforehand.

{where}

What is lost, first:
"""
MORE = """
## {collection}

{where}
"""
WHERE = """{collection}: {documents:,} documents, {queries:,} queries. {processor}, {threads} thread, Python {python},
{date}; versions are in `{name}.json`. Load average of the {cores} cores at the end: {load_average}."""
TIMES = """
Every retriever is asked through its framework's own call for ten hits, all of them for one query in turn, each time
another one first. A query that is embedded takes one forward pass, and none is asked twice. The machine was shared
with other work, so milliseconds are those of this run and no others: a build is in seconds of the processor, and
*ratio* is the median over the queries of the time beside that of LlamaIndex's `BM25Retriever` for the same query, a
moment apart. *Open again* is the median of seven, from the folder to the first answer. *Lookup*: sparse queries
without a forward pass, on the same index. BM25 retrievers are as they come: LlamaIndex's stems English words and
leaves out stop words (bm25s), LangChain's splits at white space (rank-bm25) and leaves the rest to its user;
*lower-cased words* gives it `\\w+` of the lower-cased text. Its EnsembleRetriever fuses these and an exact FAISS index
of the same dense vectors, a hundred hits of each, as the hybrid retrievers do.

What each can do. Every cell was found out by doing it, through the calls that the framework has for it; what was seen
is in `{name}.json`.
"""
END = """
*Persist with settings*: the same answers after loading, with settings that are not the defaults. *Async*: the event
loop goes on wherever a search computes. *Chinese*: the right text first, alone, for six words of six texts, with
nothing installed or set for Chinese. *Explanation*: with a hit come tokens whose numbers sum to one of its scores.
"""


def losses(results: dict[str, Any]) -> list[str]:
    """What ours do worse than what there was, as figures; a line only where they do."""
    rows = {(row["framework"], row["name"]): row for row in results["retrievers"]}
    sparse, hybrid, lookup = (rows["LlamaIndex", name] for name in (SPARSE, HYBRID, LOOKUP))
    bm25 = rows["LlamaIndex", "BM25Retriever"]
    best = max((row for row in rows.values() if not row["name"].startswith(OURS)), key=lambda row: row["ndcg@10"])
    times = sparse["build_processor_s"] / bm25["build_processor_s"]
    share = sparse["passes_processor_s"] / sparse["build_processor_s"]
    lines = [
        f"- **A build embeds every document**: {times:.0f} times the processor time of LlamaIndex's BM25. The "
        f"transformer, of 7 million parameters here, takes {share:.0%} of it, which grows with the model. The "
        f"calibration before it, which no row counts, takes {results['calibration_processor_s']:.0f} s more."
    ]
    if sparse["median_ratio"] > 1:
        lines.append(
            f"- **A query that takes a forward pass** takes {sparse['median_ratio']:.1f} times as long as in "
            f"LlamaIndex's BM25, a hybrid one {hybrid['median_ratio']:.1f} times, one by lookup "
            f"{lookup['median_ratio']:.1f} times."
        )
    if sparse["open_s"] > bm25["open_s"]:
        lines.append(f"- **Opening again** takes {sparse['open_s'] / bm25['open_s']:.1f} times as long.")
    for row in (sparse, hybrid, lookup):
        if row["ndcg@10"] < best["ndcg@10"]:
            lines.append(
                f"- **`{row['name']}`** finds less than {best['framework']}'s {best['name']}: nDCG@10 "
                f"{row['ndcg@10']:.3f} against {best['ndcg@10']:.3f}."
            )
    if hybrid["ndcg@10"] < sparse["ndcg@10"]:
        lines.append(
            f"- **The hybrid loses to its own sparse side**, {hybrid['ndcg@10']:.3f} against {sparse['ndcg@10']:.3f}: "
            "this embedder's dense vectors are weak. How it is with a stronger one is in [quality.md](quality.md)."
        )
    for feature in results["features"]:
        missing = [name for name, seen in feature["probes"].items() if seen["cell"] == "no"]
        if feature["name"].startswith(OURS) and missing:
            lines.append(f"- **`{feature['name']}`** of {feature['framework']} cannot: {', '.join(missing)}.")
    return lines


def times(results: dict[str, Any]) -> list[str]:
    """Quality and times as a table, worst quality first."""
    head = ["framework", "retriever", "nDCG@10", "build, s", "query, median ms", "p95 ms", "ratio", "open again, s"]
    rows = []
    for row in sorted(results["retrievers"], key=lambda row: row["ndcg@10"]):
        again = "cannot" if row["open_s"] is None else f"{row['open_s']:.3f}"
        build = "the same" if row["build_s"] is None else f"{row['build_processor_s']:.1f}"
        query = [f"{row[key]:.1f}" for key in ("median_ms", "p95_ms", "median_ratio")]
        rows.append([row["framework"], row["name"], f"{row['ndcg@10']:.3f}", build, *query, again])
    return ["", *preformatted_table(head, rows, left=2).splitlines()]


def features(results: dict[str, Any]) -> list[str]:
    """What each can do, as a table."""
    names = list(results["features"][0]["probes"])
    rows = [
        [feature["framework"], feature["name"], *(feature["probes"][name]["cell"] for name in names)]
        for feature in results["features"]
    ]
    return preformatted_table(["framework", "retriever", *names], rows, left=None).splitlines()


def page(results: list[dict[str, Any]]) -> str:
    """The results as Markdown: the first collection in full, and what the others change."""
    first, *others = [{**each["env"], **each} for each in results]
    where = [WHERE.format(**each) for each in (first, *others)]
    lines = [TOP.format(**first, where=where[0]), *losses(first), *times(first), TIMES.format(**first)]
    lines += [*features(first), END]
    for each, here in zip(others, where[1:], strict=True):
        lines += [MORE.format(**each, where=here), *losses(each), *times(each), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["retrievers"], help="of the files in docs/results")
    options = parser.parse_args()
    results = []
    for name in options.names:
        read = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        results.append({**read, "name": name})
    path = RESULTS / f"{options.names[0]}.md"
    path.write_text(page(results), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
