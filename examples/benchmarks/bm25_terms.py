"""BM25 over words and over the pieces that tokenizers split them into, with and without stop words: nDCG@10.

python examples/benchmarks/bm25_terms.py DATA/collections/*
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bm25s.stopwords import STOPWORDS_EN
from environment import write_results
from quality_tokens import load

from st_keytokens import KeyTokenEncoder
from st_keytokens.evaluation import read_collection
from st_keytokens.evaluation.bm25 import bm25_vectors, split_words
from st_keytokens.evaluation.measures import measure_collection
from st_keytokens.evaluation.runs import sparse_run, tie_order

Split = Callable[[list[str]], list[list[str]]]
MODELS = ("tiny-embedder", "all-MiniLM-L6-v2")


def all_words(texts: list[str]) -> list[list[str]]:
    """Lower-cased words, stop words and single letters included."""
    return [re.findall(r"\w+", text.lower()) for text in texts]


def pieces(encoder: KeyTokenEncoder, without: frozenset[str] = frozenset()) -> Split:
    """Splits texts into the folded tokens of an encoder, those left out that are some words."""
    strings = encoder.vocabulary.strings

    def split(texts: list[str]) -> list[list[str]]:
        return [
            [str(term) for term in terms if strings[term].strip().lower() not in without]
            for terms in encoder.literal_terms(texts)
        ]

    return split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path)
    arguments = parser.parse_args()
    splits: dict[str, Split] = {"words": all_words, "words, no stop words": split_words}
    for model in MODELS:
        encoder = load(model)
        splits[f"tokens of {model}"] = pieces(encoder)
        splits[f"tokens of {model}, no stop words"] = pieces(encoder, frozenset(STOPWORDS_EN))
    results: dict[str, dict[str, float]] = {name: {} for name in splits}
    for path in arguments.collections:
        collection = read_collection(path)
        for name, split in splits.items():
            documents, queries = bm25_vectors(split(collection.documents), split(collection.queries))
            run = sparse_run(documents, queries, tie_order(collection.doc_ids), 100, forward_passes=0, seconds={})
            found = float(np.mean(measure_collection(collection, run.rankings)["nDCG@10"]))
            results[name][collection.name] = round(found, 5)
            print(f"{collection.name}: {name}: {found:.4f}", flush=True)
    write_results("bm25-terms", {"nDCG@10": results})


if __name__ == "__main__":
    main()
