from __future__ import annotations

import numpy as np
import pytest

from st_keytokens.index import dense, segments
from st_keytokens.index.dense import DenseRows, best_dense, checked_dense


def naive(rows, query, similarity):
    rows, query = rows.astype(np.float64), query.astype(np.float64)
    scores = rows @ query
    if similarity == "cosine":
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    return scores


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 6)).astype(np.float32)
    rows[[3, 50]] = 0
    return rows


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
class TestBestDense:
    def test_equals_numpy_in_blocks_and_groups(self, rows, similarity, monkeypatch):
        monkeypatch.setattr(segments, "_BLOCK_BYTES", 7 * 6 * 4)  # blocks of 7 rows
        monkeypatch.setattr(dense, "_SCORE_BYTES", 2 * 200 * 4)  # groups of 2 queries
        queries = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
        queries[4] = 0
        parts = [checked_dense("rows", part, "float32") for part in (rows[:90], rows[90:91], rows[91:])]
        allowed = np.flatnonzero(np.random.default_rng(2).random(200) < 0.7)
        results = list(best_dense(parts, checked_dense("queries", queries, "float32"), similarity, allowed, 20))
        assert len(results) == 5
        for query, (found, scores) in zip(queries, results, strict=True):
            truth = naive(rows, query, similarity)[allowed]
            assert set(found.tolist()) <= set(allowed.tolist())
            np.testing.assert_allclose(scores, np.sort(truth)[::-1][:20], atol=1e-5)
            np.testing.assert_allclose(scores, naive(rows, query, similarity)[found], atol=1e-5)

    def test_exactly_the_smaller_of_limit_and_rows(self, rows, similarity):
        part, query = checked_dense("rows", rows, "float32"), checked_dense("queries", -rows[:1], "float32")
        for limit, expected in ((1, 1), (200, 200), (500, 200)):
            ((found, scores),) = best_dense([part], query, similarity, np.arange(200), limit)
            assert len(found) == len(scores) == expected

    def test_ties_by_row(self, similarity):
        part = checked_dense("rows", np.tile(np.float32([[1, 0], [0, 1]]), (100, 1)), "float32")
        query = checked_dense("queries", np.float32([[1, 0]]), "float32")
        ((found, _),) = best_dense([part], query, similarity, np.arange(200), 4)
        assert found.tolist() == [0, 2, 4, 6]


class TestCheckedDense:
    def test_norms_hand_worked(self):
        made = checked_dense("rows", np.float64([[3, 4], [0, 0]]), "float32")
        assert made.rows.dtype == made.norms.dtype == np.float32
        assert made.norms.tolist() == [5.0, 1.0]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e25])
    def test_values_without_a_finite_norm_are_refused(self, value):
        rows = np.ones((5, 2))
        rows[3, 1] = value
        with pytest.raises(ValueError, match=r"rows must have finite values and squared norms in float32, but row 3"):
            checked_dense("rows", rows, "float32")

    def test_what_half_precision_cannot_hold_is_refused(self):
        assert checked_dense("rows", np.float32([[60_000]]), "float16").rows.dtype == np.float16
        with pytest.raises(ValueError, match=r"in float16, but row 0 has not"):
            checked_dense("rows", np.float32([[70_000]]), "float16")

    def test_input_is_not_modified(self):
        rows = np.zeros((2, 2), np.float32)
        checked_dense("rows", rows, "float32")
        assert not rows.any()

    def test_blocks_cover_all_rows_in_order(self, monkeypatch):
        monkeypatch.setattr(segments, "_BLOCK_BYTES", 3 * 2 * 4)
        made = DenseRows(np.arange(16, dtype=np.float16).reshape(8, 2), np.ones(8, np.float32))
        places, blocks = zip(*made.blocks(), strict=True)
        assert [(place.start, place.stop) for place in places] == [(0, 3), (3, 6), (6, 8)]
        assert np.concatenate(blocks).dtype == np.float32
        assert np.array_equal(np.concatenate(blocks), made.rows)
