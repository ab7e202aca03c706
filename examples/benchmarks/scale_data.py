"""Documents and queries for scale.py: encoded abstracts, crossed with their neighbours to any number, and titles.

A document is a child of two abstracts, one drawn from all and the other from its nearest neighbours: it has every term
that both have and, of the terms that one of them has, a random half. So a term is in a document as often as it is in
its parents, in the company that it keeps there. Weights are the parents', times noise, so that no two scores tie.

    python examples/benchmarks/scale_data.py ../shared/data/collections/arxiv-heldout abstracts.npz --cache vectors

encodes abstracts and titles, once.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from st_keytokens import KeyTokenEncoder
from st_keytokens.evaluation.collections import read_collection
from st_keytokens.evaluation.encoded import EncodedCollection, encode_collection
from st_keytokens.sparse_embeddings import SparseEmbeddings

TERMS, NEIGHBOURS, NOISE = 64, 16, 0.1
QUERY_TERMS = 12
CHUNK = 25_000
_PART = 1 << 24  # terms that are counted at a time, as numpy makes 64 bits of each
EMBEDDER = Path(__file__).resolve().parents[1] / "tiny-embedder" / "embedder"


@dataclass(frozen=True)
class Parents:
    """Encoded abstracts, each with exactly 64 terms.

    Attributes:
        terms: Ascending, int32, shape ``(num_abstracts, 64)``.
        weights: float32, same shape.
        neighbours: Numbers of the most similar others by dense vector, shape ``(num_abstracts, 16)``.
        vocab_size: Of the embedder.
        dimension: Of its dense vectors.
    """

    terms: NDArray[np.int32]
    weights: NDArray[np.float32]
    neighbours: NDArray[np.int64]
    vocab_size: int
    dimension: int


def parents_of(encoded: EncodedCollection) -> Parents:
    """The abstracts that have at least 64 terms, pruned to the 64 heaviest, and their neighbours."""
    sparse, _ = encoded.documents
    long_enough = np.flatnonzero(sparse.active_dims >= TERMS)
    pruned = sparse[long_enough].prune(TERMS)
    dense = encoded.document_dense[long_enough]
    dense = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    neighbours = np.empty((len(dense), NEIGHBOURS), np.int64)
    for start in range(0, len(dense), 1000):
        similar = dense[start : start + 1000] @ dense.T
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf
        neighbours[start : start + 1000] = np.argpartition(-similar, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    shape = (len(dense), TERMS)
    terms, weights = pruned.indices.reshape(shape), pruned.values.reshape(shape)
    return Parents(terms, weights, neighbours, sparse.vocab_size, dense.shape[1])


def children(parents: Parents, count: int, rng: np.random.Generator) -> SparseEmbeddings:
    """So many documents, as the module describes them."""
    terms, weights = np.empty((count, TERMS), np.int32), np.empty((count, TERMS), np.float32)
    for start in tqdm(range(0, count, CHUNK), desc="documents", leave=False):
        place = slice(start, min(start + CHUNK, count))
        terms[place], weights[place] = _crossed(parents, place.stop - place.start, rng)
    indptr = np.arange(0, count * TERMS + 1, TERMS, dtype=np.int64)
    return SparseEmbeddings.trusted(indptr, terms.reshape(-1), weights.reshape(-1), parents.vocab_size)  # not copied


def _crossed(parents: Parents, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    first = rng.integers(len(parents.terms), size=count)
    second = parents.neighbours[first, rng.integers(NEIGHBOURS, size=count)]
    pair = np.stack([first, second], axis=1)
    pair = rng.permuted(pair, axis=1)  # a term of both has the weight that it has in either
    terms = parents.terms[pair].reshape(count, -1)
    weights = parents.weights[pair].reshape(count, -1)
    order = np.argsort(terms, axis=1, kind="stable")
    terms, weights = np.take_along_axis(terms, order, 1), np.take_along_axis(weights, order, 1)
    draw = rng.random(terms.shape, dtype=np.float32)
    is_repeated = terms[:, 1:] == terms[:, :-1]
    draw[:, :-1][is_repeated] = -1  # of a term that both have, the one is kept
    draw[:, 1:][is_repeated] = 2  # and the other not
    kept = np.sort(np.argpartition(draw, TERMS - 1, axis=1)[:, :TERMS], axis=1)
    noise = rng.lognormal(sigma=NOISE, size=kept.shape).astype(np.float32)
    return np.take_along_axis(terms, kept, 1), np.take_along_axis(weights, kept, 1) * noise


def read_data(file: Path) -> tuple[Parents, dict[str, SparseEmbeddings]]:
    """The abstracts, and the titles: the twelve heaviest terms of each, and all that the encoder gives by default."""
    with np.load(file) as held:
        sizes = held["sizes"].tolist()
        parents = Parents(held["terms"], held["weights"], held["neighbours"], *sizes)
        titles = SparseEmbeddings(held["indptr"], held["indices"], held["values"], parents.vocab_size)
    return parents, {"short": titles.prune(QUERY_TERMS), "default": titles}


def statistics_of(
    documents: SparseEmbeddings, parents: Parents, queries: dict[str, SparseEmbeddings]
) -> dict[str, Any]:
    """How far the documents are like their parents, and what the queries touch."""
    parts = (documents.indices[start : start + _PART] for start in range(0, documents.nnz, _PART))
    mine = sum(np.bincount(part, minlength=parents.vocab_size) for part in parts) / len(documents)
    theirs = np.bincount(parents.terms.reshape(-1), minlength=parents.vocab_size) / len(parents.terms)
    return {
        "abstracts": len(parents.terms),
        "terms_that_occur": int(np.count_nonzero(mine)),
        "commonest_term_in_share_of_documents": float(mine.max()),
        "correlation_of_document_frequencies": float(np.corrcoef(mine, theirs)[0, 1]),
        "query_terms": {name: len(rows.indices) / len(rows) for name, rows in queries.items()},
        "postings_touched_over_documents": {
            name: float(mine[rows.indices].sum() / len(rows)) for name, rows in queries.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cache", type=Path, help="keep the embeddings here")
    arguments = parser.parse_args()
    encoder = KeyTokenEncoder(EMBEDDER)
    encoded = encode_collection(
        read_collection(arguments.collection), encoder, cache=arguments.cache, show_progress_bar=True
    )
    parents, titles = parents_of(encoded), encoded.sparsify_queries(encoded.encoder)
    np.savez(
        arguments.output,
        terms=parents.terms,
        weights=parents.weights,
        neighbours=parents.neighbours,
        sizes=[parents.vocab_size, parents.dimension],
        indptr=titles.indptr,
        indices=titles.indices,
        values=titles.values,
    )


if __name__ == "__main__":
    main()
