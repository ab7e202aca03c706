"""docs/results/spectrum.md, from what spectrum.py measured."""

from __future__ import annotations

from typing import Any

from st_keytokens.shared.markdown import preformatted_table, single_line

COMMAND = "python examples/analysis/spectrum.py DATA/collections/{} --texts {} --aligned {} --cache vectors"


def page(results: dict[str, Any], ending: str) -> str:
    """The page as Markdown; ending says how it is made again."""
    parts = [_head(results), _claims(results), *_variation(results), *_contribution(results), *_shift(results)]
    minutes = sum(found.get("embedding_s", 0) for found in results.values() if isinstance(found, dict)) / 60
    kept = f"Embeddings that are in the cache are not made again: they took {minutes:.0f} minutes.\n"
    return "\n".join([*parts, *_minilm(results), *_limits(results), ending, kept])


def _head(results: dict[str, Any]) -> str:
    count, aligned = results["tiny-embedder"]["texts"], results["aligned_texts"]
    return (
        "# Spectral analysis\n\n"
        "How an embedder differs from its language model, what the first component of the embeddings feeds, and what "
        "a shift along it does: the analysis of Nie et al. 2025, on the [tiny embedder]"
        "(../../examples/tiny-embedder/README.md) and its backbone, mean-pooled alike, with abstracts of "
        f"{results['collection']} that neither was trained on. Spectra are of {count:,} abstracts, contributions and "
        f"shifts of the first {aligned:,}. The first component is the first right singular vector of the uncentred "
        "embeddings, with the sign that makes their mean projection positive.\n"
    )


def _claims(results: dict[str, Any]) -> str:
    found = results["tiny-embedder"]
    few, all_ = found["variation"]["100"], found["variation"]["all"]
    sizes = sorted(map(abs, all_["variations"]), reverse=True)
    v1, next_ = abs(all_["variations"][0]), sizes[1] if all_["largest"] == 1 else sizes[0]
    correlations = found["contribution"]["backbone"]["frequency_correlations"]
    before, shifted = (_row(_sweep(results, "backbone", "content"), key) for key in ("none", "v1"))
    all_before, all_shifted, suggested = (
        _row(_sweep(results, "backbone", "all"), key) for key in ("none", "v1", "suggested")
    )
    all_embedder = _row(_sweep(results, "embedder", "all"), "none")
    embedder = _row(_sweep(results, "embedder", "content"), "none")
    rows = [
        (
            "The change is concentrated in the first component",
            all_["largest"] == 1 and v1 > 5 * next_,
            f"v₁ = {all_['variations'][0]:.2f}, the next by size {next_:.2f}; "
            f"{all_['mean_change_shares'][0]:.0%} of the mean change's squared length",
        ),
        (
            "… of single texts, not only on average",
            all_["change_shares"][0] > 0.5,
            f"{all_['change_shares'][0]:.0%} of the texts' changes lies in the first component",
        ),
        (
            "A hundred texts are enough to see it",
            abs(few["variations"][0] / all_["variations"][0] - 1) < 0.1,
            f"v₁ = {few['variations'][0]:.2f} from 100, {all_['variations'][0]:.2f} from {all_['count']:,}",
        ),
        (
            "The first component feeds frequent tokens, the rest does not",
            correlations["first"] > max(0.2, correlations["rest"] + 0.2),
            f"rank correlation with the terms' frequency {correlations['first']:.2f}, of the rest "
            f"{correlations['rest']:.2f}",
        ),
        (
            "Shifted by v₁, the backbone aligns with key tokens: global rate",
            all_shifted["global"] > all_before["global"],
            f"{all_before['global']:.3f} → {all_shifted['global']:.3f} (embedder: {all_embedder['global']:.3f}); "
            f"content terms {before['global']:.3f} → {shifted['global']:.3f} ({embedder['global']:.3f})",
        ),
        (
            "… local rate",
            all_shifted["local"] > all_before["local"],
            f"{all_before['local']:.3f} → {all_shifted['local']:.3f} (embedder: {all_embedder['local']:.3f}); content "
            f"terms {before['local']:.3f} → {shifted['local']:.3f} ({embedder['local']:.3f})",
        ),
        (
            "… Hit@1",
            all_shifted["hit1"] > all_before["hit1"],
            f"{all_before['hit1']:.3f} → {all_shifted['hit1']:.3f} (embedder: {all_embedder['hit1']:.3f}); content "
            f"terms {before['hit1']:.3f} → {shifted['hit1']:.3f} ({embedder['hit1']:.3f})",
        ),
        (
            "… Hit@10, content terms",
            shifted["hit10"] > before["hit10"],
            f"{all_before['hit10']:.3f} → {all_shifted['hit10']:.3f} (embedder: {all_embedder['hit10']:.3f}); content "
            f"terms {before['hit10']:.3f} → {shifted['hit10']:.3f} ({embedder['hit10']:.3f})",
        ),
        (
            "The λ that texts alone suggest is close to v₁",
            abs(suggested["shift"] / all_["variations"][0] - 1) < 0.1,
            f"highest global rate at λ = {suggested['shift']:.2f}, v₁ = {all_['variations'][0]:.2f}",
        ),
    ]
    cells = [[claim, "yes" if holds else "no", numbers] for claim, holds, numbers in rows]
    return f"## What reproduces\n\n{preformatted_table(['', 'reproduces', 'numbers'], cells, left=None)}"


def _variation(results: dict[str, Any]) -> list[str]:
    found = results["tiny-embedder"]
    lengths = found["mean_lengths"]
    return [
        "## Variation\n",
        "Mean change of each component from backbone to embedder, with 95 % confidence intervals; components beyond "
        "the number of texts do not exist.\n",
        f"![Variation, {found['texts']:,} texts](spectrum-variation.svg)\n",
        found["tables"]["all"],
        f"The embedder's vectors are shorter, {lengths['embedder']:.2f} against {lengths['backbone']:.2f} on average, "
        "and their own first component is another direction: its cosine with the backbone's is "
        f"{found['cosine_of_first_components']:.2f}, and it holds {found['embedder_spectrum']['shares'][0]:.1%} of "
        f"their squared length, where the backbone's holds "
        f"{found['variation']['all']['backbone']['shares'][0]:.1%}.\n",
    ]


def _contribution(results: dict[str, Any]) -> list[str]:
    parts = ["## Contribution\n"]
    for name in ("backbone", "embedder"):
        parts += _contribution_of(results["tiny-embedder"]["contribution"][name], name, name)
    return parts


def _contribution_of(found: dict[str, Any], name: str, file: str) -> list[str]:
    correlations, overlaps = found["frequency_correlations"], found["overlaps"]
    tokens = {part: ", ".join(f"`{t['token']}`" for t in found["mean_tokens"][part]) for part in ("first", "rest")}
    lines = [f"**{name}.** On average the first component feeds most: {tokens['first']}; the rest: {tokens['rest']}."]
    lines.append(
        f"Of a text's ten decoded terms, {overlaps['first']:.0%} are among the ten of the first component alone, "
        f"{overlaps['rest']:.0%} among those of the rest. Rank correlation of what terms are fed with the number of "
        f"texts that they occur in: first component {correlations['first']:.2f}, rest {correlations['rest']:.2f}.\n"
    )
    for text in found["texts"]:
        names = {
            part: ", ".join(f"`{t['token']}`" for t in text[part])
            for part in ("tokens", "first_tokens", "rest_tokens")
        }
        lines.append(
            f"- “{single_line(text['text'], 90)}” decodes to {names['tokens']}; without the first component to "
            f"{names['rest_tokens']}"
        )
    return [
        "\n".join(lines) + "\n",
        f"![Contribution, {name}, second text](spectrum-contribution-{file}-text.svg)\n",
    ]


def _shift(results: dict[str, Any]) -> list[str]:
    parts = [
        "## Shift\n",
        "Alignment of `h + λ u₁`. The range is 25 values from -2 to 1 mean projections of the embeddings on u₁, and "
        "v₁. *Content terms* occur in at most a tenth of the abstracts. *Suggested* is the λ with the highest global "
        "rate, which needs neither labels nor the embedder; the rate is flat around it, and it moves with the number "
        "of texts, so that it gives the region of a good shift rather than v₁. It is the second definition that was "
        "tried on these texts: the first, the λ of the highest information, lies beyond v₁, and the other rates were "
        "seen before the global one was chosen. The information, that between texts "
        "and their ten decoded terms, needs not even own terms, and is highest where the component is gone or a "
        "little beyond.\n",
    ]
    for name, found in results["tiny-embedder"]["shift"].items():
        encoder, kind = name.split(", ")[0], name.split(", ")[1].split()[0]
        parts += [f"### {name}\n", f"![Shift, {name}](spectrum-shift-{encoder}-{kind}.svg)\n", found["table"]]
    return parts


def _minilm(results: dict[str, Any]) -> list[str]:
    name = "all-MiniLM-L6-v2"
    if name not in results:
        return []
    spectrum = results[name]["spectrum"]
    return [
        f"## {name}\n",
        "Without its backbone only what the model alone allows, decoded with its input embeddings: the first "
        f"component holds {spectrum['shares'][0]:.1%} of the squared length of {results[name]['texts']:,} vectors, "
        f"the second {spectrum['shares'][1]:.1%}.\n",
        *_contribution_of(results[name]["contribution"], name, name.lower()),
    ]


def _limits(results: dict[str, Any]) -> list[str]:
    return [
        "## Limits\n",
        "One embedder of 7 million parameters, one kind of text. The paper's embedders are two hundred to a thousand "
        "times as large; nothing here says how they behave. Own terms are tokens folded over case and leading space; "
        "logits are as the LM head gives them, neither corrected otherwise nor standardised.\n",
    ]


def _sweep(results: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = results["tiny-embedder"]["shift"][f"{name}, {kind} terms"]
    return found


def _row(sweep: dict[str, Any], key: str) -> dict[str, float]:
    shift = {"none": 0.0, "v1": sweep["variation"], "suggested": sweep["suggested_shift"]}[key]
    row = min(sweep["rows"], key=lambda row: abs(row["shift"] - shift))
    hits = {f"hit{k}": hit["value"] for k, hit in row["hits"].items()}
    rates = {name: row[f"{name}_alignment_rate"]["value"] for name in ("local", "global")}
    return {"shift": row["shift"], **rates, **hits}
