"""docs/results/published_elsewhere.md: figures of others on the one collection that is public as it is, beside ours.

python examples/benchmarks/published_elsewhere.py

Those of others are copied from the files named beside them, and were not measured here; ours come from the JSON files
of docs/results/quality.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from st_keytokens.shared.markdown import preformatted_table

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
GITHUB = "https://github.com"
ANSERINI = "docs/regressions/regressions-beir-v1.0.0-scifact"
MODELS = {
    "all-minilm-l6-v2": "all-MiniLM-L6-v2",
    "smollm2-embedder": "the SmolLM2 embedder",
    "tiny-embedder": "the tiny embedder",
}
METHODS = {  # what a row is called, and its kind
    "dense": ("{}", "dense"),
    "bm25-stemmed": ("BM25, bm25s", "words"),
    "key-tokens-lookup": ("{}: key terms, no forward pass for the query", "sparse, not trained"),
    "key-tokens": ("{}: key terms", "sparse, not trained"),
    "dense+key-tokens-hybrid-adaptive": ("{}: dense and key terms, the default", "hybrid, not trained"),
}


class Figure(NamedTuple):
    """A published nDCG@10 on SciFact, and the file that says it."""

    system: str
    kind: str
    value: float
    repository: str
    commit: str
    path: str


PUBLISHED = (
    Figure(
        "BM25, Anserini",
        "words",
        0.6789,
        "castorini/anserini",
        "8403c4840fce43ca3ebec1e552ed1ae811d7ad8a",
        f"{ANSERINI}.flat.md",
    ),
    Figure(
        "SPLADE++ EnsembleDistil",
        "trained sparse",
        0.7036,
        "castorini/anserini",
        "303a8b082acaa1b6211b940b5ba065278f29a9a8",
        f"{ANSERINI}.splade-pp-ed.onnx.md",
    ),
    Figure(
        "SPLADE-v3",
        "trained sparse",
        0.7140,
        "castorini/anserini",
        "519687e9e6a5d2608c23cbe9e99bd6664bb32790",
        f"{ANSERINI}.splade-v3.onnx.md",
    ),
    Figure(
        "OpenSearch doc-v3-gte",
        "trained sparse, no forward pass for the query",
        0.72542,
        "embeddings-benchmark/results",
        "5fcbf06974c508e1381a72d64ddcf4947394b61e",
        "results/opensearch-project__opensearch-neural-sparse-encoding-doc-v3-gte/"
        "a8abaa916125ee512a7a8f4d706d07eb0128a8e6/SciFact.json",
    ),
    Figure(
        "BGE-M3, its dense vectors",
        "dense",
        0.64366,
        "embeddings-benchmark/results",
        "ca60899015923f6be3a819d199a6f8414cd1f151",
        "results/BAAI__bge-m3/5617a9f61b028005a4858fdac845db406aefb181/SciFact.json",
    ),
    Figure(
        "all-MiniLM-L6-v2",
        "dense",
        0.64508,
        "embeddings-benchmark/mtebpaper",
        "28debbe59f00719389cc2a42e630aa31ea8cdfee",
        "results/all-MiniLM-L6-v2/SciFact.json",
    ),
    Figure(
        "BGE-base-en-v1.5",
        "dense",
        0.7408,
        "castorini/anserini",
        "227a4aedfeedefc12b02eb33cbff1e6e06d63c99",
        f"{ANSERINI}.bge-base-en-v1.5.flat.onnx.md",
    ),
    Figure(
        "GritLM-7B",
        "dense",
        0.76776,
        "embeddings-benchmark/results",
        "04771f293d521ddf4e294eb37bb422819be18a79",
        "results/GritLM__GritLM-7B/13f00a0e36500c80ce12870ea513846a066004af/SciFact.json",
    ),
)
TEXT = """\
# Published figures of others

nDCG@10 on SciFact, the one of our [collections](../collections.md) that is whole and public as it is: BEIR's test
set, 5,183 abstracts and 300 claims. **Figures of others were not measured here.** Each is copied from the file that
it links to. Ours, in bold type, are those of the [quality page](quality.md).

{table}

The two kinds of rows can be compared: the dense figure of all-MiniLM-L6-v2 is in both, and differs by
{difference:.4f}. BM25 differs more, since Anserini splits, stems and weighs in its own way.

What to read from it, losses first:

- GritLM-7B's dense vectors alone find more than our hybrid with all-MiniLM-L6-v2, and those of BGE-base-en-v1.5
  nearly as much. A better embedder is worth more than any second vector beside a small one.
- Our method was found on this collection, among others, which flatters it here.
- SPLADE and the models after it are trained for search, and are a second model beside the embedder. Key terms come
  from the embedder that is there, untrained; with all-MiniLM-L6-v2, of 23 million parameters, they are on this
  collection at the level of trained sparse vectors.
- One collection of scientific claims says little of others. On 13 collections of BEIR the authors of SPLADE-v3
  report a mean of 0.517 ([model card](https://huggingface.co/naver/splade-v3)), and we have no figure to put beside
  it.

No published figure on SciFact was found for EmbeddingGemma, nor for the sparse vectors of BGE-M3.

## Made again

```bash
python examples/benchmarks/published_elsewhere.py
```

It writes this page at once, from the JSON files of the quality page, which name their commit and machine.
"""


def ours() -> dict[tuple[str, str], float]:
    """Our figures on SciFact, by model and method; BM25 once, which no model changes."""
    found = {}
    for name, model in MODELS.items():
        collections = json.loads((RESULTS / f"quality-{name}.json").read_text(encoding="utf-8"))["collections"]
        (scifact,) = (c for c in collections if c["collection"]["name"] == "scifact")
        for method in METHODS:
            of = "" if method == "bm25-stemmed" else model
            found[of, method] = scifact["methods"][method]["means"]["nDCG@10"]
    return found


def page() -> str:
    measured = ours()
    rows = []
    for (of, method), value in measured.items():
        name, kind = METHODS[method]
        rows.append((value, [f"**{name.format(of)}**", kind, f"**{value:.3f}**", "measured here"]))
    for figure in PUBLISHED:
        link = f"{GITHUB}/{figure.repository}/blob/{figure.commit}/{figure.path}"
        source = f"not measured here; [{figure.repository}]({link})"
        rows.append((figure.value, [figure.system, figure.kind, f"{figure.value:.3f}", source]))
    cells = [[name, kind, source, value] for _, (name, kind, value, source) in sorted(rows, reverse=True)]
    theirs = next(figure.value for figure in PUBLISHED if figure.system == "all-MiniLM-L6-v2")
    difference = abs(measured["all-MiniLM-L6-v2", "dense"] - theirs)
    table = preformatted_table(["", "kind", "source", "nDCG@10"], cells, left=3)
    return TEXT.format(table=table.strip(), difference=difference)


def main() -> None:
    (RESULTS / "published_elsewhere.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
