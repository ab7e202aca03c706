"""docs/results/scale.md and its picture, from docs/results/scale.json, scale-10m.json and scale-filters.json.

python examples/benchmarks/scale_page.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_picture import NAMES, draw

from st_keytokens.shared.markdown import preformatted_table

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
FILES = ("scale", "scale-10m", "scale-filters")
NOISE = 1.3  # a rival that is better by less than this factor is not told from ours
MIB = 1 << 20


@dataclass(frozen=True)
class Measure:
    """A row of the tables: what it says, where in a side's results, times what, and whether more is better."""

    title: str
    path: tuple[str, str]
    factor: float = 1.0
    is_higher_better: bool = False

    def of(self, side: dict[str, Any]) -> float | None:
        value = side.get(self.path[0], {}).get(self.path[1])
        return None if value is None else value * self.factor


def _times(phase: str, what: str) -> list[Measure]:
    return [
        Measure(f"{what}: median, ms", (phase, "median_ms")),
        Measure(f"{what}: p99, ms", (phase, "p99_ms")),
        Measure(f"{what}: median of the processor, ms", (phase, "cpu_median_ms")),
        Measure(f"{what}: p99 of the processor, ms", (phase, "cpu_p99_ms")),
    ]


MEASURES = [
    Measure("build, s", ("build", "wall_s")),
    Measure("build, s of the processor", ("build", "cpu_s")),
    Measure("build, most memory, MiB", ("build", "peak_bytes"), 1 / MIB),
    Measure("on disk, MiB", ("build", "disk_bytes"), 1 / MIB),
    Measure("open, ms", ("open", "open_s"), 1e3),
    Measure("first query of a process, ms", ("open", "first_query_s"), 1e3),
    Measure("first query of a process, ms of the processor", ("open", "first_query_cpu_s"), 1e3),
    Measure("resident after all queries, MiB", ("memory", "resident"), 1 / MIB),
    Measure("of that without mapped files, MiB", ("memory", "anonymous"), 1 / MIB),
    *_times("short-1", "query, 1 thread"),
    *_times("short-2", "query, 2 threads at once")[:3],
    Measure("queries a second, 2 threads", ("short-2", "queries_a_second"), is_higher_better=True),
    *_times("default-1", "query with all the terms of the default"),
    *_times("half", "filter of 50 %, again"),
    *_times("percent", "filter of 1 %, again"),
    *_times("myriad", "filter of 0.01 %, again"),
    *_times("new", "filter of 1 %, a new one each time"),
    Measure("add 10,000, s", ("add", "wall_s")),
    Measure("add 10,000, s of the processor", ("add", "cpu_s")),
    Measure("delete 10,000, s", ("delete", "wall_s")),
    Measure("delete 10,000, s of the processor", ("delete", "cpu_s")),
    *_times("changed", "query after both"),
    Measure("compact, s", ("compact", "wall_s")),
    Measure("compact, s of the processor", ("compact", "cpu_s")),
    Measure("compact, most memory, MiB", ("memory_after_compacting", "peak"), 1 / MIB),
]


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(size: dict[str, Any]) -> list[str]:
    names = list(size["sides"])
    rows = []
    for measure in MEASURES:
        values = [measure.of(size["sides"][name]) for name in names]
        if any(value is not None for value in values):
            rows.append([measure.title, *map(number, values)])
    return preformatted_table(["", *(NAMES.get(name, name) for name in names)], rows).splitlines()


def compared(size: dict[str, Any], is_wanted: Callable[[float], bool]) -> list[str]:
    """Measures in which the best rival's ratio to ours is as wanted; above 1 the rival is better."""
    lines = []
    for measure in MEASURES:
        ours = measure.of(size["sides"]["index"])
        if not ours:
            continue
        found = []
        for name, side in size["sides"].items():
            theirs = measure.of(side)
            if name != "index" and not name.startswith("dense") and theirs is not None and theirs > 0:
                found.append((theirs / ours if measure.is_higher_better else ours / theirs, theirs, name))
        if found and is_wanted(max(found)[0]):
            ratio, theirs, name = max(found)
            lines.append(
                f"- {measure.title}: ours {number(ours)}, {NAMES[name]} {number(theirs)} "
                f"({f'{ratio:.1f} times better' if ratio > 1 else f'{1 / ratio:.1f} times worse'})"
            )
    return lines


def main() -> None:
    files = {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in FILES}
    found, env, filtered = files["scale"], files["scale"]["env"], files["scale-filters"]["sizes"]
    sizes, alone = found["sizes"], files["scale-10m"]["sizes"]
    largest = sizes[-1]
    statistics = largest["data"]
    template = Path(__file__).with_name("scale_page.md").read_text(encoding="utf-8")
    page = template.format(
        largest=f"{largest['documents']:,}",
        losses="\n".join(compared(largest, lambda ratio: ratio > NOISE)) or "None.",
        noise=NOISE,
        abstracts=f"{statistics['abstracts']:,}",
        correlation=f"{statistics['correlation_of_document_frequencies']:.4f}",
        commonest=f"{statistics['commonest_term_in_share_of_documents']:.0%}",
        words=f"{statistics['terms_that_occur']:,}",
        short_terms=f"{statistics['query_terms']['short']:.1f}",
        short_touched=f"{statistics['postings_touched_over_documents']['short']:.2f}",
        default_terms=f"{statistics['query_terms']['default']:.0f}",
        default_touched=f"{statistics['postings_touched_over_documents']['default']:.1f}",
        tables="\n".join(
            line for size in sizes + alone for line in (f"### {size['documents']:,} documents", "", *table(size), "")
        ).rstrip(),
        machine=f"{env['processor']}, {env['cores']} cores, Python {env['python']}, {env['date']}",
        rivals=", ".join(f"{name} {version}" for name, version in found["rivals"].items()),
        load=", ".join(f"{s['load_average_before']:.0f} to {s['load_average_after']:.0f}" for s in sizes),
        advice=advice(sizes + alone),
        filters="\n".join(line for size in filtered for line in filter_table(size)).rstrip(),
        made="; ".join(made(name, file) for name, file in files.items()),
    )
    (RESULTS / "scale.md").write_text(page, encoding="utf-8")
    draw(sizes, RESULTS / "scale.svg")


def made(name: str, file: dict[str, Any]) -> str:
    """When a file was made, at which commit, and in what time; at least that of building, where it was not kept."""
    env = file["env"]
    built = sum(side["build"]["wall_s"] for size in file["sizes"] for side in size.get("sides", {}).values())
    took = f"in {max(1, round(env['took_s'] / 60))}" if "took_s" in env else f"building alone in {round(built / 60)}"
    return f"[{name}.json]({name}.json) on {env['date']} at commit {env['commit']}, {took} minutes"


def filter_table(size: dict[str, Any]) -> list[str]:
    """What each kind of filter costs at a size."""
    columns = "the first, CPU ms | new, median ms | new, CPU ms | its p99 | first after a change, CPU ms"
    lines = [f"| {size['documents']:,} documents | {columns} |", "|---|---|---|---|---|---|"]
    for kind, times in size["filters"].items():
        changed = size["filters_after_a_change"][kind]["first_cpu_ms"]
        names = ("first_cpu_ms", "median_ms", "cpu_median_ms", "cpu_p99_ms")
        figures = [number(value) for value in (*(times[name] for name in names), changed)]
        lines.append(f"| {kind} | {' | '.join(figures)} |")
    return [*lines, ""]


def advice(sizes: list[dict[str, Any]]) -> str:
    """What ours costs at each size, in a sentence each."""
    lines = []
    for size in sizes:
        ours = size["sides"]["index"]
        new = f", with a filter that is new {number(ours['new']['cpu_median_ms'])} ms" if "new" in ours else ""
        lines.append(
            f"- {size['documents']:,} documents: a query takes {number(ours['short-1']['cpu_median_ms'])} ms{new}; "
            f"building {number(ours['build']['cpu_s'])} s, compacting {number(ours['compact']['cpu_s'])} s and "
            f"{number(ours['memory_after_compacting']['peak'] / MIB)} MiB (times of the processor)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
