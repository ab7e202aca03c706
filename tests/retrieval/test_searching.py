from __future__ import annotations

from dataclasses import replace

import pytest

from st_keytokens import adaptive_fusion, reciprocal_rank_fusion, score_fusion
from st_keytokens.retrieval import SearchSettings


def test_depth():
    assert SearchSettings().fused_depth == 100
    assert SearchSettings(top_k=30).fused_depth == 300
    assert replace(SearchSettings(depth=7), top_k=3).fused_depth == 7


def test_fusions():
    assert SearchSettings().fuse is adaptive_fusion
    assert SearchSettings(fusion="score").fuse is score_fusion
    assert SearchSettings(fusion="rrf").fuse is reciprocal_rank_fusion


class TestValidation:
    @pytest.mark.parametrize(
        ("settings", "kind", "message"),
        [
            ({"mode": "both"}, ValueError, "mode must be one of .*, got 'both'"),
            ({"top_k": 0}, ValueError, "top_k must be >= 1, got 0"),
            ({"top_k": 1.5}, TypeError, "top_k must be an integer, got float 1.5"),
            ({"depth": 0}, ValueError, "depth must be >= 1, got 0"),
            ({"fusion": "sum"}, ValueError, "fusion must be one of 'adaptive', 'score', 'rrf', got 'sum'"),
            ({"weights": {"bm25": 1.0}}, ValueError, "weights must be one of 'dense', 'sparse', got 'bm25'"),
            ({"weights": {"dense": -1.0}}, ValueError, r"weights\['dense'\] must be finite and >= 0, got -1.0"),
            ({"weights": {"dense": "1"}}, TypeError, r"weights\['dense'\] must be a number, got str"),
            ({"filter": 3}, TypeError, "filter must be a dictionary, a function or a collection of ids, got int 3"),
            ({"filter": "d1"}, TypeError, "filter must be a dictionary, a function or a collection of ids, got str"),
        ],
    )
    def test_settings(self, settings, kind, message):
        with pytest.raises(kind, match=message):
            SearchSettings(**settings)


class TestGroups:
    def test_the_key_of_groups_is_a_string(self):
        with pytest.raises(TypeError, match=r"group_by must be a key of the metadata, got list \['a'\]"):
            SearchSettings(group_by=["a"])

    def test_weights_name_sides(self):
        assert SearchSettings(weights={"bm25": 2.0}, others=("bm25",)).weights == {"bm25": 2.0}
        with pytest.raises(ValueError, match="weights must be one of 'dense', 'sparse', 'words', got 'bm25'"):
            SearchSettings(weights={"bm25": 2.0}, others=("words",))
