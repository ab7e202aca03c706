from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from st_keytokens.evaluation.significance import bootstrap_interval, holm, randomization_test

VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=8)


class TestRandomization:
    @settings(max_examples=50, deadline=None)
    @given(VALUES)
    def test_exact_for_few_queries(self, differences):
        sums = [
            sum(sign * d for sign, d in zip(signs, differences, strict=True))
            for signs in product((-1, 1), repeat=len(differences))
        ]
        expected = np.mean([abs(total) >= abs(sum(differences)) - 1e-12 for total in sums])
        assert randomization_test(differences, np.zeros(len(differences))) == pytest.approx(expected)

    def test_equal_runs_differ_by_chance(self):
        assert randomization_test(np.ones(40), np.ones(40)) == 1.0

    def test_samples_come_near_the_exact_value(self):
        ours = np.random.default_rng(1).normal(0.3, 1.0, 13)
        exact = randomization_test(ours, np.zeros(13), samples=2**13)
        assert randomization_test(ours, np.zeros(13), samples=8000, seed=5) == pytest.approx(exact, abs=0.02)

    def test_large_samples_come_near_the_t_test(self):
        generator = np.random.default_rng(2)
        ours, theirs = generator.normal(0.1, 1.0, 400), generator.normal(0.0, 1.0, 400)
        expected = stats.ttest_rel(ours, theirs).pvalue
        assert randomization_test(ours, theirs) == pytest.approx(expected, abs=0.02)

    def test_two_sided_seeded_and_never_zero(self):
        ours, theirs = np.arange(50) + 1.0, np.zeros(50)
        assert randomization_test(ours, theirs, samples=99) == 0.01
        assert randomization_test(theirs, ours, samples=99) == 0.01
        noise = np.random.default_rng(3).normal(size=50)
        assert randomization_test(noise, theirs, seed=4) == randomization_test(noise, theirs, seed=4)

    def test_refuses(self):
        with pytest.raises(ValueError, match="must be paired values, at least one, got shapes"):
            randomization_test([1.0], [1.0, 2.0])
        with pytest.raises(ValueError, match="must be paired values, at least one"):
            randomization_test([], [])
        with pytest.raises(ValueError, match="must be finite"):
            randomization_test([np.nan], [1.0])
        with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
            randomization_test([1.0], [1.0], samples=0)


class TestBootstrap:
    def test_near_the_normal_interval(self):
        differences = np.random.default_rng(0).normal(0.2, 1.0, 500)
        error = differences.std() / np.sqrt(500)
        low, high = bootstrap_interval(differences, np.zeros(500))
        assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
        assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)

    def test_narrower_with_less_confidence_and_seeded(self):
        differences = np.random.default_rng(0).normal(size=30)
        wide = bootstrap_interval(differences, np.zeros(30))
        narrow = bootstrap_interval(differences, np.zeros(30), confidence=0.5)
        assert wide[0] < narrow[0] < narrow[1] < wide[1]
        assert wide == bootstrap_interval(differences, np.zeros(30), seed=0)

    def test_strata_count_alike(self):
        """The mean of two means, whose variances are those of each stratum's mean."""
        generator = np.random.default_rng(0)
        small, large = generator.normal(1.0, 1.0, 100), generator.normal(0.0, 2.0, 900)
        error = np.sqrt(small.var() / 100 + large.var() / 900) / 2
        mean, strata = (small.mean() + large.mean()) / 2, np.repeat([7, 3], [100, 900])
        low, high = bootstrap_interval(np.concatenate([small, large]), np.zeros(1000), strata=strata)
        assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
        assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)

    def test_refuses(self):
        with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
            bootstrap_interval([1.0], [0.0], confidence=95)
        with pytest.raises(ValueError, match=r"strata must be one for each query, got shape \(1,\) for \(2,\)"):
            bootstrap_interval([1.0, 2.0], [0.0, 0.0], strata=[1])


class TestHolm:
    def test_hand_worked(self):
        assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
        assert holm([]) == []
        assert holm([0.9, 0.8]) == [1.0, 1.0]

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_between_the_value_and_bonferroni(self, p_values):
        corrected = holm(p_values)
        for before, after in zip(p_values, corrected, strict=True):
            assert before <= after <= min(1.0, before * len(p_values))
        assert sorted(corrected) == [corrected[i] for i in np.argsort(p_values, kind="stable")]

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"p_values must be between 0 and 1, got 1\.5"):
            holm([0.5, 1.5])
