from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy.stats

from st_keytokens import KeyTokenEncoder, SparseEmbeddings
from st_keytokens.analysis.relatedness import (
    PAIR_MEASURES,
    compare_with_judgements,
    cosine_overlap,
    judged_correlations,
    weighted_jaccard,
)


@pytest.fixture(scope="module")
def encoder(llama_embedder, sentences):
    encoder = KeyTokenEncoder(llama_embedder, terms="tokens")
    encoder.calibrate(sentences, show_progress_bar=False)
    return encoder


@pytest.fixture(scope="module")
def pairs(sentences):
    return list(itertools.pairwise(sentences[:21]))


@pytest.fixture(scope="module")
def found(encoder, pairs):
    return compare_with_judgements(encoder, pairs, np.arange(20) % 7, samples=50, top_k=30)


class TestMeasures:
    def test_by_hand(self):
        rows = SparseEmbeddings.from_dicts(
            [{0: 2.0, 2: 1.0}, {}, {1: 1.0}, {0: 1.0, 1: 2.0}, {}, {1: 4.0}], vocab_size=3
        )
        # first pair: smaller weights 1, larger 2 + 2 + 1; product 2, lengths √5 and √5
        assert weighted_jaccard(rows).tolist() == pytest.approx([0.2, 0, 0.25])
        assert cosine_overlap(rows).tolist() == pytest.approx([0.4, 0, 1])

    def test_of_an_encoder(self, encoder, pairs, found, llama_embedder):
        assert list(found.values) == list(PAIR_MEASURES)
        texts = [text for pair in pairs[:3] for text in pair]
        dense = llama_embedder.encode(texts).astype(np.float64)
        sparse = encoder.encode(texts).sparse.to_scipy().toarray().astype(np.float64)
        decoded = [dict(row) for row in encoder.key_tokens(texts, 30)]
        for i in range(3):
            a, b = 2 * i, 2 * i + 1
            for name, rows in {"dense cosine": dense, "sparse cosine": sparse}.items():
                cosine = rows[a] @ rows[b] / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b])
                assert found.values[name][i] == pytest.approx(cosine, rel=1e-3)
            tokens = decoded[a].keys() | decoded[b].keys()
            weights = np.array([[decoded[j].get(token, 0.0) for token in tokens] for j in (a, b)])
            jaccard = weights.min(axis=0).sum() / weights.max(axis=0).sum()
            assert found.values["decoded Jaccard"][i] == pytest.approx(jaccard, rel=1e-3)
            counts = [np.bincount(encoder.literal_terms([texts[j]])[0], minlength=640) for j in (a, b)]
            own = np.minimum(*counts).sum() / np.maximum(*counts).sum()
            assert found.values["literal Jaccard"][i] == pytest.approx(own)


class TestCorrelations:
    def test_against_scipy(self):
        generator = np.random.default_rng(0)
        human = generator.integers(0, 6, 80).astype(float)
        values = {"a": human + generator.normal(size=80), "b": generator.normal(size=80).round(1)}
        found = judged_correlations(values, human, samples=3000)
        for name, of_measure in values.items():
            expected = scipy.stats.spearmanr(of_measure, human).statistic
            result = found[name]
            assert result.spearman == pytest.approx(expected)
            resampled = scipy.stats.bootstrap(
                (of_measure, human),
                lambda x, y: scipy.stats.spearmanr(x, y).statistic,
                paired=True,
                vectorized=False,
                n_resamples=400,
                method="percentile",
                rng=np.random.default_rng(1),
            ).confidence_interval
            assert (result.low, result.high) == pytest.approx((resampled.low, resampled.high), abs=0.06)
        assert found["a"].difference is None
        assert found["b"].difference == pytest.approx(found["b"].spearman - found["a"].spearman)
        assert found["b"].difference_low < found["b"].difference < found["b"].difference_high < 0

    def test_the_same_measure_twice_differs_by_nothing(self):
        values = np.array([1.0, 5.0, 2.0, 4.0, 3.0])
        found = judged_correlations({"a": values, "b": values**3}, np.arange(5.0), samples=20)["b"]
        assert (found.difference, found.difference_low, found.difference_high) == (0, 0, 0)

    def test_a_constant_measure_has_none(self):
        found = judged_correlations({"a": np.arange(5.0), "b": np.zeros(5)}, np.arange(5.0), samples=20)["b"]
        assert (found.spearman, found.low, found.difference, found.zero_share) == (None, None, None, 1)

    def test_the_seed_decides(self):
        values, human = {"a": np.array([1.0, 3.0, 2.0, 5.0, 4.0])}, np.arange(5.0)
        one, same, other = (judged_correlations(values, human, samples=30, seed=seed)["a"] for seed in (1, 1, 2))
        assert one == same and one != other


class TestRelatedness:
    def test_the_correlations_are_of_the_values(self, found):
        for name, values in found.values.items():
            expected = scipy.stats.spearmanr(values, found.judgements).statistic
            assert found.correlations[name].spearman == pytest.approx(expected)

    def test_written_out_without_the_judgements(self, found):
        content = json.loads(json.dumps(found.to_dict()))
        assert content["pairs"] == 20 and "judgements" not in content and "values" not in content
        assert found.table().count("\n") == 2 + len(PAIR_MEASURES)

    def test_identical_texts(self, encoder, sentences):
        found = compare_with_judgements(encoder, [(s, s) for s in sentences[:4]], [1, 2, 3, 4], samples=10)
        assert found.values["decoded Jaccard"].tolist() == [1, 1, 1, 1]
        assert found.correlations["decoded Jaccard"].spearman is None

    def test_texts_without_terms_share_nothing(self, encoder, sentences):
        found = compare_with_judgements(
            encoder, [("", ""), ("", "a"), *[(s, s) for s in sentences[:2]]], [1, 2, 3, 4], samples=10
        )
        for values in found.values.values():
            assert values[:2].tolist() == [0, 0] and values[2:].tolist() == pytest.approx([1, 1])

    @pytest.mark.parametrize(
        ("judgements", "options", "match"),
        [
            ([1, 2], {}, r"judgements must be one for each of at least three pairs, got shape \(2,\) for 3 pairs"),
            ([1, 1, 1], {}, r"judgements must be finite and differ"),
            ([1, 2, float("nan")], {}, r"judgements must be finite and differ"),
            ([1, 2, 3], {"top_k": 999}, r"top_k must be between 1 and 256, got 999"),
            ([1, 2, 3], {"samples": 0}, r"samples must be >= 1, got 0"),
            ([1, 2, 3], {"confidence": 2}, r"confidence must be between 0.5 and 0.9999, got 2"),
        ],
    )
    def test_refused(self, encoder, judgements, options, match):
        with pytest.raises(ValueError, match=match):
            compare_with_judgements(encoder, [("a", "b")] * 3, judgements, **options)
