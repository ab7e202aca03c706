"""Small embeddings whose scores are exact in float32, a plain search over them, and a plain encoder."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np

from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

VOCAB_SIZE = 40
DIMENSION = 4


def sparse_rows(num_rows, rng, vocab_size=VOCAB_SIZE, max_terms=8):
    """Rows with weights of a quarter to two: sums of their products are exact, and ties are frequent."""
    rows = []
    for _ in range(num_rows):
        terms = rng.choice(vocab_size, size=rng.integers(0, max_terms + 1), replace=False)
        rows.append({int(term): int(rng.integers(1, 9)) / 4 for term in terms})
    return SparseEmbeddings.from_dicts(rows, vocab_size)


def hybrid_rows(num_rows, rng):
    dense = rng.integers(-2, 3, size=(num_rows, DIMENSION)).astype(np.float32)
    return HybridEmbeddings(dense, sparse_rows(num_rows, rng))


def sparse_score(query, row):
    """Sum of products over shared terms, in ascending order, in float32."""
    total = np.float32(0)
    for term in sorted(query.keys() & row.keys()):
        total += np.float32(query[term]) * np.float32(row[term])
    return float(total)


def best(scores, limit):
    """``(id, score)`` of the best scores above 0, ties in the order of the dictionary."""
    found = [(name, score) for name, score in scores.items() if score > 0]
    return sorted(found, key=lambda pair: -pair[1])[:limit]


class HashingVocabulary:
    vocab_size = 512
    strings = [f"<{term}>" for term in range(512)]  # noqa: RUF012  # read by nobody who could change it


class HashingEncoder:
    """A bag of hashed words: term frequencies, and their signed sums as a dense vector."""

    def __init__(self, name="hashing", has_dense=True):
        self.fingerprint = name
        self.vocabulary = HashingVocabulary()
        self.has_dense = has_dense
        self.num_calls = 0

    @staticmethod
    def term(word):
        return int.from_bytes(hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:4], "big") % 512

    def encode_document(self, texts):
        self.num_calls += 1
        rows = [Counter(self.term(word) for word in text.lower().split()) for text in texts]
        sparse = SparseEmbeddings.from_dicts([{t: float(n) for t, n in row.items()} for row in rows], 512)
        dense = np.zeros((len(texts), 8), np.float32)
        for number, row in enumerate(rows):
            for term, count in row.items():
                dense[number, term % 8] += count if term % 3 else -count
        return HybridEmbeddings(dense if self.has_dense else None, sparse)

    @property
    def fusion_weights(self):
        return {"dense": 0.5, "sparse": 1.0}

    def encode_query(self, texts, *, is_hybrid=False):
        """In a hybrid search, every word counts twice."""
        found = self.encode_document(texts)
        return HybridEmbeddings(found.dense, found.sparse.with_values(found.sparse.values * 2)) if is_hybrid else found
