"""The tables of docs/results/reproduction.md. They stand between comments; the text around them is written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from st_keytokens.shared.markdown import preformatted_table

Found = dict[str, Any]


def filled(page: str, results: dict[str, Any]) -> str:
    """The page with its tables made anew."""
    models: dict[str, Found] = results["models"]
    tables = {
        "claims": _claims(models),
        "alignment": _alignment(models),
        "components": _components(models),
        "variation": _variation(models),
        "retrieval": _retrieval(models),
        "instructions": _instructions(models),
        "negation": _negation(models),
        "made": _made(results),
    }
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- {name}: begin -->\n)(?:.*?)(<!-- {name}: end -->)", re.DOTALL)
        page, count = mark.subn(lambda found, table=table: f"{found[1]}\n{table}\n{found[2]}", page)
        if count != 1:
            raise ValueError(f"the page must have a place for the table {name}, got {count}.")
    return page


def _value(found: Found, kind: str, row: str, measure: str) -> float:
    value = found["alignment"][kind]["rows"][row]
    return float((value["hits"]["10"] if measure == "hit" else value[f"{measure}_alignment_rate"])["value"])


def _claims(models: dict[str, Found]) -> str:
    def each(value: Callable[[Found], str]) -> list[str]:
        return [value(found) for found in models.values()]

    def hits(found: Found) -> str:
        ours, baseline = (_value(found, "as published", row, "hit") for row in ("embedder, raw", "frequency baseline"))
        return f"{'yes' if ours > 0.95 else 'no'}: {ours:.3f} (frequency: {baseline:.3f})"

    def content(found: Found) -> str:
        ours, baseline = (
            _value(found, "content terms", row, "local") for row in ("embedder, corrected", "frequency baseline")
        )
        return f"{'yes' if ours > baseline else 'no'}: {ours:.3f} (frequency: {baseline:.3f})"

    def tuned(found: Found) -> str:
        if "variation" not in found["spectrum"]:
            return ""
        after, before = (_value(found, "as published", f"{name}, raw", "global") for name in ("embedder", "backbone"))
        return f"{'yes' if after > before else 'no'}: {before:.3f} → {after:.3f}"

    def concentrated(found: Found) -> str:
        variation = found["spectrum"].get("variation")
        if variation is None:
            return ""
        first, other = abs(variation["v"][0]), variation["next_largest"]
        holds = variation["largest"] == 1 and first > 2 * other
        return f"{'yes' if holds else 'no'}: v₁ {variation['v'][0]:.2f}, next {other:.2f}"

    def feeds(found: Found) -> str:
        measured = found["spectrum"]["frequency_correlations"]
        correlations = measured.get("backbone", measured["embedder"])
        holds = correlations["first"] > max(0.2, correlations["rest"] + 0.1)
        return f"{'yes' if holds else 'no'}: {correlations['first']:.2f}, rest {correlations['rest']:.2f}"

    def shifted(found: Found) -> str:
        rows = found["spectrum"].get("shift")
        if rows is None:
            return ""
        before, after = (_shifted(rows["content terms"], shift, "local") for shift in (False, True))
        return f"{'yes' if after > before else 'no'}: {before:.3f} → {after:.3f}"

    def sparse(found: Found) -> str:
        plain, removed = (_share(found, method) for method in ("nie2025", "nie2025-remove"))
        return f"{'yes' if max(plain, removed) >= 0.8 else 'no'}: {plain:.0%}, corrected {removed:.0%}"

    rows = [
        ["Hit@10 near 100 %", *each(hits)],
        [
            "Key tokens, corrected, align better than the frequency baseline: local rate of content terms",
            *each(content),
        ],
        ["Contrastive training raises the global rate", *each(tuned)],
        ["Training changes the first component above all", *each(concentrated)],
        ["The backbone's first component feeds frequent tokens: rank correlation with frequency", *each(feeds)],
        ["Shifted by v₁, the backbone aligns: local rate of content terms", *each(shifted)],
        ["Key tokens alone retrieve 82 to 83 % of dense", *each(sparse)],
        [
            "Asked for the sentiment, key tokens name one: share of texts, beside the control",
            *each(_followed),
        ],
        ["“I do not like apple” decodes to a refusal", *each(_refused)],
    ]
    return preformatted_table(["claim", *models], rows, left=None)


def _shifted(rows: list[dict[str, Any]], is_shifted: bool, rate: str) -> float:
    row = next(row for row in rows if (row["shift"] != 0) == is_shifted)
    return float(row[f"{rate}_alignment_rate"]["value"])


def _share(found: Found, method: str) -> float:
    """The method's mean nDCG@10 as a share of dense."""
    rows = found["retrieval"].values()
    return sum(row[method] for row in rows) / sum(row["dense"] for row in rows)


def _followed(found: Found) -> str:
    rows = found["instructions"]["rows"]
    asked, control, none = (rows[name]["texts_with_sentiment"] for name in ("sentiment", "control", "none"))
    holds = asked >= max(control, none) + 0.5
    return f"{'yes' if holds else 'not shown'}: {asked:.0%} against {control:.0%}, {none:.0%} without a prompt"


def _refused(found: Found) -> str:
    likes, refuses, _ = found["negation"]["refusal"]
    new = [token for token in refuses if token not in likes]
    return f"yes: {', '.join(new)}" if new else "no"


def _alignment(models: dict[str, Found]) -> str:
    rows = []
    for name, found in models.items():
        for row in found["alignment"]["all terms"]["rows"]:
            kinds = ("as published", "all terms", "content terms")
            values = [_value(found, kind, row, m) for kind in kinds for m in ("hit", "local", "global")]
            rows.append([f"{name}: {row}", *(f"{value:.3f}" for value in values)])
    names = [f"{m}, {kind}" for kind in ("published", "clean", "content") for m in ("Hit@10", "local", "global")]
    return preformatted_table(["", *names], rows, left=None)


def _components(models: dict[str, Found]) -> str:
    rows = []
    for name, found in models.items():
        spectrum = found["spectrum"]
        for kind, correlations in spectrum["frequency_correlations"].items():
            numbers = [spectrum["first_share"][kind], correlations["first"], correlations["rest"]]
            most = " ".join(f"`{token.strip()}`" for token in spectrum["most_fed"][kind]["first"][:6])
            rows.append([f"{name}: {kind}", *(f"{number:.2f}" for number in numbers), most])
    return preformatted_table(["", "share", "first", "rest", "feeds most"], rows, left=None)


def _variation(models: dict[str, Found]) -> str:
    rows = []
    for name, found in models.items():
        if (variation := found["spectrum"].get("variation")) is None:
            continue
        numbers = [variation["v"][0], variation["next_largest"], variation["mean_projection"]]
        shares = [variation["mean_change_share"], variation["change_share"]]
        arrows = [
            " → ".join(f"{_shifted(found['spectrum']['shift'][kind], shift, rate):.3f}" for shift in (False, True))
            for kind in ("all terms", "content terms")
            for rate in ("local", "global")
        ]
        rows.append([name, *(f"{n:.2f}" for n in numbers), *(f"{share:.0%}" for share in shares), *arrows])
    names = ["v₁", "next", "mean projection", "of mean change", "of changes"]
    rates = ["local", "global", "local, content", "global, content"]
    return preformatted_table(["", *names, *rates], rows, left=None)


def _retrieval(models: dict[str, Found]) -> str:
    collections, methods = list(next(iter(models.values()))["retrieval"]), ("dense", "nie2025", "nie2025-remove")
    rows = []
    for name, found in models.items():
        values = [f"{found['retrieval'][c][m]:.3f}" for c in collections for m in methods]
        rows.append([name, *values, *(f"{_share(found, method):.0%}" for method in methods[1:])])
    names = [f"{c}: {m}" for c in collections for m in ("dense", "the paper's method", "corrected")]
    return preformatted_table(["", *names, "of dense", "corrected"], rows, left=None)


def _instructions(models: dict[str, Found]) -> str:
    rows = []
    for name, found in models.items():
        for prompt, row in found["instructions"]["rows"].items():
            first = " ".join(f"`{token.strip()}`" for token in row["first_text"][:8])
            numbers = [f"{row['kept']:.0%}", f"{row['cosine']:.2f}", f"{row['texts_with_sentiment']:.0%}"]
            rows.append([f"{name}: {prompt}", *numbers, first])
    return preformatted_table(["", "kept", "cosine", "sentiment", "key tokens"], rows, left=None)


def _negation(models: dict[str, Found]) -> str:
    rows = []
    for name, found in models.items():
        likes, refuses, _ = (
            " ".join(f"`{token.strip()}`" for token in row[:8]) for row in found["negation"]["key_tokens"]
        )
        rows.append([name, *(f"{cosine:.2f}" for cosine in found["negation"]["cosines"]), likes, refuses])
    return preformatted_table(["", "not like", "banana", "I like apple", "I do not like apple"], rows, left=None)


def _made(results: dict[str, Any]) -> str:
    environment = results["environment"]
    minutes = round(sum(found["seconds"] for found in results["models"].values()) / 60)
    return (
        f"Made {environment['date']} at commit {environment['commit']} on {environment['processor']}, {minutes} min "
        "of one core beside other work. All figures: [reproduction.json](reproduction.json).\n"
    )
