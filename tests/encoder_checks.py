"""What several tests of the encoder look at: forward passes, equal vectors, memory."""

from __future__ import annotations

import os

import numpy as np
from sentence_transformers import SentenceTransformer


def count_passes(model: SentenceTransformer) -> list[int]:
    """Grows by the batch size of every forward pass of the language model."""
    batches: list[int] = []
    embeddings = model[0].auto_model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    return batches


def assert_same(ours, theirs, rtol=1e-5):
    np.testing.assert_allclose(ours.dense, theirs.dense, rtol=rtol, atol=1e-6)
    assert np.array_equal(ours.sparse.indptr, theirs.sparse.indptr)
    assert np.array_equal(ours.sparse.indices, theirs.sparse.indices)
    np.testing.assert_allclose(ours.sparse.values, theirs.sparse.values, rtol=1e-4)


def assert_close(ours, theirs, rtol=1e-3, atol=1e-4):
    """Of sparse rows as wide as words need, which no array holds."""
    assert ours.shape == theirs.shape
    expected = theirs.to_scipy()
    assert (abs(ours.to_scipy() - expected) - rtol * expected).max() <= atol


def resident() -> int:
    """Bytes of memory that the process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
