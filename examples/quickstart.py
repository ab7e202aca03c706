"""Key tokens of real abstracts, searched three ways side by side, every hit explained. Runs offline in about a minute.

python examples/quickstart.py
"""

from __future__ import annotations

import json
import textwrap
import time
from itertools import zip_longest
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_keytokens import HybridEmbeddings, HybridIndex, KeyTokenEncoder
from st_keytokens.index import Hit

HERE = Path(__file__).resolve().parent
QUESTIONS = (
    "DNA passing through a nanopore",
    "detecting earthquakes",
    "EDELWEISS-II",
)
MODES = ("dense", "sparse", "hybrid")
COLUMN, GAP, INDENT = 38, 3, 8  # three columns fit 120 characters; a hit's text stands behind its score


def read(name: str) -> list[dict[str, str]]:
    with (HERE / "data" / "arxiv-abstracts" / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def side_by_side(cells: list[list[str]]) -> str:
    rows = zip_longest(*cells, fillvalue="")
    return "\n".join((" " * GAP).join(cell.ljust(COLUMN) for cell in row).rstrip() for row in rows)


def describe(index: HybridIndex, question: str, hit: Hit) -> list[str]:
    """A hit: its score and the beginning of its text, beneath them the terms that it shares with the question."""
    width = COLUMN - INDENT
    lines = textwrap.wrap(hit.text or "", width, max_lines=2, placeholder=" ...")
    matched = ", ".join(f"{term.token}\xa0{term.contribution:.2f}" for term in index.explain(question, hit)[:4])
    lines += textwrap.wrap(f"by {matched}" if matched else "by no term in common", width)
    return [
        f"{hit.score:{INDENT - 1}.3f} {lines[0]}",
        *(" " * INDENT + line.replace("\xa0", " ") for line in lines[1:]),
    ]


def main() -> None:
    start = time.perf_counter()
    documents = read("corpus.jsonl")
    texts = [document["text"] for document in documents]

    # 1. Any SentenceTransformer made from an LLM, and the dense vectors that you may have already. This one is tiny.
    model = SentenceTransformer(str(HERE / "tiny-embedder" / "embedder"))
    vectors = model.encode_document(texts, show_progress_bar=True)

    # 2. First component, what is usual for every token, a decoder of the corpus: from the vectors, without labels.
    encoder = KeyTokenEncoder(model)
    encoder.calibrate(texts, embeddings=vectors, show_progress_bar=False)

    # 3. What an embedding says.
    text = texts[1]
    shown = textwrap.fill(textwrap.shorten(text, 300), 116, initial_indent="  ", subsequent_indent="  ")
    print(f"An abstract:\n{shown}")
    for label, settings in (
        ("as it is", {"decode_with": "lm_head", "correction": "none", "standardize": False}),
        ("corrected", {"decode_with": "lm_head"}),
        ("by the decoder of the corpus", {}),
    ):
        (tokens,) = encoder.key_tokens(text, top_k=8, **settings)
        print(f"Key tokens, {label + ':':30} {' '.join(token for token, _ in tokens)}")

    # 4. The same vectors become sparse as well; one index holds both.
    index = HybridIndex(encoder=encoder)
    sparse = encoder.sparsify(vectors, texts)
    index.add([document["_id"] for document in documents], texts, embeddings=HybridEmbeddings(vectors, sparse))
    print(f"\n{len(index):,} abstracts embedded, calibrated on and indexed in {time.perf_counter() - start:.0f} s")

    # 5. Three ways to search, and why each hit is one.
    for question in QUESTIONS:
        print(f"\n{question}\n\n{side_by_side([[mode] for mode in MODES])}")
        for hits in zip(*(index.search(question, mode=mode, top_k=3) for mode in MODES), strict=True):
            print(side_by_side([describe(index, question, hit) for hit in hits]))

    # 6. Papers by their titles, with and without a forward pass for the query.
    titles = read("queries.jsonl")
    queries = [title["text"] for title in titles]
    with_pass, without = encoder.encode_query(queries), encoder.encode_query(queries, query="lookup")
    print(f"\nPapers found by their title, of {len(titles)}     first  in the first ten")
    for label, mode, encoded in (
        ("dense", "dense", with_pass),
        ("sparse", "sparse", with_pass),
        ("sparse, no forward pass", "sparse", without),
        ("hybrid", "hybrid", with_pass),
    ):
        ranks = [
            next((hit.rank for hit in hits if hit.id == title["_id"]), None)
            for title, hits in zip(titles, index.search(encoded, mode=mode, top_k=10), strict=True)
        ]
        print(f"  {label:30} {sum(r == 1 for r in ranks):10} {sum(r is not None for r in ranks):10}")
    print("Titles share words with their abstracts, so terms do well here. A few papers more or less are chance.")
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
