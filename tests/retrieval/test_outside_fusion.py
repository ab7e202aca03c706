from __future__ import annotations

import pytest

from st_keytokens.index import Document, Hit
from st_keytokens.retrieval import OutsideHit, SearchSettings
from st_keytokens.retrieval.outside_ranking import fuse_outside, similarities

FOUND = [
    Hit("a", 6.0, 1, "text a", {"n": 1}, {"sparse": 6.0}),
    Hit("b", 2.0, 2, "text b", {"n": 2}, {"sparse": 2.0}),
]
OUTSIDE = [OutsideHit("c", "text c", 0.9), OutsideHit("a", "text a", 0.7), OutsideHit("x", "theirs", 0.4, {"n": 9})]


def fused(outside=OUTSIDE, **settings):
    documents = {"c": Document("c", "text c", {"n": 3})}
    chosen = SearchSettings(**settings)
    plan = chosen.plan(mode="hybrid", weights=chosen.weights, filter=None)
    return fuse_outside(outside, FOUND, documents.get, plan)


class TestByHand:
    def test_scores(self):
        hits = fused(fusion="score", weights={"dense": 2.0})
        assert [(hit.id, hit.rank) for hit in hits] == [("a", 1), ("c", 2), ("x", 3), ("b", 4)]
        assert [hit.score for hit in hits] == pytest.approx([2 * 0.6 + 1, 2.0, 0.0, 0.0])

    def test_a_sparse_side_by_its_lead(self):
        hits = fused(weights={"dense": 2.0})
        assert [hit.id for hit in hits] == ["a", "c", "x", "b"]
        assert [hit.score for hit in hits] == pytest.approx([2 * 0.6 + 1 / 0.3, 2.0, 0.0, 0.0])

    def test_reciprocal_ranks(self):
        hits = fused(fusion="rrf")
        assert [hit.id for hit in hits] == ["a", "c", "b", "x"]
        assert [hit.score for hit in hits] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])

    def test_components_and_positions(self):
        hits = {hit.id: (hit.scores, hit.outside) for hit in fused()}
        assert hits == {
            "a": ({"dense": 0.7, "sparse": 6.0}, 1),
            "b": ({"sparse": 2.0}, None),
            "c": ({"dense": 0.9}, 0),
            "x": ({"dense": 0.4}, 2),
        }

    def test_texts_and_metadata(self):
        hits = {hit.id: (hit.text, hit.metadata) for hit in fused()}
        assert hits == {
            "a": ("text a", {"n": 1}),
            "b": ("text b", {"n": 2}),
            "c": ("text c", {"n": 3}),
            "x": ("theirs", {"n": 9}),
        }

    def test_top_k(self):
        assert [hit.id for hit in fused(top_k=1)] == ["a"]

    def test_an_empty_side(self):
        assert [hit.id for hit in fused([])] == ["a", "b"]


class TestDistances:
    def test_rising_scores_are_not_turned_round(self):
        hits = fused(
            [OutsideHit("c", score=0.1), OutsideHit("x", score=0.3), OutsideHit("b", score=0.5)], fusion="score"
        )
        assert [(hit.id, hit.score) for hit in hits] == [("c", 1.0), ("a", 1.0), ("x", 0.5), ("b", 0.0)]
        assert {hit.id: hit.scores.get("dense") for hit in hits} == {"a": None, "c": 0.1, "x": 0.3, "b": 0.5}

    @pytest.mark.parametrize("scores", [[0.9, 0.5], [0.5, 0.5], [0.5], [], [0.4, 0.9, 0.1]])
    def test_others_stay(self, scores):
        assert similarities([OutsideHit("a", score=score) for score in scores], fusion="score") == scores


class TestMissingScores:
    def test_ranks_need_none(self):
        hits = fused([OutsideHit("c"), OutsideHit("a")], fusion="rrf")
        assert [(hit.id, hit.scores, hit.outside) for hit in hits] == [
            ("a", {"sparse": 6.0}, 1),
            ("c", {}, 0),
            ("b", {"sparse": 2.0}, None),
        ]

    @pytest.mark.parametrize("fusion", ["score", "adaptive"])
    def test_scores_are_not_made_up(self, fusion):
        with pytest.raises(ValueError, match=f"outside hits must have scores for fusion='{fusion}', got None"):
            fused([OutsideHit("c", score=0.5), OutsideHit("a")], fusion=fusion)
