"""Key tokens of real abstracts, searched three ways, every hit explained. Runs offline in about a minute.

python examples/quickstart.py
"""

from __future__ import annotations

import json
import textwrap
import time
from pathlib import Path

from st_keytokens import HybridIndex, KeyTokenEncoder

HERE = Path(__file__).resolve().parent
QUESTIONS = (
    "planets around other stars",
    "how proteins fold",
    "superconductivity at high temperature",
)
TITLES = 100


def read(name: str) -> list[dict[str, str]]:
    with (HERE / "data" / "arxiv-abstracts" / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    start = time.perf_counter()
    documents = read("corpus.jsonl")
    texts = [document["text"] for document in documents]

    # 1. Any SentenceTransformer made from an LLM. This one is tiny, and in the repository.
    encoder = KeyTokenEncoder(HERE / "tiny-embedder" / "embedder")

    # 2. One pass over unlabelled texts: the first component, and what is usual for every token.
    encoder.calibrate(texts)

    # 3. What an embedding says.
    text = texts[1]
    print(
        "An abstract:\n" + textwrap.fill(textwrap.shorten(text, 300), 100, initial_indent="  ", subsequent_indent="  ")
    )
    for label, settings in (("as it is", {"correction": "none", "standardize": False}), ("corrected", {})):
        (tokens,) = encoder.key_tokens(text, top_k=12, **settings)
        print(f"Key tokens of its embedding, {label:9}: {' '.join(token for token, _ in tokens)}")

    # 4. One forward pass a text gives a dense and a sparse vector; one index holds both.
    index = HybridIndex(encoder=encoder)
    index.add([document["_id"] for document in documents], texts)
    print(f"\n{len(index):,} abstracts calibrated on and indexed in {time.perf_counter() - start:.0f} s")

    # 5. Three ways to search, and why each hit is one.
    for question in QUESTIONS:
        print(f"\n{question}")
        for mode in ("dense", "sparse", "hybrid"):
            print(f"  {mode}")
            for hit in index.search(question, mode=mode, top_k=3):
                matched = ", ".join(f"{m.token} {m.contribution:.2f}" for m in index.explain(question, hit)[:4])
                print(f"    {hit.score:7.3f}  {textwrap.shorten(hit.text or '', 66):66}  {matched}")

    # 6. A hundred papers by their titles, with and without a forward pass for the query.
    titles = read("queries.jsonl")[:TITLES]
    print(f"\nPapers found by their title, of {len(titles)}     first  in the first ten")
    queries = [title["text"] for title in titles]
    for label, mode, encoded in (
        ("dense", "dense", encoder.encode_query(queries)),
        ("sparse", "sparse", encoder.encode_query(queries)),
        ("sparse, no forward pass", "sparse", encoder.encode_query(queries, query="lookup")),
        ("hybrid", "hybrid", encoder.encode_query(queries)),
    ):
        ranks = [
            next((hit.rank for hit in hits if hit.id == title["_id"]), None)
            for title, hits in zip(titles, index.search(encoded, mode=mode, top_k=10), strict=True)
        ]
        print(f"  {label:30} {sum(r == 1 for r in ranks):10} {sum(r is not None for r in ranks):10}")
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
