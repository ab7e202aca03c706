"""Pairs explained token by token, for the tiny embedder and, where it is installed, all-MiniLM-L6-v2.

    python examples/analysis/pair.py [--data DATA]

Writes pair.json, pair.md, pair.svg, pair-embedders.svg and pair.html into docs/results. With --data, it also measures
on sentence pairs of the STS benchmark how much of the cosine key tokens account for, beside as many random tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis.html_pages import html_view
from st_keytokens.analysis.pair import compare_pair, explain_pair, explain_sparse_pair, orthogonal_coordinates
from st_keytokens.analysis.plots import plot_pair, plot_pair_comparison, save_figure
from st_keytokens.shared.markdown import markdown_table

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES / "benchmarks"))
from environment import RESULTS, made_again, write_results  # noqa: E402  # the folder is no package
from quality_tokens import load  # noqa: E402

PAIRS = (
    (
        "The telescope measured the light of distant galaxies and of nearby stars.",
        "Stars form in galaxies when clouds of gas and dust collapse under their own gravity.",
    ),
    ("I like apples.", "I do not like apples."),
    ("The vaccine protects against infection.", "Prices rise when demand grows faster than supply."),
)
SIZES = (5, 10, 20, 50)  # key tokens of each text
SETTINGS = {
    "raw": {"decode_with": "lm_head", "correction": "none", "standardize": False},
    "corrected": {"decode_with": "lm_head", "correction": "remove", "standardize": True},
}


def load_encoders(texts: int = 1000) -> dict[str, KeyTokenEncoder]:
    """Encoders by name: each model decoded as it is, and with what a calibration corrects."""
    with (EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl").open(encoding="utf-8") as lines:
        sentences = [json.loads(line)["text"].split(". ")[0] for line in lines][:texts]  # as short as the pairs
    found = {}
    for name in ("tiny-embedder", "all-MiniLM-L6-v2"):
        try:
            encoder = load(name)
        except SystemExit as missing:
            print(missing)
            continue
        encoder.calibrate(sentences, show_progress_bar=False)
        for setting, changes in SETTINGS.items():
            found[f"{name}, {setting}"] = KeyTokenEncoder(encoder.model, head=encoder.head.with_settings(**changes))
    return found


def accounted(encoder: KeyTokenEncoder, pairs: list[tuple[str, str]], seed: int = 0) -> list[dict]:
    """What tokens account for of the cosine: those that the texts say, and as many random ones."""
    generator, rows = np.random.default_rng(seed), []
    vocabulary = encoder.vocabulary
    terms = np.unique(vocabulary.terms[~vocabulary.is_masked])
    weight = encoder.head.lm_head.weight.detach().float().cpu().numpy().astype(np.float64)
    vectors = {text: encoder.embed([text])[0].astype(np.float64) for text in {t for pair in pairs for t in pair}}
    for size in SIZES:
        explained = [explain_pair(encoder, *pair, top_k=size, similarity="cosine") for pair in pairs]
        others = []
        for pair, found in zip(pairs, explained, strict=True):
            chosen = weight[generator.choice(terms, len(found.tokens), replace=False)]
            both = np.stack([vectors[text] / np.linalg.norm(vectors[text]) for text in pair])
            others.append(orthogonal_coordinates(chosen, both).prod(axis=0).sum())
        rows.append(
            {
                "key_tokens_a_text": size,
                "tokens_a_pair": float(np.mean([len(found.tokens) for found in explained])),
                "cosine": float(np.mean([found.value for found in explained])),
                "key_tokens": float(np.mean([found.explained for found in explained])),
                "random_tokens": float(np.mean(others)),
                "remainder": float(np.mean([found.remainder for found in explained])),
            }
        )
    return rows


def read_pairs(path: Path, count: int) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        pairs = [(row["sentence1"], row["sentence2"]) for row in map(json.loads, lines)]
    return random.Random(0).sample(pairs, count)


def page(comparisons: list, sparse: list, measured: dict[str, list[dict]], environment: dict, count: int) -> str:
    blocks = [
        "# Pairs, explained\n\nEach key token of the two texts has a direction, its row of the LM head; the rows "
        "are made orthonormal symmetrically (Löwdin), and a token accounts for the product of the two texts' "
        "coordinates. *Common part* is what a correction takes away before decoding (here the first component), "
        "*other directions* what no key token of the two texts points to. The parts of a line sum to its similarity "
        "exactly. Six key tokens of each text. Calibrated on the first sentences of 1,000 arXiv abstracts. "
        "[pair.html](pair.html) is the view of the first pair.\n\n![The first "
        "pair](pair.svg)\n\n![By embedder](pair-embedders.svg)\n"
    ]
    for comparison, scored in zip(comparisons, sparse, strict=True):
        blocks.append(f"## {comparison.text} / {comparison.other}\n\n{comparison.table()}")
        blocks.append(f"Sparse score of the first as a query, tiny embedder:\n\n{scored.table(max_terms=6)}")
    if measured:
        blocks.append(
            f"## How much tokens account for\n\nMeans over {count} pairs of the STS benchmark's test part. *Random* "
            "are as many tokens of the same vocabulary: what any directions of that number account for.\n"
        )
        for name, rows in measured.items():
            head = [column.replace("_", " ") for column in rows[0]]
            blocks.append(f"### {name}\n\n{markdown_table(head, [list(row.values()) for row in rows])}")
    blocks.append(made_again("python examples/analysis/pair.py --data DATA", environment))
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds analysis/sts-benchmark")
    parser.add_argument("--pairs", type=int, default=100)
    arguments = parser.parse_args()
    encoders = load_encoders()
    tiny = encoders["tiny-embedder, corrected"]
    comparisons = [compare_pair(encoders, *pair, top_k=6) for pair in PAIRS]
    sparse = [explain_sparse_pair(tiny, *pair) for pair in PAIRS]
    measured = {}
    if arguments.data is not None:
        pairs = read_pairs(arguments.data / "analysis" / "sts-benchmark" / "test.jsonl", arguments.pairs)
        raw = {name: encoder for name, encoder in encoders.items() if name.endswith("raw")}
        measured = {name: accounted(encoder, pairs) for name, encoder in raw.items()}
    name = "tiny-embedder, corrected"
    save_figure(plot_pair(comparisons[0].explanations[name], title=name), RESULTS / "pair.svg")
    save_figure(plot_pair_comparison(comparisons[0]), RESULTS / "pair-embedders.svg")
    html_view(tiny, *PAIRS[0], title=f"Key tokens of a pair, {name}").save(RESULTS / "pair.html")
    results = {
        "pairs": [comparison.to_dict() for comparison in comparisons],
        "sparse": [scored.to_dict() for scored in sparse],
        "accounted": {"pairs": arguments.pairs, "embedders": measured},
    }
    path = write_results("pair", results)
    environment = json.loads(path.read_text(encoding="utf-8"))["env"]
    text = page(comparisons, sparse, measured, environment, arguments.pairs)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
