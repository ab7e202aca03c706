"""docs/results/quality-tokens.md, from the JSON files that quality_tokens.py wrote.

python examples/benchmarks/quality_tokens_page.py
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import ablation_tables
import calibration
from quality_tokens import minutes

from st_keytokens.shared.markdown import preformatted_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
MODELS = {"tiny-embedder": "quality-tokens-tiny-embedder", "all-MiniLM-L6-v2": "quality-tokens-all-minilm-l6-v2"}
HYBRID = "dense+key-tokens-lookup-adaptive"  # what HybridIndex did by default


def scores(found: dict[str, Any]) -> dict[str, list[float]]:
    """nDCG@10 of each method: of each collection, then the macro average."""
    collections = found["collections"]
    rows = {name: [c["methods"][name]["means"]["nDCG@10"] for c in collections] for name in collections[0]["methods"]}
    return {name: [*values, sum(values) / len(values)] for name, values in rows.items()}


def table(names: list[str], rows: dict[str, list[float]]) -> list[str]:
    best = [max(column) for column in zip(*rows.values(), strict=True)]
    cells = [
        [name, *(f"**{v:.3f}**" if v == b else f"{v:.3f}" for v, b in zip(values, best, strict=True))]
        for name, values in rows.items()
    ]
    return preformatted_table(["nDCG@10", *names, "mean"], cells).splitlines()


def goals(rows: dict[str, list[float]]) -> list[str]:
    """What was to be reached, as figures."""
    ours, lookup, dense, bm25 = (rows[n] for n in ("key-tokens", "key-tokens-lookup", "dense", "bm25-tokens"))
    worst_ratio = min(o / d for o, d in zip(ours, dense, strict=True))
    worst_lookup = min(a - b for a, b in zip(lookup, bm25, strict=True))
    return [
        f"- with a pass for the query {ours[-1]:.4f}: {ours[-1] / max(dense[-1], bm25[-1]):.3f} of the better of "
        f"dense and BM25, {ours[-1] / dense[-1]:.3f} of dense, {ours[-1] / rows['nie2025'][-1]:.2f} of the paper's "
        f"method; on the worst collection {worst_ratio:.3f} of dense",
        f"- without one {lookup[-1]:.4f}: {lookup[-1] - bm25[-1]:+.4f} against BM25, on the worst collection "
        f"{worst_lookup:+.4f}",
        f"- documents pruned to 64 terms: {rows['key-tokens-64'][-1] / ours[-1]:.1%} of the unpruned",
    ]


def hybrid_goals(rows: dict[str, list[float]]) -> list[str]:
    """What a hybrid was to reach, as figures."""
    ours, lookup, dense = (rows[n] for n in (HYBRID, "key-tokens-lookup", "dense"))
    rivals = [name for name in rows if name.startswith("dense+bm25")]
    rival = max((name for name in rivals if not name.endswith("adaptive")), key=lambda name: rows[name][-1])
    likewise = max((name for name in rivals if name.endswith("adaptive")), key=lambda name: rows[name][-1])
    worst = min(h - max(d, p) for h, d, p in zip(ours[:-1], dense[:-1], lookup[:-1], strict=True))
    return [
        f"- {HYBRID} {ours[-1]:.4f}: {ours[-1] - rows[rival][-1]:+.4f} against {rival}, the best fusion that knows "
        f"nothing of the corpus, {ours[-1] - rows[likewise][-1]:+.4f} against {likewise}, the rival fused as ours; on "
        f"the worst collection {worst:+.4f} against the better of its own parts",
    ]


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def quality() -> list[str]:
    """The page's tables of each model."""
    page: list[str] = []
    for model, name in MODELS.items():
        found = read(name)
        names, rows = [c["collection"]["name"] for c in found["collections"]], scores(found)
        ordered = dict(sorted(rows.items(), key=lambda item: item[1][-1]))
        page += [f"### {model}", "", *table(names, ordered), "", *goals(rows), *hybrid_goals(rows), ""]
        page += [f"Everything, with significance and costs: [{name}.md]({name}.md).", ""]
    return page[:-1]


def with_tables(template: str, tables: dict[str, list[str]]) -> str:
    """A text beside this file, with tables in the place of the comments that name them."""
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    for name, lines in tables.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(lines))
    return text


def made_again() -> list[str]:
    """Commands, and of each file the commit, the machine and the time."""
    lines = [
        "",
        "## Made again",
        "",
        "```bash",
        *(
            f"python examples/benchmarks/quality_tokens.py DATA/collections/* --model {m} --cache vectors"
            for m in MODELS
        ),
        "python examples/benchmarks/bm25_terms.py DATA/collections/*",
        "python examples/benchmarks/calibration.py --output docs/results/calibration.json",
        *(
            f"python examples/benchmarks/{kind}.py DATA/collections/* --model {m} --cache vectors"
            for kind in ("ablation", "transfer")
            for m in MODELS
        ),
        "python examples/benchmarks/quality_tokens_page.py",
        "```",
        "",
        "The collections: [collections.md](../collections.md). Minutes are of the clock, beside other work. Where a",
        "cell is empty: calibration.py takes 4, ablation.py with the tiny embedder about 30, with all-MiniLM-L6-v2",
        "all take about twice as long.",
        "",
    ]
    rows = []
    for name in MODELS.values():
        found = read(name)
        made = found["environment"]
        rows.append(
            [name, made["date"][:10], made["commit"][:7], made["cpu"], f"{made['threads']}", f"{minutes(found):.0f}"]
        )
    others = [
        "bm25-terms",
        "calibration",
        *(f"{kind}-{m.lower()}" for kind in ("ablation", "transfer") for m in MODELS),
    ]
    for name in others:
        if (RESULTS / f"{name}.json").exists():
            env = read(name)["env"]
            took = f"{env['took_s'] / 60:.0f}" if "took_s" in env else ""
            rows.append([name, env["date"], env["commit"], env["processor"], f"{env['torch_threads']}", took])
    rows = [[f"[{row[0]}.json]({row[0]}.json)", *row[1:]] for row in rows]
    return [*lines, preformatted_table(["file", "date", "commit", "machine", "threads", "minutes"], rows, left=4)]


def measured(kind: str) -> dict[str, dict[str, Any]]:
    """What ablation.py or transfer.py wrote, by model; empty where it has not run."""
    names = {model: f"{kind}-{model.lower()}" for model in MODELS}
    return {model: read(name) for model, name in names.items() if (RESULTS / f"{name}.json").exists()}


def main() -> None:
    tables = quality()
    costs = calibration.table(read("calibration")["calibration"]).splitlines()
    bm25 = read("bm25-terms")["nDCG@10"]
    by_terms = table(list(bm25["words"]), {name: [*row.values(), fmean(row.values())] for name, row in bm25.items()})
    made = {"quality": tables, "calibration": costs, "bm25 terms": by_terms}
    page = with_tables("quality_tokens_page.md", made)
    if found := measured("ablation"):
        made = {"ablation": ablation_tables.ablation(found), "sensitivity": ablation_tables.sensitivity(found)}
        page += with_tables("quality_tokens_ablation.md", made)
    if found := measured("transfer"):
        made = {"transfer": ablation_tables.for_each(found, ablation_tables.transfer)}
        for part in ("curves", "small", "other_abstracts"):
            tables_of_part = partial(ablation_tables.by_count, part=part)
            made[part.replace("_", " ")] = ablation_tables.for_each(found, tables_of_part)
        page += with_tables("quality_tokens_transfer.md", made)
    page += "\n".join(made_again())
    (RESULTS / "quality-tokens.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
