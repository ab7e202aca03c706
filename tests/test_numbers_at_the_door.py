"""Weights, scores and metadata that are not finite, or would not be when they are added up, are refused on entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import torch

from st_keytokens import HybridEmbeddings, HybridIndex, SparseEmbeddings
from st_keytokens.engines.records import Records
from st_keytokens.index.fusion import FUSIONS, score_fusion
from st_keytokens.retrieval.outside_ranking import OutsideHit, similarities
from st_keytokens.sparse_embeddings import MAX_WEIGHT
from st_keytokens.terms.weighting import Corpus, Weighting

ABOVE = float(np.nextafter(np.float32(MAX_WEIGHT), np.float32(np.inf)))
TOO_LARGE = [ABOVE, 3e38, 3.4e38, 1e39, 1e308, math.inf]

MAKERS = {
    "arrays": lambda weight: SparseEmbeddings([0, 1], [1], [weight], 5),
    "pairs": lambda weight: SparseEmbeddings.from_pairs([[1]], [[weight]], 5),
    "dicts": lambda weight: SparseEmbeddings.from_dicts([{1: weight}], 5),
    "scipy": lambda weight: SparseEmbeddings.from_scipy(scipy.sparse.csr_matrix([[0.0, weight]])),
    "torch": lambda weight: SparseEmbeddings.from_torch(torch.tensor([[0.0, weight]], dtype=torch.float64)),
    "values": lambda weight: SparseEmbeddings([0, 1], [1], [1.0], 5).with_values([weight]),
    "sum": lambda weight: SparseEmbeddings([0, 1], [1], [1.0], 5).add(
        SparseEmbeddings([0, 1], [1], [1.0], 5), other_weight=min(weight, 1e308)
    ),
}


def unchecked(weight):
    """One row with this weight, as code makes it that knows what it does."""
    parts = np.array([0, 1]), np.array([1], np.int32), np.array([weight], np.float32)
    return SparseEmbeddings.trusted(*parts, vocab_size=5)


class TestSparseEmbeddings:
    @pytest.mark.parametrize("weight", TOO_LARGE)
    @pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
    def test_too_large(self, make, weight):
        with pytest.raises(ValueError, match=r"must be (at most 2\*\*48|finite in float32)"):
            make(weight)

    @pytest.mark.parametrize("weight", [math.nan, -math.inf])
    @pytest.mark.parametrize("name", ["arrays", "pairs", "dicts", "scipy", "torch", "values"])
    def test_not_finite(self, name, weight):
        with pytest.raises(ValueError, match="must be finite in float32"):
            MAKERS[name](weight)

    def test_sums_of_duplicates(self):
        matrix = scipy.sparse.coo_matrix(([MAX_WEIGHT, MAX_WEIGHT], ([0, 0], [1, 1])), shape=(1, 5))
        with pytest.raises(ValueError, match=r"values must be at most 2\*\*48"):
            SparseEmbeddings.from_scipy(matrix)

    def test_the_largest_have_finite_scores(self):
        """2**96 times the 300,000 terms of a large vocabulary, where the most there can be, 2**31, give 2**127."""
        terms = np.arange(300_000)
        row = SparseEmbeddings([0, len(terms)], terms, np.full(len(terms), MAX_WEIGHT), len(terms))
        np.testing.assert_allclose(row.scores(row), [[2.0**96 * len(terms)]], rtol=1e-3)
        assert MAX_WEIGHT**2 * (2**31 - 1) < np.finfo(np.float32).max


class TestIndex:
    @pytest.mark.parametrize("weight", [3e38, math.inf, math.nan, -1.0, 0.0])
    def test_rows_that_nobody_checked(self, weight):
        with HybridIndex() as index:
            with pytest.raises(ValueError, match="weights of embeddings must be"):
                index.add(["a"], embeddings=unchecked(weight))
            assert len(index) == 0
            index.add(["a"], embeddings=unchecked(2.0))
            with pytest.raises(ValueError, match="weights of queries must be"):
                index.search(unchecked(weight), mode="sparse")

    def test_the_largest_weights_are_found_in_every_mode(self):
        dense = np.eye(2, dtype=np.float32)
        sparse = SparseEmbeddings.from_dicts([{1: MAX_WEIGHT}, {1: 1.0}], 5)
        embeddings = HybridEmbeddings(dense, sparse)
        with HybridIndex() as index:
            index.add(["a", "b"], embeddings=embeddings)
            for mode in ("hybrid", "sparse", "dense"):
                for fusion in FUSIONS:
                    (hits,) = index.search(embeddings[:1], mode=mode, fusion=fusion)
                    assert hits[0].id == "a" and math.isfinite(hits[0].score)
            assert index.search(sparse[:1], mode="sparse")[0][0].score == 2.0**96

    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"x": v}])
    def test_metadata(self, value, wrap):
        sparse = SparseEmbeddings.from_dicts([{1: 1.0}], 5)
        with HybridIndex() as index:
            with pytest.raises(ValueError, match="metadata must be a JSON object"):
                index.add(["a"], embeddings=sparse, metadata=[{"n": wrap(value)}])
            assert len(index) == 0
        with pytest.raises(ValueError, match="metadata must be a JSON object"):
            Records(["a"], sparse, metadata=[{"n": wrap(value)}])


@pytest.mark.parametrize("weight", [3e38, math.inf, math.nan, -1.0])
def test_records(weight):
    with pytest.raises(ValueError, match="weights of embeddings must be"):
        Records(["a"], unchecked(weight))


class TestWeighting:
    NAMES = ("k1", "document_decoded_weight", "query_decoded_weight")

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("value", [1.1e12, 1e300, math.inf, math.nan, -1.0, -(10**400), 10**400])
    def test_out_of_range(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must (be between 0 and|not be negative, and finite)"):
            Weighting(**{name: value})

    @pytest.mark.parametrize("name", [*NAMES, "b"])
    def test_no_number(self, name):
        with pytest.raises(TypeError, match=f"{name} must be a number, got str '1'"):
            Weighting(**{name: "1"})

    def test_weights_that_overflow(self):
        terms = [np.array([1, 1, 2])]
        largest = Weighting(k1=1e12, document_decoded_weight=1e12)
        found = largest.document(terms, SparseEmbeddings.from_dicts([{3: 1.0}], 5), 5, Corpus())
        assert np.isfinite(found.values).all() and found.values.max() == pytest.approx(5e12)
        with pytest.raises(ValueError, match=r"values must be at most 2\*\*48"):
            Weighting().document(terms, None, 5, Corpus(idf=np.full(5, 1e30, np.float32)))


class TestFusion:
    @pytest.mark.parametrize("name", list(FUSIONS))
    @pytest.mark.parametrize("number", [1.1e100, 1e308, 10**400, math.inf, math.nan])
    def test_refused(self, name, number):
        ranking = [("a", 2.0), ("b", 1.0)]
        with pytest.raises(ValueError, match=r"scores must be (within 1e100|finite), got"):
            FUSIONS[name]({"dense": [("c", number), *ranking]})
        with pytest.raises(ValueError, match=r"weights must be (at most 1e100|finite and >= 0), got"):
            FUSIONS[name]({"dense": ranking}, weights={"dense": number})

    @pytest.mark.parametrize("normalization", ["min-max", "z-score", "none"])
    def test_the_largest_give_finite_sums(self, normalization):
        ranking = [("a", 1e100), ("b", 0.0), ("c", -1e100)]
        weights = {"dense": 1e100, "sparse": 1e100}
        fused = score_fusion({"dense": ranking, "sparse": ranking}, weights=weights, normalization=normalization)
        assert [hit.id for hit in fused] == ["a", "b", "c"] and all(math.isfinite(hit.score) for hit in fused)

    @pytest.mark.parametrize("name", list(FUSIONS))
    def test_the_largest_float32_scores(self, name):
        largest = float(np.finfo(np.float32).max)
        rankings = {"dense": [("a", largest), ("b", -largest)], "sparse": [("b", largest), ("a", 1e-45)]}
        assert all(math.isfinite(hit.score) for hit in FUSIONS[name](rankings))

    def test_scores_of_another_store(self):
        hits = [OutsideHit("a", score=math.nan), OutsideHit("b", score=0.5)]
        scores = similarities(hits, fusion="score")
        with pytest.raises(ValueError, match="scores must be finite, got nan"):
            score_fusion({"dense": list(zip("ab", scores, strict=True))})
