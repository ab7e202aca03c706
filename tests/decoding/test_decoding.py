from __future__ import annotations

import numpy as np
import pytest
import torch

from st_keytokens.decoding.decoding import Decoding


class MappedTerms:
    """A decoder that is no LM head: a matrix and an offset, as fitted to a corpus."""

    is_scale_free = False
    device = torch.device("cpu")

    def __init__(self, matrix, offset):
        self.matrix, self.offset = matrix, offset

    @property
    def vocab_size(self):
        return len(self.matrix)

    @property
    def embedding_dimension(self):
        return self.matrix.shape[1]

    def logits(self, embeddings):
        return embeddings @ self.matrix.T + self.offset


def decoding(decoder, *, terms=None, **settings):
    size = decoder.vocab_size
    fixed = {
        "is_normalizing": False,
        "correction": "none",
        "direction": None,
        "mean": None,
        "shift": 0.0,
        "scale": torch.ones(size),
        "offset": torch.zeros(size),
        "terms": torch.arange(size) if terms is None else torch.tensor(terms),
    }
    return Decoding(decoder, **(fixed | settings))


@pytest.fixture
def decoder():
    return MappedTerms(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 2.0]]), torch.tensor([0, 0, 0.5, 0]))


class TestKeyTokens:
    def test_hand_worked(self, decoder):
        embeddings = torch.tensor([[2.0, 1.0], [-1.0, -3.0], [0.0, 0.0]])
        ids, weights = decoding(decoder).key_tokens(embeddings, 2, "relu")
        assert ids.tolist() == [[0, 2], [0, 0], [0, 0]]
        assert weights.tolist() == [[2.0, 3.5], [0.0, 0.0], [0.0, 0.0]]

    def test_tokens_of_one_term_count_by_the_best(self, decoder):
        ids, weights = decoding(decoder, terms=[0, 1, 0, 3]).key_tokens(torch.tensor([[2.0, 1.0]]), 2, "relu")
        assert (ids.tolist(), weights.tolist()) == ([[0, 1]], [[3.5, 1.0]])

    def test_scaled_masked_and_corrected(self, decoder):
        ready = decoding(
            decoder,
            is_normalizing=True,
            correction="center",
            mean=torch.tensor([0.6, 0.0]),
            scale=torch.tensor([1.0, 10.0, 0.0, 1.0]),
            offset=torch.tensor([0.25, 1.0, -torch.inf, 0.0]),
        )
        embeddings = torch.tensor([[3.0, 4.0]])  # at length 1 (0.6, 0.8), centred (0, 0.8)
        torch.testing.assert_close(ready.scores(embeddings), torch.tensor([[0.25, 9.0, -torch.inf, 1.6]]))
        ids, weights = ready.key_tokens(embeddings, 4, "log1p")
        assert ids.tolist() == [[0, 1, 3, 0]]
        np.testing.assert_allclose(weights, [[np.log(1.25), np.log(10), np.log(2.6), 0]], rtol=1e-6)

    def test_many_rows_equal_single_ones(self):
        generator = torch.Generator().manual_seed(0)
        matrix, x = torch.randn(200_000, 4, generator=generator), torch.randn(9, 4, generator=generator)
        ready = decoding(MappedTerms(matrix, torch.zeros(len(matrix))))
        ids, _ = ready.key_tokens(x, 20, "relu")  # in blocks of six rows
        assert torch.equal(ids, torch.cat([ready.key_tokens(row[None], 20, "relu")[0] for row in x]))

    def test_no_rows_and_few_tokens(self, decoder):
        for rows in (0, 3):
            ids, weights = decoding(decoder).key_tokens(torch.ones(rows, 2), 9, "softplus")
            assert ids.shape == weights.shape == (rows, 4)
            assert (ids.dtype, weights.dtype) == (torch.int64, torch.float32)


class TestValidation:
    def test_embeddings(self, decoder):
        ready = decoding(decoder)
        with pytest.raises(ValueError, match=r"embeddings must have shape \(batch_size, 2\), got \(1, 3\)"):
            ready.scores(torch.zeros(1, 3))
        with pytest.raises(TypeError, match=r"embeddings must be floating-point numbers, got torch.int64"):
            ready.key_tokens(torch.zeros(1, 2, dtype=torch.int64), 1, "relu")
        with pytest.raises(ValueError, match=r"embeddings must be finite, got NaN or infinity in row 1"):
            ready.scores(torch.tensor([[0.0, 0.0], [torch.inf, 0.0]]))
