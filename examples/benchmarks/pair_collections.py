"""Collections in the BEIR layout from pairs of a query and its text: others than those that the method was found on.

    python examples/benchmarks/pair_collections.py ../shared/data/training/pairs.jsonl.xz FOLDER

The pairs are those that the embedders made here are trained on, so they measure other embedders only: MedQuAD's
questions and OpenStax' headings (CC BY 4.0), SciTLDR's sentences (Apache-2.0), the 18F blog's headings (CC0) and the
World Factbook's (public domain). A text that is there twice is there once, with its first query.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from pathlib import Path

from prepare_collections import Content, write

QUERIES = 400
DOCUMENTS = {"medquad": 2000, "scitldr-a": 1500, "openstax": 2000, "blog-18f": 1500, "factbook": 2000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help='lines of {"anchor", "positive", "source"}, compressed by xz')
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[str, str]]] = {source: [] for source in DOCUMENTS}
    with lzma.open(arguments.pairs, "rt", encoding="utf-8") as lines:
        for line in lines:
            pair = json.loads(line)
            if pair["source"] in found:
                found[pair["source"]].append((pair["anchor"], pair["positive"]))
    rng = random.Random(0)
    for source, pairs in found.items():
        rng.shuffle(pairs)
        query_of: dict[str, str] = {}
        for query, text in pairs:
            if len(query_of) < DOCUMENTS[source]:
                query_of.setdefault(text, query)
        corpus = [(f"d{number}", "", text) for number, text in enumerate(query_of)]
        queries = [(f"q{number}", query) for number, query in enumerate(query_of.values())][:QUERIES]
        judgements = [(f"q{number}", f"d{number}", "1") for number in range(len(queries))]
        write(arguments.folder / source, Content(corpus, queries, judgements))


if __name__ == "__main__":
    main()
