from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_keytokens.evaluation.runs import best, dense_run, fused_run, sparse_run, tie_order
from st_keytokens.index.fusion import reciprocal_rank_fusion
from st_keytokens.sparse_embeddings import SparseEmbeddings


def matrices(*rows):
    return [SparseEmbeddings.from_dicts(part, 6).to_scipy() for part in rows]


class TestBest:
    @settings(max_examples=100)
    @given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 6), st.randoms(use_true_random=False))
    def test_as_sorted(self, scores, depth, random):
        ties = list(range(len(scores)))
        random.shuffle(ties)
        rows, found = best(np.arange(len(scores)), np.array(scores, float), np.array(ties, dtype=int), depth)
        expected = sorted(range(len(scores)), key=lambda i: (-scores[i], ties[i]))[:depth]
        assert rows.tolist() == expected
        assert found.tolist() == [scores[i] for i in expected]


class TestSparseRun:
    def test_hand_worked(self):
        documents, queries = matrices([{0: 2.0, 1: 1.0}, {1: 3.0}, {}, {5: 1.0}], [{1: 1.0, 0: 1.0}, {}, {4: 1.0}])
        run = sparse_run(documents, queries, np.arange(4), 10, forward_passes=1, seconds={"weigh_queries": 2.0})
        assert [rows.tolist() for rows, _ in run.rankings] == [[0, 1], [], []]  # a tie of 3, ranked by id
        assert run.rankings[0][1].tolist() == [3.0, 3.0]
        assert run.queries_without_terms == 1
        assert run.index_bytes == 4 * 8
        assert (run.document_active_dims, run.query_active_dims) == (1.0, 1.0)
        assert run.forward_passes == 1
        assert set(run.seconds) == {"weigh_queries", "index", "score"} and run.seconds["weigh_queries"] == 2.0

    def test_as_brute_force_over_many_queries(self):
        generator = np.random.default_rng(0)
        dense = [generator.integers(0, 4, (n, 6)) * (generator.random((n, 6)) < 0.4) for n in (40, 150)]
        rows = [[{i: float(w) for i, w in enumerate(row) if w} for row in part] for part in dense]
        ties = generator.permutation(40)
        run = sparse_run(*matrices(*rows), ties, 7, forward_passes=0, seconds={})
        scores = dense[1] @ dense[0].T
        assert len(run.rankings) == 150
        for (found, values), row in zip(run.rankings, scores, strict=True):
            expected = sorted(np.flatnonzero(row), key=lambda i: (-row[i], ties[i]))[:7]
            assert found.tolist() == expected
            assert values.tolist() == row[expected].tolist()


class TestDenseRun:
    def test_by_the_models_similarity_and_nothing_for_a_zero_vector(self, llama_embedder):
        documents = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]], dtype=np.float32)
        queries = np.array([[0.0, 1.0], [0.0, 0.0]], dtype=np.float32)
        run = dense_run(llama_embedder, documents, queries, np.arange(3), 2)
        assert llama_embedder.similarity_fn_name == "cosine"
        assert run.rankings[0][0].tolist() == [2, 1]
        assert run.rankings[0][1].tolist() == pytest.approx([1.0, 0.8])
        assert run.rankings[1][0].tolist() == []
        assert (run.queries_without_terms, run.index_bytes, run.forward_passes) == (1, 3 * 2 * 4, 1)


class TestFusedRun:
    def test_ranks_costs_and_ties(self, llama_embedder):
        documents, queries = matrices([{0: 1.0}, {}, {0: 2.0}], [{0: 1.0}, {}])
        ties = tie_order(["b", "c", "a"])
        sparse = sparse_run(documents, queries, ties, 5, forward_passes=0, seconds={"weigh_queries": 1.0})
        dense = dense_run(llama_embedder, np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:2], ties, 2)
        run = fused_run(dense, sparse, reciprocal_rank_fusion, ties, 5, 5)
        # dense: 0, then 2 (tied with 1, whose id comes later); sparse: 2, then 0; so both fuse to a tie
        assert run.rankings[0][0].tolist() == [2, 0]
        assert run.rankings[0][1].tolist() == pytest.approx([1 / 61 + 1 / 62] * 2)
        assert run.rankings[1][0].tolist() == [1, 2]
        near = fused_run(dense, sparse, reciprocal_rank_fusion, ties, 5, 1)
        assert [rows.tolist() for rows, _ in near.rankings] == [[2, 0], [1]]
        assert near.rankings[0][1].tolist() == [1 / 61] * 2
        assert run.index_bytes == 3 * 3 * 4 + 2 * 8
        assert run.forward_passes == 1
        assert run.queries_without_terms == 1
        assert run.seconds["weigh_queries"] == 1.0
        assert run.seconds["score"] == dense.seconds["score"] + sparse.seconds["score"]
