from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_keytokens.index.fusion import FusedHit, adaptive_fusion, reciprocal_rank_fusion, score_fusion

DENSE = [("a", 0.9), ("b", 0.8), ("c", 0.1)]
SPARSE = [("c", 7.0), ("b", 5.0), ("d", 2.0)]

scores = st.floats(-1e6, 1e6, allow_subnormal=True)
ranking = st.lists(st.tuples(st.sampled_from("abcdefgh"), scores), max_size=8, unique_by=lambda pair: pair[0]).map(
    lambda pairs: sorted(pairs, key=lambda pair: -pair[1])
)
rankings = st.fixed_dictionaries({"dense": ranking, "sparse": ranking})


class TestReciprocalRankFusion:
    def test_hand_worked(self):
        fused = reciprocal_rank_fusion({"dense": DENSE, "sparse": SPARSE}, k=1)
        assert fused == [
            FusedHit("c", 1 / 4 + 1 / 2, {"dense": 0.1, "sparse": 7.0}, {"dense": 3, "sparse": 1}),
            FusedHit("b", 1 / 3 + 1 / 3, {"dense": 0.8, "sparse": 5.0}, {"dense": 2, "sparse": 2}),
            FusedHit("a", 1 / 2, {"dense": 0.9}, {"dense": 1}),
            FusedHit("d", 1 / 4, {"sparse": 2.0}, {"sparse": 3}),
        ]

    def test_default_k_is_60(self):
        assert reciprocal_rank_fusion({"dense": [("a", 1.0)]})[0].score == 1 / 61

    def test_weights_scale_a_ranking(self):
        fused = reciprocal_rank_fusion({"dense": DENSE, "sparse": SPARSE}, weights={"sparse": 0.0}, k=1)
        assert [(hit.id, hit.score) for hit in fused] == [("a", 1 / 2), ("b", 1 / 3), ("c", 1 / 4), ("d", 0.0)]

    def test_ties_keep_the_order_of_first_appearance(self):
        fused = reciprocal_rank_fusion({"sparse": [("y", 1.0)], "dense": [("x", 1.0)], "third": [("w", 1.0)]})
        assert [hit.id for hit in fused] == ["y", "x", "w"]

    @pytest.mark.parametrize("k", [-1, math.nan, math.inf])
    def test_a_bad_k_is_refused(self, k):
        with pytest.raises(ValueError, match=rf"k must be finite and >= 0, got {k}"):
            reciprocal_rank_fusion({"dense": DENSE}, k=k)
        with pytest.raises(TypeError, match=r"k must be a number, got str '60'"):
            reciprocal_rank_fusion({"dense": DENSE}, k="60")

    @given(rankings)
    def test_only_ranks_count(self, rankings):
        stretched = {name: [(item, math.atan(score)) for item, score in pairs] for name, pairs in rankings.items()}
        before, after = reciprocal_rank_fusion(rankings), reciprocal_rank_fusion(stretched)
        assert [(hit.id, hit.score, hit.ranks) for hit in before] == [(hit.id, hit.score, hit.ranks) for hit in after]


class TestScoreFusion:
    def test_min_max_hand_worked(self):
        fused = score_fusion({"dense": DENSE, "sparse": SPARSE}, weights={"dense": 2.0})
        expected = {"a": 2 * 1.0, "b": 2 * (0.7 / 0.8) + 3 / 5, "c": 1.0, "d": 0.0}
        assert [hit.id for hit in fused] == ["b", "a", "c", "d"]
        assert {hit.id: hit.score for hit in fused} == pytest.approx(expected)
        assert fused[0].components == {"dense": 0.8, "sparse": 5.0}
        assert fused[0].ranks == {"dense": 2, "sparse": 2}

    def test_z_score_counts_an_absent_id_as_the_last_one(self):
        dense, sparse = [score for _, score in DENSE], [score for _, score in SPARSE]

        def z(scores, value):
            return (value - statistics.fmean(scores)) / statistics.pstdev(scores)

        expected = {
            "a": z(dense, 0.9) + z(sparse, 2.0),
            "b": z(dense, 0.8) + z(sparse, 5.0),
            "c": z(dense, 0.1) + z(sparse, 7.0),
            "d": z(dense, 0.1) + z(sparse, 2.0),
        }
        fused = score_fusion({"dense": DENSE, "sparse": SPARSE}, normalization="z-score")
        assert {hit.id: hit.score for hit in fused} == pytest.approx(expected)

    def test_none_adds_the_scores_as_they_are(self):
        fused = score_fusion({"dense": DENSE, "sparse": SPARSE}, normalization="none")
        assert {hit.id: hit.score for hit in fused} == pytest.approx({"c": 7.1, "b": 5.8, "d": 2.0, "a": 0.9})

    @pytest.mark.parametrize(("normalization", "value"), [("min-max", 1.0), ("z-score", 0.0)])
    def test_equal_scores(self, normalization, value):
        fused = score_fusion({"sparse": [("a", 3.0), ("b", 3.0)]}, normalization=normalization)
        assert [(hit.id, hit.score) for hit in fused] == [("a", value), ("b", value)]

    def test_a_lone_hit_beats_an_absent_one(self):
        fused = score_fusion({"dense": [("a", 0.9), ("b", 0.2)], "sparse": [("b", 4.0)]})
        assert {hit.id: hit.score for hit in fused} == {"a": 1.0, "b": 1.0}

    def test_unknown_normalization_is_refused(self):
        with pytest.raises(ValueError, match=r"normalization must be one of 'min-max', 'z-score', 'none', got 'max'"):
            score_fusion({"dense": DENSE}, normalization="max")

    @given(ranking, st.floats(0.5, 100), st.floats(-100, 100), st.sampled_from(["min-max", "z-score"]))
    def test_scale_and_offset_do_not_count(self, ranking, scale, offset, normalization):
        rounded = [(item, float(round(score))) for item, score in ranking]
        moved = [(item, scale * score + offset) for item, score in rounded]
        before = {hit.id: hit.score for hit in score_fusion({"x": rounded}, normalization=normalization)}
        after = {hit.id: hit.score for hit in score_fusion({"x": moved}, normalization=normalization)}
        assert after == pytest.approx(before, abs=1e-6)


class TestAdaptiveFusion:
    @pytest.mark.parametrize(
        ("tenth", "factor"),
        [(7.0, 1.0), (4.0, 2.0), (10.0, 0.0), (8.5, 0.5)],
    )
    def test_weighs_the_sparse_side_by_its_lead(self, tenth, factor):
        sparse = [("a", 10.0), *((f"filler {n}", 10.0 - (10.0 - tenth) * n / 9) for n in range(1, 10)), ("z", 1.0)]
        found = adaptive_fusion({"dense": DENSE, "sparse": sparse}, weights={"dense": 0.5, "sparse": 3.0})
        expected = score_fusion({"dense": DENSE, "sparse": sparse}, weights={"dense": 0.5, "sparse": 3.0 * factor})
        assert {hit.id: hit.score for hit in found} == pytest.approx({hit.id: hit.score for hit in expected})

    def test_fewer_than_ten_hits_lead_by_all(self):
        found = adaptive_fusion({"dense": DENSE, "sparse": SPARSE})
        assert found == score_fusion({"dense": DENSE, "sparse": SPARSE}, weights={"sparse": 1 / 0.3})

    @pytest.mark.parametrize(
        ("tenth", "factor"), [(0.7, 1.0), (0.6, 1.5), (0.3, 3.0), (0.75, 0.75), (0.85, 0.5), (0.9, 0.5)]
    )
    def test_weighs_the_dense_side_by_its_lead(self, tenth, factor):
        dense = [("a", 0.9), *((f"head {n}", 0.9 - (0.9 - tenth) * n / 9) for n in range(1, 10))]
        dense += [(f"tail {n}", tenth - (tenth - 0.3) * n / 990) for n in range(1, 991)]  # to the middle
        dense += [(f"end {n}", 0.3 - n / 1000) for n in range(1000)]
        found = adaptive_fusion({"dense": dense, "sparse": SPARSE[:1]}, weights={"dense": 2.0})
        expected = score_fusion(
            {"dense": dense, "sparse": SPARSE[:1]}, weights={"dense": 2 * factor, "sparse": 1 / 0.3}
        )
        assert {hit.id: hit.score for hit in found} == pytest.approx({hit.id: hit.score for hit in expected})

    @pytest.mark.parametrize(
        "dense", [[(f"{n}", 0.9 - n / 100) for n in range(20)], [(f"{n}", 0.9) for n in range(50)]]
    )
    def test_twenty_dense_hits_and_equal_ones_have_no_lead(self, dense):
        assert adaptive_fusion({"dense": dense}) == score_fusion({"dense": dense})

    def test_scale_and_offset_of_dense_scores_do_not_count(self):
        dense = [(f"{n}", 1 / (1 + n)) for n in range(80)]
        moved = [(item, 5 * score - 7) for item, score in dense]
        fused, fused_moved = (adaptive_fusion({"dense": each, "sparse": SPARSE}) for each in (dense, moved))
        assert [hit.score for hit in fused] == pytest.approx([hit.score for hit in fused_moved])

    def test_is_score_fusion_without_a_sparse_side(self):
        rankings = {"dense": DENSE, "other": SPARSE}
        assert adaptive_fusion(rankings, weights={"other": 2.0}) == score_fusion(rankings, weights={"other": 2.0})


@pytest.mark.parametrize("fuse", [reciprocal_rank_fusion, score_fusion, adaptive_fusion])
class TestAll:
    def test_nothing_gives_nothing(self, fuse):
        assert fuse({}) == []
        assert fuse({"dense": [], "sparse": []}) == []

    def test_an_empty_ranking_changes_nothing(self, fuse):
        assert fuse({"dense": DENSE, "sparse": []}) == fuse({"dense": DENSE})

    def test_input_is_not_modified(self, fuse):
        given = {"dense": list(DENSE), "sparse": list(SPARSE)}
        fuse(given, weights={"dense": 2.0})
        assert given == {"dense": DENSE, "sparse": SPARSE}

    def test_an_id_twice_is_refused(self, fuse):
        with pytest.raises(ValueError, match=r"ids must be unique in a ranking, got 'a' twice in ranking 'dense'"):
            fuse({"dense": [("a", 2.0), ("a", 1.0)]})

    @pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
    def test_a_score_that_is_not_finite_is_refused(self, fuse, score):
        with pytest.raises(ValueError, match=rf"scores must be finite, got {score} for 'b' in ranking 'dense'"):
            fuse({"dense": [("a", 2.0), ("b", score)]})

    def test_a_weight_without_ranking_is_refused(self, fuse):
        with pytest.raises(ValueError, match=r"weights must name rankings among \['dense'\], got 'sparse'"):
            fuse({"dense": DENSE}, weights={"sparse": 1.0})

    @pytest.mark.parametrize("weight", [-0.5, math.nan, math.inf])
    def test_a_bad_weight_is_refused(self, fuse, weight):
        with pytest.raises(ValueError, match=rf"weights must be finite and >= 0, got {weight} for 'dense'"):
            fuse({"dense": DENSE}, weights={"dense": weight})

    def test_what_is_no_number_is_refused(self, fuse):
        with pytest.raises(TypeError, match="must be real number, not NoneType"):
            fuse({"dense": [("a", None)]})
        with pytest.raises(TypeError, match="must be real number, not str"):
            fuse({"dense": DENSE}, weights={"dense": "2"})

    @given(rankings)
    def test_every_id_once_by_falling_score_with_its_components(self, fuse, rankings):
        fused = fuse(rankings)
        found = [hit.score for hit in fused]
        assert sorted(hit.id for hit in fused) == sorted({item for pairs in rankings.values() for item, _ in pairs})
        assert found == sorted(found, reverse=True)
        for hit in fused:
            held = {name: dict(pairs)[hit.id] for name, pairs in rankings.items() if hit.id in dict(pairs)}
            assert hit.components == held
            assert hit.ranks == {name: [item for item, _ in rankings[name]].index(hit.id) + 1 for name in held}
