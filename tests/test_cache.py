from __future__ import annotations

import pickle

import numpy as np
import pytest

from st_keytokens.cache import EmbeddingCache


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
