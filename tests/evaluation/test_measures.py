from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_keytokens.evaluation.measures import MEASURES, measure_queries


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

    @settings(max_examples=25, deadline=None)
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
