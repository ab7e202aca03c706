"""The queries on which key tokens lose most against the better of dense search and BM25, with what matched.

python examples/benchmarks/quality_tokens_failures.py COLLECTION... --model all-MiniLM-L6-v2 --cache vectors

Reads what quality_tokens.py wrote and the vectors that it keeps, and prints; the texts of most collections may not be
copied into this repository, so that the page names queries by their ids and says why in words.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from quality_tokens import RESULTS, load

from st_keytokens.evaluation import read_collection
from st_keytokens.evaluation.encoded import EncodedCollection, encode_collection
from st_keytokens.sparse_embeddings import SparseEmbeddings


def losses(found: dict[str, Any]) -> np.ndarray:
    """nDCG@10 of the better of dense search and BM25 over tokens, minus that of key tokens, for each query."""
    ours, dense, bm25 = (
        np.array(found["methods"][name]["per_query"]["nDCG@10"]) for name in ("key-tokens", "dense", "bm25-tokens")
    )
    return np.asarray(np.maximum(dense, bm25) - ours)


def describe(encoded: EncodedCollection, query_id: str, documents: SparseEmbeddings) -> list[str]:
    """The query, its terms, our first hits and the relevant documents with what they share with it."""
    collection, row = encoded.collection, list(encoded.collection.query_ids).index(query_id)
    query = encoded.sparsify_queries(encoded.encoder)[row]
    scores = query.scores(documents)[0]
    order = np.argsort(-scores, kind="stable")
    strings = encoded.encoder.vocabulary.strings
    lines = [f"### {query_id}: {collection.queries[row]}", f"terms: {query.decode(encoded.encoder.vocabulary, 12)[0]}"]
    relevant = [collection.doc_ids.index(i) for i, grade in collection.qrels[query_id].items() if grade > 0]
    for kind, rows in (("hit", order[:3].tolist()), ("relevant", relevant[:2])):
        for document in rows:
            ids, weights = documents.row(document)
            mine = dict(zip(ids.tolist(), weights.tolist(), strict=True))
            parts = {t: w * mine.get(t, 0.0) for t, w in query.to_dicts()[0].items()}
            best = sorted(parts.items(), key=lambda item: -item[1])[:8]
            shown = ", ".join(f"{strings[term]} {value:.1f}" for term, value in best if value > 0)
            rank = int(np.flatnonzero(order == document)[0]) + 1
            lines.append(
                f"{kind} rank {rank}, {scores[document]:.1f} [{shown}]: {collection.documents[document][:300]}"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--model", choices=["tiny-embedder", "all-MiniLM-L6-v2"], required=True)
    parser.add_argument("--cache", type=Path, required=True, help="where quality_tokens.py keeps the embeddings")
    parser.add_argument("--queries", type=int, default=2, help="of each collection")
    arguments = parser.parse_args()
    written = json.loads((RESULTS / f"quality-tokens-{arguments.model.lower()}.json").read_text(encoding="utf-8"))
    by_name = {found["collection"]["name"]: found for found in written["collections"]}
    encoder = load(arguments.model)
    for path in arguments.collections:
        found = by_name[path.name]
        encoded = encode_collection(read_collection(path), encoder, cache=arguments.cache)
        print(f"\n## {path.name}")
        for row in np.argsort(-losses(found), kind="stable")[: arguments.queries]:
            print("\n".join(describe(encoded, found["query_ids"][row], encoded.documents[0])), flush=True)


if __name__ == "__main__":
    main()
