"""docs/results/retrievers.md from the JSON file that retrievers.py wrote.

python examples/benchmarks/retrievers_page.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from environment import RESULTS

from st_keytokens.shared.markdown import preformatted_table

OURS = "KeyTokens"
SPARSE, HYBRID, LOOKUP = "KeyTokensRetriever", "KeyTokensHybridRetriever", "KeyTokensRetriever, lookup"
BM25 = "LlamaIndex", "BM25Retriever"
Row = dict[str, Any]
Runs = list[dict[str, Any]]

TOP = """# Retrievers side by side

Measured by `examples/benchmarks/retrievers.py`, one run for each embedder and collection, and written down by
`retrievers_page.py`. All runs are in `{name}.json`, with the versions, and with what was seen for each cell.

What is lost, first:
"""
QUALITY = """
## {embedder}

{parameters:.0f} million parameters, calibrated on the documents beforehand, which takes {calibration} s of the
processor with vectors that are there. {missing}nDCG@10, each asked through its framework's own call for ten hits:
"""
TIMES = """
What it takes. *Build*: seconds of the processor for a hundred documents, embedding and all, median of the collections,
over the first {built} of each. *Query*: the median over {timed} queries of the time beside that of LlamaIndex's
`BM25Retriever` for the same query, a moment apart, which itself takes {bm25} ms. *Open again*: from the folder to the
first answer, beside the same of that retriever.
"""
HOW = """
## How it was measured

{where}

Every retriever is asked for ten hits, all of them for one query in turn, each time another one first. A query that is
embedded takes one forward pass, and none is asked twice. Builds are timed over the first documents, which each one
embeds itself; then all are made of the whole collection with vectors that were embedded once. The machine has {cores}
cores and was shared with other work (load average at the end of a run: {load}), so only ratios of times count.
A long call is interrupted more often than a short one there, so the ratio of a query with a forward pass is an upper
bound: at a load of 1.2, on 2026-11-22, it was 10 with the tiny embedder on cranfield.
No difference of quality is tested for significance here; [quality.md](quality.md) does that.

*Lookup*: sparse queries without a forward pass, on the same index. BM25
retrievers are as they come: LlamaIndex's stems English words and leaves out stop words (bm25s), LangChain's splits at
white space (rank-bm25) and leaves the rest to its user. *Lower-cased words* gives it `\\w+` of the lower-cased text;
*stemmed words* leaves out the same stop words and stems by PyStemmer, as LlamaIndex's does. EnsembleRetriever fuses
the latter and an exact FAISS index of the same dense vectors, with equal weights; QueryFusionRetriever, without
generated questions, adds the relative scores of LlamaIndex's BM25Retriever and a VectorStoreIndex of them. Both take a
hundred hits of each side, as our hybrid retrievers do. LlamaIndex's holds PyStemmer below 3, so that words are stemmed
by {stemmer} here and by a newer one in [quality.md](quality.md), which changes ours by up to 0.002.

## What each can do

Every cell was found out by doing it, with the tiny embedder, through the calls that the framework has for it; a call
that it has not is a no.
"""
KINDS = """
*Persist with settings*: the same answers after loading, with settings that are not the defaults. *Async*: the event
loop goes on wherever a search computes. *Chinese*: the right text first, alone, for six words of six texts, with
nothing installed or set for Chinese. *Explanation*: with a hit come tokens whose numbers sum to one of its scores.

What an application needs over time, in five kinds of some checks each; a number is how many of them hold, and `-`
stands for a retriever that embeds nothing:
"""
END = """
A filter holds if no hit is one that it stops: LlamaIndex's `BM25Retriever`, given filters when it is made, fills up
with nodes that they stop, at a score of 0, where fewer than it is asked for have words of the query.

## Made again

For each collection and each embedder, then once for what each can do, and for the page. The collections:
[collections.md](../collections.md).

```bash
pip install -c constraints.txt -e ".[numba,evaluation]" -e integrations/langchain-keytokens \\
  -e integrations/llama-index-retrievers-keytokens \\
  langchain-classic langchain-community llama-index-retrievers-bm25 faiss-cpu
python examples/benchmarks/retrievers.py run --collection DATA/collections/cranfield --embedder MODEL --called NAME
python examples/benchmarks/retrievers.py features
python examples/benchmarks/retrievers_page.py
```

Made on {date} at commit {commit}, in {took} minutes.
"""


def rows_of(run: dict[str, Any]) -> dict[tuple[str, str], Row]:
    """The rows of a run by framework and name."""
    return {(row["framework"], row["name"]): row for row in run["retrievers"]}


def between(values: list[float], form: str = ".0f") -> str:
    """The smallest and the largest as text; one where they read the same."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def losses(runs: Runs, features: dict[str, Any]) -> list[str]:
    """What ours do worse than what there is, as figures; a line only where they do."""
    sparse, hybrid, lookup, bm25 = (
        [rows_of(run)[key] for run in runs]
        for key in (("LlamaIndex", SPARSE), ("LlamaIndex", HYBRID), ("LlamaIndex", LOOKUP), BM25)
    )
    builds = [a["build_processor_s"] / b["build_processor_s"] for a, b in zip(sparse, bm25, strict=True)]
    shares = [100 * row["passes_processor_s"] / row["build_processor_s"] for row in sparse]
    lines = [
        f"- **A build embeds every document**: {between(builds)} times the processor time of LlamaIndex's BM25, of "
        f"which the transformer takes {between(shares)}%. The calibration before it is in no row."
    ]
    ratios = [[row["median_ratio"] for row in rows] for rows in (sparse, hybrid, lookup)]
    if max(map(max, ratios)) > 1:
        lines.append(
            f"- **A query that takes a forward pass** takes {between(ratios[0])} times as long as in LlamaIndex's "
            f"BM25, a hybrid one {between(ratios[1])} times, one by lookup {between(ratios[2], '.1f')} times."
        )
    openings = [a["open_s"] / b["open_s"] for a, b in zip(sparse, bm25, strict=True)]
    if max(openings) > 1:
        lines.append(f"- **Opening again** takes {between(openings, '.1f')} times as long.")
    for name, rows in ((SPARSE, sparse), (LOOKUP, lookup), (HYBRID, hybrid)):
        found = []
        for run, row in zip(runs, rows, strict=True):
            best = max((r for r in run["retrievers"] if not r["name"].startswith(OURS)), key=lambda r: r["ndcg@10"])
            if row["ndcg@10"] < best["ndcg@10"]:
                found.append(
                    f"{run['collection']} with {run['embedder']}, {row['ndcg@10']:.3f} against {best['ndcg@10']:.3f} "
                    f"of {best['framework']}'s {best['name'].split(':')[0]}"
                )
        if found:
            lines.append(f"- **`{name}`** finds less than the best of the others on {'; '.join(found)}.")
    behind = [
        f"{run['collection']} with {run['embedder']}, {row['ndcg@10']:.3f} against {best:.3f}"
        for run, row, a, b in zip(runs, hybrid, sparse, lookup, strict=True)
        if row["ndcg@10"] < (best := max(a["ndcg@10"], b["ndcg@10"]))
    ]
    if behind:
        lines.append(f"- **The hybrid finds less than its sparse side alone** on {'; '.join(behind)}.")
    for feature in features["contenders"]:
        missing = [name for name, seen in feature["probes"].items() if seen["cell"] == "no"]
        for seen in feature["kinds"].values():
            missing += [
                f"{name} ({check['evidence']})" for name, check in seen["checks"].items() if check["cell"] == "no"
            ]
        if feature["name"].startswith(OURS) and missing:
            lines.append(f"- **`{feature['name']}`** of {feature['framework']} cannot: {', '.join(missing)}.")
    return lines


def quality(runs: Runs) -> list[str]:
    """nDCG@10 of one embedder, a column for each collection, the worst mean first."""
    keys = sorted(rows_of(runs[0]), key=lambda key: statistics.fmean(rows_of(run)[key]["ndcg@10"] for run in runs))
    rows = [[*key, *(f"{rows_of(run)[key]['ndcg@10']:.3f}" for run in runs)] for key in keys]
    head = ["framework", "retriever", *(run["collection"] for run in runs)]
    return preformatted_table(head, rows, left=2).splitlines()


def times(runs: Runs) -> list[str]:
    """What a build, a query and an opening take with one embedder."""
    rows = []
    for key in sorted(rows_of(runs[0]), key=lambda key: rows_of(runs[0])[key]["median_ratio"]):
        found, bm25 = [rows_of(run)[key] for run in runs], [rows_of(run)[BM25] for run in runs]
        build, again = "the same", "cannot"
        if found[0]["build_s"] is not None:
            pairs = zip(found, runs, strict=True)
            seconds = statistics.median(100 * row["build_processor_s"] / run["built_documents"] for row, run in pairs)
            build = f"{seconds:.2f}"
        if found[0]["open_s"] is not None:
            ratios = [row["open_s"] / other["open_s"] for row, other in zip(found, bm25, strict=True)]
            again = f"{statistics.median(ratios):.1f}"
        rows.append([*key, build, *(f"{row['median_ratio']:.1f}" for row in found), again])
    head = ["framework", "retriever", "build, s", *(f"query, {run['collection']}" for run in runs), "open again"]
    return preformatted_table(head, rows, left=2).splitlines()


def features_table(features: dict[str, Any], what: str) -> list[str]:
    """The cells of all probes or kinds."""
    names = list(features["contenders"][0][what])
    rows = [
        [feature["framework"], feature["name"], *(feature[what][name]["cell"] for name in names)]
        for feature in features["contenders"]
    ]
    return preformatted_table(["framework", "retriever", *names], rows, left=None).splitlines()


def kinds_explained(features: dict[str, Any]) -> list[str]:
    """What the checks of each kind are, for both frameworks."""
    lines = [""]
    for kind in features["contenders"][0]["kinds"]:
        names: dict[str, set[str]] = {}
        for feature in features["contenders"]:
            for name in feature["kinds"][kind]["checks"]:
                names.setdefault(name, set()).add(feature["framework"])
        parts = [name if len(where) > 1 else f"{name} ({min(where)})" for name, where in names.items()]
        lines.append(f"- *{kind[0].upper()}{kind[1:]}*: {'; '.join(parts)}.")
    return lines


def where(runs: Runs) -> str:
    """The collections and the machine."""
    seen = {}
    for run in runs:
        queries = f"{run['queries']:,}"
        if run["queries"] < run["queries_of"]:
            queries += f" of {run['queries_of']:,} queries, the first by the SHA-256 of their ids"
        else:
            queries += " queries"
        seen[run["collection"]] = f"{run['collection']}, {run['documents']:,} documents, {queries}"
    env = runs[-1]["env"]
    dates = sorted({run["env"]["date"] for run in runs})
    machine = f"{env['processor']}, {runs[0]['threads']} thread, Python {env['python']}, {' and '.join(dates)}"
    return f"{'; '.join(seen.values())}. {machine}."


def page(results: dict[str, Any], name: str) -> str:
    """The results as Markdown."""
    runs, features = results["runs"], results["features"]
    embedders = list(dict.fromkeys(run["embedder"] for run in runs))
    lines = [TOP.format(name=name), *losses(runs, features)]
    for embedder in embedders:
        of = [run for run in runs if run["embedder"] == embedder]
        bm25 = [rows_of(run)[BM25]["median_ms"] for run in of]
        calibration = between([run["calibration_processor_s"] for run in of])
        parameters = of[0]["parameters"] / 1e6
        collections = list(dict.fromkeys(run["collection"] for run in runs))
        left = [name for name in collections if name not in {run["collection"] for run in of}]
        missing = f"Not run on {' and '.join(left)}. " if left else ""
        filled = QUALITY.format(embedder=embedder, parameters=parameters, calibration=calibration, missing=missing)
        lines += [filled, *quality(of)]
        built = between([run["built_documents"] for run in of])
        timed = between([run.get("timed_queries", run["queries"]) for run in of])
        lines += [TIMES.format(built=built, timed=timed, bm25=between(bm25, ".1f")), *times(of)]
    loads = [run["env"]["load_average"] for run in runs]
    stemmer = " and ".join(sorted({f"PyStemmer {run['versions']['PyStemmer']}" for run in runs}))
    cores = runs[0]["env"]["cores"]
    lines += [HOW.format(where=where(runs), cores=cores, load=between(loads, ".1f"), stemmer=stemmer)]
    lines += [*features_table(features, "probes"), KINDS, *features_table(features, "kinds")]
    environments = [run["env"] for run in runs]
    took = f"{sum(env['took_s'] for env in environments) / 60:.0f}"
    made = {name: " and ".join(sorted({env[name] for env in environments})) for name in ("date", "commit")}
    return "\n".join([*lines, *kinds_explained(features), END.format(**made, took=took)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="retrievers", help="of the file in docs/results")
    options = parser.parse_args()
    results = json.loads((RESULTS / f"{options.name}.json").read_text(encoding="utf-8"))
    path = RESULTS / f"{options.name}.md"
    path.write_text(page(results, options.name), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
