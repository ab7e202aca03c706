from __future__ import annotations

import numpy as np
import pytest

from st_keytokens.analysis.estimates import Estimate, global_rate, mean_estimates


def rate_of(found, own):
    return len(set().union(*found)) / len(set().union(*own))


class TestMeans:
    def test_against_resampling_one_by_one(self):
        values = np.random.default_rng(3).random((40, 2))
        found = mean_estimates(values, confidence=0.9, samples=4000, seed=0)
        generator = np.random.default_rng(1)
        means = np.array([values[generator.integers(0, 40, 40)].mean(axis=0) for _ in range(4000)])
        for column in range(2):
            low, high = np.quantile(means[:, column], [0.05, 0.95])
            assert found[column].value == pytest.approx(values[:, column].mean())
            assert found[column].low == pytest.approx(low, abs=0.005)
            assert found[column].high == pytest.approx(high, abs=0.005)

    def test_same_seed_same_interval(self):
        values = np.random.default_rng(3).random((40, 1))
        a, b, c = (mean_estimates(values, confidence=0.95, samples=50, seed=seed) for seed in (1, 1, 2))
        assert a == b != c

    def test_blocks_change_nothing_but_the_draws(self, monkeypatch):
        monkeypatch.setattr("st_keytokens.analysis.estimates._BLOCK", 100)
        values = np.arange(10.0)[:, None]
        (found,) = mean_estimates(values, confidence=0.95, samples=2000, seed=0)
        assert found.value == 4.5
        assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(values.var() / 10), rel=0.1)

    def test_a_single_text_has_no_interval(self):
        assert mean_estimates(np.array([[0.5]]), confidence=0.95, samples=10, seed=0) == [Estimate(0.5, None, None)]
        assert str(Estimate(0.5, None, None)) == "0.500"


class TestGlobalRate:
    def test_against_leaving_out_each_text(self):
        generator = np.random.default_rng(0)
        own = [np.unique(generator.integers(0, 60, 12)) for _ in range(20)]
        found = [ids[generator.random(len(ids)) < 0.4] for ids in own]
        estimate = global_rate(found, own, 60, confidence=0.95)
        left_out = [rate_of(found[:i] + found[i + 1 :], own[:i] + own[i + 1 :]) for i in range(20)]
        deviation = np.sqrt(19 / 20 * np.sum((left_out - np.mean(left_out)) ** 2))
        assert estimate.value == rate_of(found, own)
        assert estimate.low == pytest.approx(estimate.value - 1.959964 * deviation)
        assert estimate.high == pytest.approx(estimate.value + 1.959964 * deviation)

    def test_holds_the_true_rate_where_the_bootstrap_does_not(self):
        generator = np.random.default_rng(0)
        chance_of_term, chance_of_hit = 0.3 / np.sqrt(np.arange(1, 201)), generator.beta(1, 3, 200)

        def rates(own, found):
            return found.any(axis=-2).sum(axis=-1) / own.any(axis=-2).sum(axis=-1)

        own = generator.random((500, 40, 200)) < chance_of_term
        found = own & (generator.random(own.shape) < chance_of_hit)
        truth = rates(own, found).mean()
        held = resampled_held = 0
        for texts, hits in zip(own[:40], found[:40], strict=True):
            estimate = global_rate(
                [np.flatnonzero(row) for row in hits], [np.flatnonzero(row) for row in texts], 200, confidence=0.95
            )
            held += estimate.low <= truth <= estimate.high
            drawn = generator.integers(0, 40, (100, 40))
            low, high = np.quantile(rates(texts[drawn], hits[drawn]), [0.025, 0.975])
            resampled_held += low <= truth <= high
        assert held >= 36
        assert resampled_held < 30

    def test_stays_between_zero_and_one(self):
        own = [np.array([0, 1]), np.array([1, 2])]
        assert global_rate(own, own, 3, confidence=0.95) == Estimate(1.0, 1.0, 1.0)
        nothing = [np.zeros(0, dtype=np.int64)] * 2
        assert global_rate(nothing, own, 3, confidence=0.95) == Estimate(0.0, 0.0, 0.0)

    def test_no_interval_where_one_text_has_every_term(self):
        own = [np.array([0, 1]), np.zeros(0, dtype=np.int64)]
        assert global_rate(own, own, 3, confidence=0.95) == Estimate(1.0, None, None)
