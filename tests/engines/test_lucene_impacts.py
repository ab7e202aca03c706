"""Integer impacts, and the files in which Anserini takes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_keytokens.engines.lucene import (
    ImpactScale,
    document_line,
    query_line,
    read_impacts,
    read_queries,
    read_run_lines,
)

weights = st.lists(st.floats(2.0**-20, 100, width=32), min_size=1, max_size=20)


class TestScale:
    def test_three_terms(self):
        scale = ImpactScale(largest=2.0, bits=2)
        assert scale.step == 2 / 3
        assert scale.impacts(np.array([2.0, 1.0, 0.33])).tolist() == [3, 2, 0]  # 1.5 is rounded to the even 2

    @given(weights, st.integers(1, 12))
    def test_a_weight_changes_by_half_a_step(self, values, bits):
        values = np.array(values, np.float32)
        scale = ImpactScale(float(values.max()), bits)
        impacts = scale.impacts(values)
        assert impacts.max() == 2**bits - 1
        assert np.all(np.abs(impacts * scale.step - values) <= scale.step / 2 * (1 + 1e-9))

    @given(st.lists(st.tuples(*[st.floats(2.0**-20, 100, width=32)] * 2), min_size=1, max_size=20), st.integers(1, 12))
    def test_a_score_changes_by_the_stated_error(self, pairs, bits):
        query, document = np.array(pairs, np.float64).T
        scale, query_scale = ImpactScale(float(document.max()), bits), ImpactScale(float(query.max()), bits)
        found = scale.impacts(document) @ query_scale.impacts(query) * scale.step * query_scale.step
        assert abs(found - query @ document) <= scale.score_error(query_scale, query, document) * (1 + 1e-9) + 1e-9

    def test_the_error_can_be_reached(self):
        scale, query = ImpactScale(largest=1.0, bits=1), np.array([1.0, 1.0])
        document = np.array([1.0, 0.4999999])
        found = scale.impacts(document) @ query
        assert abs(found - query @ document) == pytest.approx(0.5, abs=1e-6)
        assert scale.score_error(ImpactScale(1.0, 12), query, document) == pytest.approx(1.0, abs=1e-3)

    def test_no_weights(self):
        assert ImpactScale(largest=0.0).impacts(np.array([])).tolist() == []

    def test_bad_values(self):
        with pytest.raises(ValueError, match="bits must be between 1 and 12, got 13"):
            ImpactScale(1.0, 13)
        with pytest.raises(ValueError, match="largest must be finite and >= 0, got inf"):
            ImpactScale(float("inf"))


class TestFiles:
    def test_collection(self, tmp_path):
        line = document_line('a b"\\ü\u2028', "text", np.array([1, 151_935]), np.array([7, 255]))
        assert json.loads(line) == {"id": 'a b"\\ü\u2028', "contents": "text", "vector": {"1": 7, "151935": 255}}
        (tmp_path / "part-0.jsonl").write_text(line + "\n", encoding="utf-8")
        assert list(read_impacts(tmp_path)) == [('a b"\\ü\u2028', {1: 7, 151_935: 255})]

    def test_queries(self, tmp_path):
        (tmp_path / "queries.tsv").write_text(query_line("q", np.array([5, 9]), np.array([3, 1])) + "\n")
        assert (tmp_path / "queries.tsv").read_text() == "q\t5 5 5 9\n"
        assert list(read_queries(tmp_path / "queries.tsv")) == [("q", {5: 3, 9: 1})]

    def test_run(self, tmp_path):
        (tmp_path / "run.txt").write_text("q Q0 a b 1 65105.000000 Anserini\nq Q0  2 1.5 Anserini\n")
        assert list(read_run_lines(tmp_path / "run.txt")) == [("q", "a b", 65105.0), ("q", "", 1.5)]

    @pytest.mark.parametrize("line", ["{", '{"id": "a"}', '{"id": "a", "vector": {"1": 0.5}}', "[]"])
    def test_bad_collections(self, tmp_path, line):
        (tmp_path / "part.jsonl").write_text(line)
        with pytest.raises(ValueError, match=r"part\.jsonl, line 1, must be a document with integer impacts"):
            list(read_impacts(tmp_path))

    def test_bad_queries_and_runs(self, tmp_path):
        (tmp_path / "bad").write_text("q\tword\n")
        with pytest.raises(ValueError, match="line 1, must be an id, a tab and numbers of terms"):
            list(read_queries(tmp_path / "bad"))
        with pytest.raises(ValueError, match=r"line 1, must be of a run in TREC's format, got 'q.+tword'"):
            list(read_run_lines(tmp_path / "bad"))
        for id in ("", "a b", "a\tb"):
            with pytest.raises(ValueError, match="query_ids must have characters and no blanks"):
                query_line(id, np.array([1]), np.array([1]))
