from __future__ import annotations

import math
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from st_keytokens.evaluation.measures import (
    MEASURES,
    bootstrap_interval,
    holm,
    measure_queries,
    randomization_test,
)

VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=8)


def naive(judged: dict[str, int], ranking: list[str]) -> dict[str, float]:
    """The four measures from their definitions."""
    gains = [max(judged.get(doc, 0), 0) for doc in ranking]
    ideal = sorted((max(gain, 0) for gain in judged.values()), reverse=True)
    relevant = sum(gain > 0 for gain in ideal)

    def dcg(values):
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(values[:10]))

    hits = [rank for rank, gain in enumerate(gains, 1) if gain > 0]
    return {
        "nDCG@10": dcg(gains) / dcg(ideal),
        "R@100": sum(rank <= 100 for rank in hits) / relevant,
        "MRR@10": 1 / hits[0] if hits and hits[0] <= 10 else 0.0,
        "MAP": sum(count / rank for count, rank in enumerate(hits, 1)) / relevant,
    }


class TestMeasureQueries:
    def test_hand_worked(self):
        values = measure_queries({"q": {"a": 2, "b": 1, "c": 0}}, {"q": ["c", "b", "a"]})
        assert values["nDCG@10"][0] == pytest.approx((1 / math.log2(3) + 2 / 2) / (2 + 1 / math.log2(3)))
        assert values["MRR@10"][0] == 0.5
        assert values["MAP"][0] == pytest.approx((1 / 2 + 2 / 3) / 2)
        assert values["R@100"][0] == 1.0

    @settings(max_examples=25)
    @given(
        st.dictionaries(st.integers(0, 150).map(str), st.integers(0, 3), min_size=1, max_size=20).filter(
            lambda judged: any(judged.values())
        ),
        st.permutations([str(i) for i in range(150)]),
        st.integers(0, 150),
    )
    def test_as_defined(self, judged, documents, length):
        values = measure_queries({"q": judged}, {"q": documents[:length]})
        expected = naive(judged, documents[:length])
        assert {name: float(value[0]) for name, value in values.items()} == pytest.approx(expected)

    def test_order_of_qrels_and_zero_for_what_is_missing(self):
        qrels = {"z": {"a": 1}, "m": {"a": 1}, "b": {"a": 1}}
        values = measure_queries(qrels, {"b": ["a"], "z": []})
        for name in MEASURES:
            assert values[name].tolist() == [0.0, 0.0, 1.0]
            assert values[name].dtype == np.float64

    def test_absent_relevant_documents_lower_the_measures(self):
        assert measure_queries({"q": {"a": 1, "gone": 1}}, {"q": ["a"]})["R@100"].tolist() == [0.5]

    def test_other_measures(self):
        assert measure_queries({"q": {"a": 1}}, {"q": ["b", "a"]}, {"P": "P@2"})["P"].tolist() == [0.5]

    def test_input_is_not_modified(self):
        qrels, rankings = {"q": {"a": 1}}, {"q": ["b", "a"]}
        measure_queries(qrels, rankings)
        assert (qrels, rankings) == ({"q": {"a": 1}}, {"q": ["b", "a"]})

    def test_refuses(self):
        with pytest.raises(ValueError, match="must name a document once, got one twice for query 'q'"):
            measure_queries({"q": {"a": 1}}, {"q": ["a", "a"]})
        with pytest.raises(ValueError, match="must be of queries in qrels, got one of 'x'"):
            measure_queries({"q": {"a": 1}}, {"x": ["a"]})

    def test_without_ir_measures_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ir_measures", None)
        with pytest.raises(ImportError, match=r'pip install "st-keytokens\[evaluation\]"'):
            measure_queries({"q": {"a": 1}}, {"q": ["a"]})


class TestRandomization:
    @settings(max_examples=50)
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
