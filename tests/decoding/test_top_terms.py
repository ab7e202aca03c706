from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from st_keytokens.decoding.decoding import top_k, top_terms


class TestTopK:
    @pytest.mark.parametrize("width", [60, 64, 1000, 6400, 20_011])
    @pytest.mark.parametrize("k", [1, 7, 31, 60])
    def test_equals_torch(self, width, k):
        scores = torch.randn(5, width, generator=torch.Generator().manual_seed(width + k))
        before = scores.clone()
        values, positions = top_k(scores, k)
        expected = scores.topk(k, dim=1)
        assert torch.equal(values, expected.values)
        assert torch.equal(positions, expected.indices)
        assert torch.equal(scores, before)

    def test_the_best_may_lie_in_the_last_partial_block_or_all_in_one(self):
        scores = torch.zeros(2, 64 * 100 + 3)
        scores[0, -3:] = torch.tensor([3.0, 5.0, 4.0])
        scores[1, 640:650] = torch.arange(10.0) + 1
        values, positions = top_k(scores, 3)
        assert positions.tolist() == [[6401, 6402, 6400], [649, 648, 647]]
        assert values.tolist() == [[5, 4, 3], [10, 9, 8]]

    def test_rows_of_all_kinds_in_one_batch(self):
        scores = torch.stack(
            [
                torch.randn(1000, generator=torch.Generator().manual_seed(0)),
                torch.zeros(1000),
                torch.full((1000,), float("-inf")),
                torch.full((1000,), float("-inf")).index_fill(0, torch.tensor([77, 999]), 1.0),
                torch.arange(1000.0),
                torch.arange(1000.0).flip(0).floor_divide(100),
            ]
        )
        values, positions = top_k(scores, 20)
        assert torch.equal(values, scores.topk(20, dim=1).values)
        assert torch.equal(scores.gather(1, positions), values)
        assert all(len(set(row)) == 20 for row in positions.tolist())

    def test_nan_is_the_largest(self):
        scores = torch.arange(2000.0).reshape(2, 1000).index_fill(1, torch.tensor([500]), float("nan"))
        values, positions = top_k(scores, 3)
        assert positions.tolist() == [[500, 999, 998]] * 2
        assert torch.equal(values[:, 1:], torch.tensor([[999.0, 998.0], [1999.0, 1998.0]]))

    def test_gradient_goes_to_the_best(self):
        scores = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0), requires_grad=True)
        values, positions = top_k(scores, 5)
        values.sum().backward()
        assert torch.equal(scores.grad, torch.zeros(2, 1000).scatter(1, positions, 1.0))


class TestTopTerms:
    def test_folds_and_counts_distinct_terms(self):
        scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
        ids, best = top_terms(scores, torch.tensor([0, 0, 0, 0, 4]), 2)
        assert ids.tolist() == [[0, 4]]
        assert best.tolist() == [[5.0, 1.0]]

    def test_fewer_terms_than_wanted(self):
        ids, best = top_terms(torch.tensor([[1.0, 2.0]]), torch.tensor([0, 0]), 5)
        assert ids.shape == (1, 2)
        assert best.tolist() == [[2.0, float("-inf")]]

    @settings(max_examples=50)
    @given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 400))
    def test_equals_a_loop(self, seed, k, width):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(3, width, generator=generator)
        terms = torch.randint(0, max(1, width // 3), (width,), generator=generator)
        ids, best = top_terms(scores, terms, k)
        for row in range(3):
            loop: dict[int, float] = {}
            for token in range(width):
                term = int(terms[token])
                loop[term] = max(loop.get(term, -1e9), float(scores[row, token]))
            expected = sorted(loop, key=lambda term: -loop[term])[:k]
            assert ids[row, : len(expected)].tolist() == expected
            assert best[row, : len(expected)].tolist() == [loop[term] for term in expected]
