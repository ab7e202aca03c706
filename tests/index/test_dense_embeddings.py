from __future__ import annotations

import numpy as np
import pytest

from st_keytokens.index import HybridIndex
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings


def test_rows_come_back_as_they_were_given_in_the_order_of_the_ids():
    rows = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    sparse = SparseEmbeddings.from_dicts([{1: 1.0}] * 5, vocab_size=3)
    with HybridIndex(vocab_size=3) as index:
        index.add(list("abc"), embeddings=HybridEmbeddings(rows[:3], sparse[:3]))
        index.add(list("de"), embeddings=HybridEmbeddings(rows[3:], sparse[3:]))
        index.delete(["b"])
        assert np.array_equal(index.dense_embeddings(["e", "a", "e"]), rows[[4, 0, 4]])
        assert index.dense_embeddings([]).shape == (0, 3)
        index.compact()
        assert np.array_equal(index.dense_embeddings(["d", "c"]), rows[[3, 2]])
        with pytest.raises(KeyError, match="ids must be in the index, got 'b'"):
            index.dense_embeddings(["b"])
    with HybridIndex(vocab_size=3) as index:
        index.add(["a"], embeddings=sparse[:1])
        with pytest.raises(ValueError, match="the index must have dense rows, got one without"):
            index.dense_embeddings(["a"])
