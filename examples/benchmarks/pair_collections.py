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
        write(arguments.folder / source, query_of)


def write(folder: Path, query_of: dict[str, str]) -> None:
    """All texts, and the queries of the first of them."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    queries = list(query_of.values())[:QUERIES]
    texts = [{"_id": f"d{number}", "title": "", "text": text} for number, text in enumerate(query_of)]
    asked = [{"_id": f"q{number}", "text": query} for number, query in enumerate(queries)]
    for name, records in (("corpus", texts), ("queries", asked)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    judged = "".join(f"q{number}\td{number}\t1\n" for number in range(len(queries)))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")


if __name__ == "__main__":
    main()
