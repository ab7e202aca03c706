from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from st_keytokens import Calibration
from st_keytokens.terms.term_values import TermValues
from st_keytokens.terms.weighting import Weighting

PAIRS = st.dictionaries(st.integers(0, 40), st.integers(1, 9), max_size=12)


def values_of(pairs):
    return TermValues(np.array(sorted(pairs), np.int64), np.array([pairs[i] for i in sorted(pairs)], np.int64))


@given(PAIRS, PAIRS)
def test_as_an_array_of_the_whole_vocabulary(one, other):
    added = values_of(one).plus(values_of(other).ids, values_of(other).values)
    expected = [one.get(i, 0) + other.get(i, 0) for i in range(41)]
    assert added.dense(41).tolist() == expected
    assert added[np.arange(41)].tolist() == expected
    assert added[np.array([], np.int64)].tolist() == []


class TestLargeVocabulary:
    """Everything that a calibration teaches of terms, where an array of the whole vocabulary would take gigabytes."""

    SIZE, STRIDE = 1 << 29, 12_345_677  # small ids spread over a large vocabulary

    def fitted(self, vocab_size, stride):
        random = np.random.default_rng(0)
        calibration = Calibration(8, vocab_size=vocab_size, vocabulary_hash="a")
        for _ in range(3):
            terms = [random.integers(0, 40, size=random.integers(3, 9)) * stride for _ in range(20)]
            calibration.update(random.standard_normal((20, 8)).astype(np.float32), terms)
        return calibration

    def test_is_that_of_a_small_one(self, tmp_path):
        small, large = self.fitted(40, 1), self.fitted(self.SIZE, self.STRIDE)
        assert large.average_length == small.average_length
        assert large.corpus.literal_norm == small.corpus.literal_norm
        terms = np.arange(40)
        np.testing.assert_array_equal(large.corpus.idf[terms * self.STRIDE], small.idf)
        unseen = np.log1p(60.5 / 0.5)
        np.testing.assert_allclose(large.corpus.idf[np.array([1])], unseen, rtol=1e-6)
        ours, theirs = large.ridge_decoder(), small.ridge_decoder()
        np.testing.assert_array_equal(ours.term_ids, theirs.term_ids * self.STRIDE)
        assert np.array_equal(ours.weight, theirs.weight)
        large.save(tmp_path)
        loaded = Calibration.load(tmp_path)
        assert loaded.hash == large.hash
        assert (tmp_path / "calibration.safetensors").stat().st_size < 20_000

    def test_halves_merge(self):
        whole, half = self.fitted(self.SIZE, self.STRIDE), self.fitted(self.SIZE, self.STRIDE)
        half.merge(whole)
        np.testing.assert_array_equal(half.terms.frequencies.values, 2 * whole.terms.frequencies.values)
        np.testing.assert_array_equal(half.cross_moments.term_ids, whole.cross_moments.term_ids)

    def test_documents_are_weighed(self):
        small, large = self.fitted(40, 1), self.fitted(self.SIZE, self.STRIDE)
        texts = [np.array([3, 5, 3]), np.array([7])]
        one = Weighting().document(texts, None, 40, small.corpus)
        other = Weighting().document([terms * self.STRIDE for terms in texts], None, self.SIZE, large.corpus)
        np.testing.assert_array_equal(other.indices, one.indices * self.STRIDE)
        np.testing.assert_array_equal(other.values, one.values)
