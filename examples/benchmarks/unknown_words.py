"""Queries whose words no document has: can they be told from others by what decoding finds, and by their words?

For real queries and for made-up words, the best score of the decoded terms alone, without the query's own, as a score
and as a cosine; how well it tells the two apart (the area under the ROC curve); and how many queries have no word that
a document has.

python examples/benchmarks/unknown_words.py
python examples/benchmarks/unknown_words.py --model MODEL --collections FOLDER/scifact FOLDER/cranfield
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from environment import RESULTS, environment

from st_keytokens import HybridIndex, KeyTokenEncoder
from st_keytokens.sparse_embeddings import SparseEmbeddings

EXAMPLES = Path(__file__).resolve().parents[1]
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxz", "aeiou"


def made_up(count: int, seed: int = 0) -> list[str]:
    """Words that are none: letters at random, syllables, and three of the former."""
    rng = random.Random(seed)

    def letters() -> str:
        return "".join(rng.choices(CONSONANTS + VOWELS, k=rng.randint(6, 11)))

    def syllables() -> str:
        return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(4, 6)))

    kinds = [letters, syllables, lambda: " ".join(letters() for _ in range(3))]
    return [kinds[number % 3]() for number in range(count)]


def measured(model: Path, collection: Path, num_documents: int, num_queries: int) -> dict[str, Any]:
    """What the two kinds of queries find in a collection."""
    rows = {}
    for name, most in (("corpus", num_documents), ("queries", num_queries)):
        with (collection / f"{name}.jsonl").open(encoding="utf-8") as lines:
            rows[name] = [json.loads(line) for line, _ in zip(lines, range(most), strict=False)]
    texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in rows["corpus"]]
    encoder = KeyTokenEncoder(model, terms="words", language="english", cache_size=0)
    encoder.calibrate(texts, show_progress_bar=False)
    vectors = encoder.encode_document(texts).sparse
    norms = [float(np.linalg.norm(weights)) for _, weights in vectors]
    known = {int(term) for ids, _ in vectors for term in ids}
    size = encoder.vocabulary.vocab_size
    found: dict[str, Any] = {"documents": len(texts)}
    best: dict[str, list[list[float]]] = {}
    with HybridIndex(vocab_size=size) as index:
        index.add(embeddings=vectors)
        for kind, queries in (
            ("real", [row["text"] for row in rows["queries"]]),
            ("made up", made_up(len(rows["queries"]))),
        ):
            whole, own = (encoder.encode_query(queries, query=how).sparse for how in ("encode", "lookup"))
            unknown, scores = 0, []
            for number in range(len(queries)):
                words = set(own.row(number)[0].tolist())
                unknown += not words & known
                decoded = {
                    int(term): float(weight)
                    for term, weight in zip(*whole.row(number), strict=True)
                    if int(term) not in words
                }
                (hits,) = index.search(SparseEmbeddings.from_dicts([decoded], vocab_size=size), top_k=1)
                if hits:
                    length = float(np.linalg.norm(list(decoded.values()))) * norms[int(hits[0].id)]
                    scores.append([hits[0].score, hits[0].score / length])
            best[kind] = scores
            found[kind] = {
                "queries": len(queries),
                "without_a_known_word": unknown,
                "found_by_decoded_terms": len(scores),
                "best_score_median": round(float(np.median([score for score, _ in scores])), 3),
                "best_cosine_median": round(float(np.median([cosine for _, cosine in scores])), 3),
            }
    for place, name in enumerate(("score", "cosine")):
        real, noise = (np.array([row[place] for row in best[kind]]) for kind in ("real", "made up"))
        found[f"auc_of_{name}"] = round(float((real[:, None] > noise[None]).mean()), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EXAMPLES / "tiny-embedder" / "embedder")
    parser.add_argument("--collections", type=Path, nargs="+", default=[EXAMPLES / "data" / "arxiv-abstracts"])
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=150)
    arguments = parser.parse_args()
    file = RESULTS / "unknown-words.json"
    results = json.loads(file.read_text()) if file.exists() else {"results": {}}
    for collection in arguments.collections:
        folder = arguments.model.resolve()
        name = folder.parent.name if folder.name == "embedder" else folder.name
        found = measured(arguments.model, collection, arguments.documents, arguments.queries)
        results["results"][f"{name}, {collection.name}"] = found
        results["env"] = environment()
        file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
