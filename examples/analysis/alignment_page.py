"""docs/results/alignment.md, from what alignment.py measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from st_keytokens.analysis import AlignmentComparison, KeyphraseComparison
from st_keytokens.evaluation import bootstrap_interval
from st_keytokens.shared.markdown import preformatted_table

BASELINE = "frequency baseline"
PAIRS = [  # whose local alignment rates are compared on the same texts
    ("embedder, raw", BASELINE),
    ("embedder, corrected", BASELINE),
    ("embedder, standardized", BASELINE),
    ("embedder, corrected", "embedder, raw"),
    ("embedder, standardized", "embedder, corrected"),
    ("embedder, raw", "backbone, raw"),
    ("embedder, corrected", "backbone, corrected"),
    ("backbone, corrected", "backbone, raw"),
]


class Claim(NamedTuple):
    """What the paper, or this library, says; whether it is so here; and the numbers."""

    text: str
    holds: bool
    numbers: str


def differences(comparison: AlignmentComparison) -> dict[str, dict[str, float]]:
    """Local alignment rates of pairs of rows on the same texts: the mean difference and its interval."""
    rows, found = comparison.rows, {}
    for ours, theirs in PAIRS:
        if ours in rows and theirs in rows:
            a, b = (rows[name].per_text.local_alignment_rates for name in (ours, theirs))
            low, high = bootstrap_interval(a, b, samples=1000)
            found[f"{ours} - {theirs}"] = {"mean": float((a - b).mean()), "low": low, "high": high}
    return found


def page(
    found: Mapping[str, Mapping[str, AlignmentComparison]],
    phrases: dict[str, Any] | None,
    ending: str,
    held: int,
    other: int,
) -> str:
    """The page as Markdown, what does not reproduce first."""
    return "\n".join(
        [
            _head(held, other, has_encoder=len(found) > 1),
            *_claims(found, phrases),
            *_measurements(found),
            *_keyphrases(phrases),
            _limits(has_encoder=len(found) > 1),
            ending,
        ]
    )


def _head(held: int, other: int, *, has_encoder: bool) -> str:
    also = "; and on all-MiniLM-L6-v2, decoded by its input embeddings" if has_encoder else ""
    return (
        "# Alignment, measured\n\n"
        "Do embeddings decode to the tokens of their texts? Hit@k, local and global alignment rates of Nie et al. "
        f"2025, on the [tiny embedder](../../examples/tiny-embedder/README.md) and its backbone{also}. "
        f"{held:,} arXiv abstracts that neither tiny model was trained on; first components and logit statistics are "
        f"of {other:,} other ones. Rates with 95 % intervals over texts "
        "(bootstrap; jackknife for the global rate). Terms are tokens folded over case and space unless a heading "
        "says raw. *raw*: logits as the LM head gives them; *corrected*: without the first component; *standardized*: "
        "that, in standard deviations of each token's logit over the other abstracts. The *frequency baseline* looks "
        "at no text: it answers each with the terms that occur in most of them. share@k is own terms among the "
        "first k over min(k, own terms). The published code's own definitions, with their caps and special tokens, "
        "are measured beside the clean ones.\n\n"
        "![Shares by k](alignment.svg)\n\n![Rates](alignment-rates.svg)\n"
    )


def _claims(found: Mapping[str, Mapping[str, AlignmentComparison]], phrases: dict[str, Any] | None) -> list[str]:
    claims = [claim for group in found for claim in _claims_of(group, found[group])]
    if phrases is not None:
        claims += _phrase_claims(found, phrases["results"]["phrase"])
    blocks = []
    for heading, holds in (("What does not hold", False), ("What holds", True)):
        chosen = [claim for claim in claims if claim.holds == holds]
        if chosen:
            rows = [[claim.text, claim.numbers] for claim in chosen]
            blocks.append(f"## {heading}\n\n{preformatted_table(['', 'numbers'], rows, left=None)}")
    return blocks


def _claims_of(group: str, measured: Mapping[str, AlignmentComparison]) -> Iterator[Claim]:
    published = measured["as the published code"].rows
    raw, base = published["embedder, raw"].hits[10], published[BASELINE].hits[10]
    yield Claim(
        f"{group}: Hit@10 near 100 %, as published for all embedders (published definition)",
        raw.value > 0.95,
        f"{raw}; the frequency baseline: {base}",
    )
    yield Claim(
        f"{group}: Hit@10 above that of the frequency baseline (published definition)",
        raw.value > base.value,
        f"{raw} against {base}",
    )
    for kind in ("all terms", "content terms"):
        rows, apart = measured[kind].rows, differences(measured[kind])
        for variant in ("raw", "corrected", "standardized"):
            apart_here = apart[f"embedder, {variant} - {BASELINE}"]
            yield Claim(
                f"{group}: {variant} key tokens align better than the frequency baseline, local rate, {kind}",
                apart_here["low"] > 0,
                f"{rows[f'embedder, {variant}'].local_alignment_rate} against {rows[BASELINE].local_alignment_rate}; "
                f"difference {_interval(apart_here)}",
            )
        apart_here = apart["embedder, corrected - embedder, raw"]
        yield Claim(
            f"{group}: without the first component the local rate is higher, {kind}",
            apart_here["low"] > 0,
            f"difference {_interval(apart_here)}",
        )
        if "backbone, raw" in rows:
            tuned, before = (rows[name].global_alignment_rate for name in ("embedder, raw", "backbone, raw"))
            yield Claim(
                f"{group}: contrastive training raises the global rate, as published, {kind}",
                tuned.value > before.value,
                f"{before} → {tuned}",
            )
            apart_here = apart["embedder, raw - backbone, raw"]
            yield Claim(
                f"{group}: contrastive training raises the local rate, {kind}",
                apart_here["low"] > 0,
                f"difference {_interval(apart_here)}",
            )


def _phrase_claims(found: Mapping[str, Any], comparison: KeyphraseComparison) -> Iterator[Claim]:
    rows = comparison.rows
    for group, measured in found.items():
        prefix = f"{group}, embedder" if "backbone, raw" in measured["all terms"].rows else group
        ours = f"key tokens, standardized, {prefix}"
        for theirs, name in (
            ("TF-IDF", "TF-IDF"),
            (f"embedding similarity, {group}", "KeyBERT's embedding similarity"),
        ):
            a, b = (comparison.f1_of_texts[row][10] for row in (ours, theirs))
            low, high = bootstrap_interval(a, b, samples=1000)
            difference = {"mean": rows[ours][10]["f1"].value - rows[theirs][10]["f1"].value, "low": low, "high": high}
            yield Claim(
                f"{group}: standardized key tokens find people's key phrases better than {name}, F1@10",
                low > 0,
                f"{rows[ours][10]['f1']} against {rows[theirs][10]['f1']}; difference {_interval(difference)}",
            )


def _measurements(found: Mapping[str, Mapping[str, AlignmentComparison]]) -> Iterator[str]:
    for group, measurements in found.items():
        for name, comparison in measurements.items():
            rows = "".join(f"- {pair}: {_interval(value)}\n" for pair, value in differences(comparison).items())
            yield f"## {group}: {name}\n\n{comparison.table()}\nLocal alignment rate, differences:\n\n{rows}"


def _keyphrases(phrases: dict[str, Any] | None) -> Iterator[str]:
    if phrases is None:
        return
    yield (
        "## Key phrases\n\nPeople's key phrases of "
        f"{phrases['results']['phrase'].text_count:,} abstracts (Inspec). All rankings order the same candidates, "
        "runs of up to three words without a stop word. A word weighs its TF-IDF, or the mean score of its tokens "
        "among the decoded ones; a phrase weighs the sum over its words. *Embedding similarity* is KeyBERT's: the "
        "cosine of phrase and text. Words are compared casefolded. "
        f"{phrases['keyphrases_in_text']:.0%} of the key phrases occur in their text, which bounds recall.\n"
    )
    for unit, comparison in phrases["results"].items():
        yield f"### By {unit}\n\n{comparison.table()}"
    for group, share in phrases["keybert_agreement"].items():
        yield (
            f"KeyBERT's own package on the same candidates, first 50 texts, {group}: {share:.1%} of its ten first "
            "phrases are among the ten first by embedding similarity.\n"
        )


def _limits(*, has_encoder: bool) -> str:
    also = ", and an encoder without its own LM head" if has_encoder else ""
    return (
        "## Limits\n\n"
        f"One embedder of 7 million parameters{also}; the paper's eight are two hundred to a thousand times as large, "
        "and nothing here says how they align. The paper's texts are others: "
        "sentences of Wikipedia, SNLI, news and MS MARCO. Abstracts share most of their frequent words, which is why "
        "the frequency baseline is strong over all terms, and why Hit@10 alone says little; content terms, in at most "
        "a tenth of the abstracts, are the sterner test.\n"
    )


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
