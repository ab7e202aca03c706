"""Tables of what ablation.py and transfer.py measured, for the page about quality."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from st_keytokens.shared.markdown import preformatted_table


def macro(values: dict[str, dict[str, float]], key: str = "nDCG@10") -> float:
    """Mean over collections."""
    return fmean(value[key] for value in values.values())


def ablation(results: dict[str, dict[str, Any]]) -> list[str]:
    """Ingredients off, one at a time, for each model.

    Args:
        results: What ablation.py wrote, by model.
    """
    variants = {model: found["variants"] for model, found in results.items()}
    first = next(iter(variants.values()))
    collections = ", ".join(first["default"])
    names = [name for name in first if " = " not in name]
    rows = [[name, *(_cell(found, name) for found in variants.values())] for name in names]
    return [
        f"Macro nDCG@10 over {collections}; the difference from the default in brackets.",
        "",
        *preformatted_table(["", *variants], rows).splitlines(),
    ]


def sensitivity(results: dict[str, dict[str, Any]]) -> list[str]:
    """Every constant over its range, for each model; the default has the difference 0."""
    variants = {model: found["variants"] for model, found in results.items()}
    names = [name for name in next(iter(variants.values())) if " = " in name]
    settings = list(dict.fromkeys(name.split(" = ")[0] for name in names))
    rows = []
    for setting in settings:
        for model, found in variants.items():
            default = macro(found["default"])
            cells = [
                f"{name.split(' = ')[1]}: {macro(found[name]) - default:+.4f}"
                for name in names
                if name.split(" = ")[0] == setting
            ]
            rows.append([f"{setting}, {model}", ", ".join(cells)])
    return preformatted_table(["", "value: difference in macro nDCG@10"], rows, left=None).splitlines()


def transfer(found: dict[str, Any]) -> list[str]:
    """nDCG@10 of each collection, by rows, with the calibration of each, by columns; ridge decoder and LM head."""
    names = list(found["transfer"])
    lines = []
    for decoder, title in (("ridge", "ridge decoder"), ("lm_head", "LM head")):
        rows = []
        for name in names:
            row = found["transfer"][name]
            cells = [f"{row[source][decoder]:.3f}" for source in names]
            rows.append([name, *cells, f"{row['none']['lm_head']:.3f}"])
        table = preformatted_table([f"{title}: searched \\ calibrated on", *names, "none"], rows)
        lines += [*table.splitlines(), ""]
    return lines[:-1]


def by_count(found: dict[str, Any], part: str) -> list[str]:
    """nDCG@10 of a part that transfer.py measured by the number of documents; nothing where it was not measured."""
    measured: dict[str, dict[str, dict[str, float]]] = found[part]
    counts = sorted({int(count) for values in measured.values() for count in values})
    if not counts:
        return []
    head = ["ridge decoder / LM head (unshrunk)", *(f"{count:,}" for count in counts)]
    rows = [[name, *(_decoders(values.get(str(count))) for count in counts)] for name, values in measured.items()]
    return preformatted_table(head, rows).splitlines()


def for_each(results: dict[str, dict[str, Any]], tables: Callable[[dict[str, Any]], list[str]]) -> list[str]:
    """The tables of each model under its name."""
    lines: list[str] = []
    for model, found in results.items():
        if made := tables(found):
            lines += [f"{model}:", "", *made, ""]
    return lines[:-1]


def _decoders(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    unshrunk = f" ({found['unshrunk']:.3f})" if "unshrunk" in found else ""
    return f"{found['ridge']:.3f} / {found['lm_head']:.3f}{unshrunk}"


def _cell(found: dict[str, Any], name: str) -> str:
    value = macro(found[name])
    return f"{value:.4f}" if name == "default" else f"{value:.4f} ({value - macro(found['default']):+.4f})"
