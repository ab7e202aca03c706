from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from st_keytokens import HybridEmbeddings, SparseEmbeddings, score_fusion
from st_keytokens.index.filters import Compares, IsIn
from st_keytokens.index.fusion import FusedHit
from st_keytokens.index.search import SearchPlan, embedded_queries

SPARSE = SparseEmbeddings.from_dicts([{1: 1.0}], vocab_size=5)
BOTH = HybridEmbeddings(np.ones((1, 3), np.float32), SPARSE)
ENCODER = SimpleNamespace(fusion_weights={"sparse": 0.5})


class TestChecked:
    def test_defaults(self):
        plan = SearchPlan.checked()
        assert (plan.mode, plan.top_k, plan.depth, plan.fusion, plan.weights, plan.filter) == (
            None, 10, 100, "adaptive", None, None,
        )  # fmt: skip

    @pytest.mark.parametrize(("given", "depth"), [({"top_k": 30}, 300), ({"top_k": 30, "depth": 5}, 5)])
    def test_depth(self, given, depth):
        assert SearchPlan.checked(**given).depth == depth

    def test_a_filter_is_parsed(self):
        assert SearchPlan.checked(filter={"year": {"$lt": 3}}).condition == Compares("year", "$lt", 3)
        assert SearchPlan.checked(filter={"year": 3}).condition == IsIn("year", (3,))

    def test_a_function_is_no_condition(self):
        plan = SearchPlan.checked(filter=lambda document: True)
        with pytest.raises(TypeError, match="filter must be a dictionary or a collection of ids, got a function"):
            plan.condition  # noqa: B018  # reading it is the test

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"top_k": 0}, ValueError, "top_k must be >= 1, got 0"),
            ({"depth": 1.5}, TypeError, "depth must be an integer, got float 1.5"),
            ({"mode": "both"}, ValueError, "mode must be one of 'hybrid', 'sparse', 'dense', got 'both'"),
            ({"fusion": "max"}, ValueError, "fusion must be one of 'adaptive', 'score', 'rrf' or a function"),
            (
                {"fusion": "rrf", "fusions": ["own"]},
                ValueError,
                "fusion must be one of 'own' or a function, got 'rrf'",
            ),
            ({"filter": 5}, TypeError, "filter must be a list of strings, got int 5"),
        ],
    )
    def test_refused(self, given, error, message):
        with pytest.raises(error, match=message):
            SearchPlan.checked(**given)


class TestSettled:
    def settled(self, queries=BOTH, dimension=3, encoder=None, **given):
        return SearchPlan.checked(**given).settled(
            queries, vocab_size=5, embedding_dimension=dimension, encoder=encoder
        )

    def test_the_mode_is_what_both_have(self):
        assert self.settled().mode == "hybrid"
        assert self.settled(HybridEmbeddings(None, SPARSE)).mode == "sparse"
        assert self.settled(dimension=0).mode == "sparse"
        assert self.settled(dimension=None).mode == "sparse"
        assert self.settled(mode="dense").mode == "dense"

    @pytest.mark.parametrize(
        ("given", "weights"),
        [
            ({}, {"sparse": 0.5}),
            ({"fusion": score_fusion}, {"sparse": 0.5}),
            ({"weights": {"dense": 2.0}}, {"dense": 2.0}),
            ({"fusion": "own", "fusions": ["own"]}, None),
        ],
    )
    def test_the_weights_are_the_encoders_for_our_fusions(self, given, weights):
        assert self.settled(encoder=ENCODER, **given).weights == weights

    def test_sizes_that_differ(self):
        with pytest.raises(ValueError, match="queries must have dense rows of dimension 4, got 3"):
            self.settled(dimension=4)
        with pytest.raises(ValueError, match="queries must have dense rows for this mode, got none"):
            self.settled(HybridEmbeddings(None, SPARSE), dimension=0, mode="hybrid")
        with pytest.raises(ValueError, match="queries must have vocab_size 6"):
            SearchPlan.checked().settled(BOTH, vocab_size=6, embedding_dimension=3, encoder=None)


class TestFused:
    RANKINGS = {"dense": [("a", 0.9), ("b", 0.5)], "sparse": [("b", 7.0)]}  # noqa: RUF012  # read only

    def test_by_name_and_by_function(self):
        named = SearchPlan.checked(fusion="score").fused(self.RANKINGS)
        assert named == SearchPlan.checked(fusion=score_fusion).fused(self.RANKINGS) == score_fusion(self.RANKINGS)

    def test_the_best_with_weights(self):
        plan = SearchPlan.checked(fusion="score", top_k=1, weights={"sparse": 3.0})
        assert plan.fused(self.RANKINGS) == [
            FusedHit("b", 3.0, {"dense": 0.5, "sparse": 7.0}, {"dense": 2, "sparse": 1})
        ]

    def test_weights_that_a_fusion_has_none_for(self):
        SearchPlan.checked().refuse_weights()
        with pytest.raises(ValueError, match="weights must be None for fusion='rrf', which has none"):
            SearchPlan.checked(fusion="rrf", weights={"dense": 1.0}).refuse_weights()


class TestEmbedded:
    def test_embeddings_need_no_encoder(self):
        assert embedded_queries("queries", BOTH, pytest.fail, is_hybrid=True) is BOTH
        assert embedded_queries("queries", SPARSE, pytest.fail, is_hybrid=False) == HybridEmbeddings(None, SPARSE)

    @pytest.mark.parametrize("is_hybrid", [True, False])
    def test_texts_are_encoded_as_queries(self, is_hybrid):
        asked = []

        def encode_query(texts, *, is_hybrid):
            asked.append((texts, is_hybrid))
            return BOTH

        encoder = SimpleNamespace(encode_query=encode_query)
        assert embedded_queries("queries", ("a", "b"), lambda name: encoder, is_hybrid=is_hybrid) is BOTH
        assert asked == [(["a", "b"], is_hybrid)]

    def test_anything_else(self):
        with pytest.raises(TypeError, match="queries must be a list of strings, got str 'text'"):
            embedded_queries("queries", "text", pytest.fail, is_hybrid=True)
