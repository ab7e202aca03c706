"""The page of reliability.py's figures."""

from __future__ import annotations

from typing import Any

TITLES = {
    "copies": "A copy (`copy_index`, `persist`) killed before any of its file operations: the old index or the new",
    "writers": "A writer killed at a random moment: what was acknowledged is there, the change under way whole or not",
    "interrupts": "An exception thrown into any kind of change: the lock is free, the handle works, nothing half done",
    "flips": "One bit flipped in a file of an index: `verify()` finds it, or no answer changes",
    "operations": "Random operations, compared with a dictionary and a plain loop after each",
    "files": "A file with bytes altered: what was written comes back, or the documented error",
}
DETAILS = ("left", "killed_in", "audit", "lines", "found_by_verify", "without_effect", "same", "other", "refused")


def page(results: dict[str, Any]) -> str:
    """Markdown; losses first."""
    parts, env = results["parts"], results["env"]
    known = [name for name in TITLES if name in parts]
    losses = [(name, loss) for name in known for loss in parts[name]["losses"]]
    trials = sum(parts[name]["trials"] for name in known)
    lines = [
        "# What an index survives",
        "",
        f"**{len(losses)} loss{'' if len(losses) == 1 else 'es'} in {trials:,} trials.**",
        "",
    ]
    lines += [f"- {name}: {loss}" for name, loss in losses]
    lines += [""] if losses else []
    lines += ["| | trials | losses | how they ended | seconds |", "|---|---|---|---|---|"]
    for name in known:
        part = parts[name]
        ended = "; ".join(f"{key.replace('_', ' ')}: {_shown(part[key])}" for key in DETAILS if key in part)
        mark = " (quick)" if part["is_quick"] else ""
        lines.append(
            f"| {TITLES[name]}{mark} | {part['trials']:,} | {len(part['losses'])} | {ended} | {part['seconds']:,.0f} |"
        )
    if "files" in parts:
        lines += ["", "## Kinds of files", "", "| kind | as written | other | refused |", "|---|---|---|---|"]
        for kind, outcome in parts["files"]["kinds"].items():
            lines.append(f"| {kind} | {outcome['same']:,} | {outcome['other']:,} | {outcome['refused']:,} |")
        lines += [
            "",
            "`other`, another answer than was written, is possible only where a file has no checksum: npy, Parquet, "
            "Arrow and FAISS files, which users bring; shards that are read without verifying them, or that "
            "another writer left; arrays of an index before `verify()`; and settings as earlier versions wrote them.",
        ]
    if "costs" in parts:
        lines += _costs(parts["costs"])
    if "filters" in parts:
        lines += _filters(parts["filters"])
    made = {name: part.get("made", env) for name, part in parts.items()}
    runs = ", ".join(f"{name} at {run['commit']} (load {run['load_average']})" for name, run in made.items())
    minutes = sum(part["seconds"] for part in parts.values()) / 60
    lines += [
        "",
        "## Made again",
        "",
        "```bash",
        "python examples/benchmarks/reliability.py",
        "```",
        "",
        f"Made on {env['cores']} cores of {env['processor']} in {minutes:.0f} minutes beside other work, up to "
        f"{env['date']}, each part at a commit: {runs}. All figures: [reliability.json](reliability.json).",
    ]
    return "\n".join(lines) + "\n"


def _costs(costs: dict[str, Any]) -> list[str]:
    lines = ["", "## Costs", ""]
    for name in ("single adds", "one id again", "an add beside deleted rows"):
        points = costs[name]
        first = "deleted" if "deleted" in points[0] else "changes"
        lines += [
            f"Milliseconds of a commit, {name}:",
            "",
            f"| {first} | median | mean | worst |",
            "|---|---|---|---|",
        ]
        lines += [f"| {p[first]:,} | {p['median_ms']} | {p['mean_ms']} | {p['worst_ms']} |" for p in points]
        lines += [""]
    return lines[:-1]


def _filters(new: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"A search of {new['documents']:,} documents with a filter that is new, in milliseconds of the processor "
        f"({new['search_ms']} without one); the first of its keys reads columns from the disk:",
        "",
        "| filter | first | second | later, median |",
        "|---|---|---|---|",
    ]
    names = [name.removesuffix(", first_ms") for name in new if name.endswith(", first_ms")]
    keys = {name: (f"{name}, first_ms", f"{name}, second_ms", f"{name}_ms") for name in names}
    return [*lines, *(f"| {name} | {' | '.join(str(new[key]) for key in keys[name])} |" for name in names)]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_shown(item)} {key.replace('_', ' ')}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
