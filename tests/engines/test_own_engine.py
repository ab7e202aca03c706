"""An engine from outside the package, as docs/extending.md has it, passes what every engine must pass."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from conformance import DIMENSION, VOCAB_SIZE, EngineConformance, query, small_records

from st_keytokens import reciprocal_rank_fusion
from st_keytokens.engines import AllOf, Engine, HasId
from st_keytokens.index import Hit


class MemoryEngine(Engine):
    """Collections in a dictionary: by name, their settings and their documents by id."""

    def __init__(self, collection, collections, **options):
        super().__init__(collection, **options)
        self.collections = collections

    def smallest_wait(self, error):
        return None  # no error passes by waiting

    def _read_settings(self):
        return self.collections[self.collection][0] if self.collection in self.collections else None

    def _create(self, settings):
        self.collections[self.collection] = settings, {}

    def _upsert(self, records):
        _, documents = self.collections[self.collection]
        for row, id in enumerate(records.ids):
            documents[id] = records.hybrid[row], records.text(row), records.metadata_of(row)

    def _delete(self, ids):
        for id in ids:
            self.collections[self.collection][1].pop(id, None)

    def _search_side(self, queries, side, limit, condition):
        return [self._best(queries[row], side, limit, condition) for row in range(len(queries))]

    def _best(self, query, side, limit, condition):
        found = []
        for id, (vectors, text, metadata) in self.collections[self.collection][1].items():
            if condition is None or condition.matches(id, metadata):
                score = self._score(query, vectors, side)
                if side == "dense" or score > 0:
                    found.append((score, id, text, metadata))
        found.sort(key=lambda hit: -hit[0])
        return [
            Hit(id, score, rank, text, metadata, {side: score})
            for rank, (score, id, text, metadata) in enumerate(found[:limit], 1)
        ]

    def _score(self, query, document, side):
        if side == "sparse":
            (one,), (other,) = query.sparse.to_dicts(), document.sparse.to_dicts()
            return float(sum(weight * other.get(term, 0.0) for term, weight in one.items()))
        one, other = query.dense[0], document.dense[0]
        if self.settings.similarity == "cosine":
            one, other = one / (np.linalg.norm(one) or 1), other / (np.linalg.norm(other) or 1)
        return float(one @ other)

    def _count(self):
        return len(self.collections[self.collection][1])


@functools.cache
def collections_of(directory):
    return {}


def open_memory(directory, collection):
    return MemoryEngine(collection, collections_of(directory))


class TestMemoryEngine(EngineConformance):
    opener = "test_own_engine:open_memory"
    test_a_load_that_was_killed_goes_on = None  # nothing outlives the process


class FusingEngine(MemoryEngine):
    """Fuses itself, under a name of its own."""

    server_fusions = ("own",)

    def _search_fused(self, queries, plan):
        plan.refuse_weights()
        found = [self._search_side(queries, side, plan.depth, plan.condition) for side in ("dense", "sparse")]
        results = []
        for dense, sparse in zip(*found, strict=True):
            known = {hit.id: hit for hit in (*dense, *sparse)}
            rankings = {"own": [(hit.id, hit.score) for hit in dense], "too": [(hit.id, hit.score) for hit in sparse]}
            fused = reciprocal_rank_fusion(rankings)[: plan.top_k]
            results.append(
                [
                    Hit(hit.id, hit.score, rank, known[hit.id].text, known[hit.id].metadata, {})
                    for rank, hit in enumerate(fused, 1)
                ]
            )
        return results


class TestFusionOfItsOwn:
    @pytest.fixture
    def engine(self):
        engine = FusingEngine("fusing", {})
        engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION)
        engine.upsert(small_records(["a", "b", "c"], [{"n": 1}, {"n": 2}, {"n": 3}]))
        return engine

    def test_it_gets_the_plan_of_the_search(self, engine):
        (hits,) = engine.search(query({0: 1.0}), fusion="own", filter={"n": {"$gt": 1}}, top_k=1)
        (expected,) = engine.search(query({0: 1.0}), fusion="rrf", filter={"n": {"$gt": 1}}, top_k=1)
        assert [(hit.id, hit.score, hit.is_hybrid) for hit in hits] == [(expected[0].id, expected[0].score, True)]

    def test_weights_that_it_has_no_use_for(self, engine):
        with pytest.raises(ValueError, match="weights must be None for fusion='own', which has none"):
            engine.search(query({0: 1.0}), fusion="own", weights={"dense": 2.0})

    def test_only_its_own_names(self, engine):
        with pytest.raises(ValueError, match=r"fusion must be one of 'own', 'adaptive', 'score', 'rrf' or a function"):
            engine.search(query({0: 1.0}), fusion="dbsf")

    def test_hybrid_queries_without_dense_rows_in_a_collection_without_them(self):
        engine = MemoryEngine("sparse", {})
        engine.create(vocab_size=VOCAB_SIZE)
        with pytest.raises(ValueError, match="queries must have dense rows for this mode, got none"):
            engine.search(query({0: 1.0}).sparse, mode="hybrid")


def test_conditions_match_by_id_and_metadata():
    assert HasId(("a",)).matches("a", {})
    assert not HasId(()).matches("a", {})
    assert AllOf(()).matches("a", {})
