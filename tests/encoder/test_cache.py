from __future__ import annotations

import pickle

import numpy as np
import pytest

from st_keytokens.encoder.cache import EmbeddingCache, join_rows, split_rows
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings


def row(value: float):
    return np.array([value]), np.array([1]), np.array([value])


class TestEmbeddingCache:
    def test_gives_back_what_was_put(self):
        cache = EmbeddingCache(2)
        cache.put({"a": row(1.0)})
        assert cache.get(["a", "b"]) == {"a": row(1.0)}

    def test_forgets_the_least_recently_used(self):
        cache = EmbeddingCache(2)
        cache.put({"a": row(1.0), "b": row(2.0)})
        cache.get(["a"])
        cache.put({"c": row(3.0)})
        assert set(cache.get("abc")) == {"a", "c"}
        assert len(cache) == 2

    def test_size_zero_keeps_nothing(self):
        cache = EmbeddingCache(0)
        cache.put({"a": row(1.0)})
        assert len(cache) == 0

    def test_travels_empty(self):
        cache = EmbeddingCache(3)
        cache.put({"a": row(1.0)})
        copy = pickle.loads(pickle.dumps(cache))
        assert (copy.size, len(copy)) == (3, 0)

    def test_negative_size(self):
        with pytest.raises(ValueError, match=r"cache_size must not be negative, got -1"):
            EmbeddingCache(-1)


class TestRows:
    embeddings = HybridEmbeddings(
        np.arange(6, dtype=np.float32).reshape(3, 2), SparseEmbeddings.from_dicts([{1: 0.5, 4: 2.0}, {}, {0: 1.0}], 5)
    )

    def test_split_and_joined_are_the_same(self):
        assert join_rows(split_rows(self.embeddings), 2, 5) == self.embeddings
        assert join_rows(split_rows(self.embeddings)[::-1], 2, 5) == self.embeddings[::-1]

    def test_rows_are_copies(self):
        (vector, ids, weights), *_ = split_rows(self.embeddings)
        assert not any(
            np.shares_memory(ours, theirs)
            for ours, theirs in (
                (vector, self.embeddings.dense),
                (ids, self.embeddings.sparse.indices),
                (weights, self.embeddings.sparse.values),
            )
        )

    def test_no_rows(self):
        joined = join_rows([], 2, 5)
        assert joined.dense.shape == (0, 2)
        assert joined.sparse.shape == (0, 5)
