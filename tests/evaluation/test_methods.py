from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_samples import QUERIES, build_collection, build_encoder
from sentence_transformers.sentence_transformer.modules import Normalize

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.collections import Collection
from st_keytokens.evaluation.encoded import encode_collection, with_settings
from st_keytokens.evaluation.methods import COMPARED_METHODS, in_text_weights, run_methods
from st_keytokens.index.fusion import adaptive_fusion
from st_keytokens.index.hybrid_index import HybridIndex
from st_keytokens.shared.document_files import Record


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    encoder = build_encoder(llama_embedder)
    encoder.model.append(Normalize())
    return KeyTokenEncoder(encoder.model, max_active_dims=20, query_max_active_dims=6)


@pytest.fixture(scope="module")
def encoded(encoder):
    return encode_collection(build_collection(), encoder)


@pytest.fixture(scope="module")
def runs(encoded):
    return run_methods(encoded, list(COMPARED_METHODS))


class TestMethods:
    def test_all_of_them_rank(self, runs, encoded):
        assert len(runs) == 30
        for run in runs.values():
            assert len(run.rankings) == 5
            for rows, scores in run.rankings:
                assert len(set(rows.tolist())) == len(rows)
                assert (np.diff(scores) <= 0).all()
            assert run.index_bytes > 0

    def test_ours_are_the_encoders_own_vectors(self, runs, encoded):
        encoder, collection = encoded.encoder, encoded.collection
        documents = encoder.sparsify(encoded.document_pooled, collection.documents)
        queries = encoder.sparsify(encoded.query_pooled, collection.queries, role="query")
        lookup = encoder.encode_query(collection.queries, query="lookup").sparse
        for name, vectors in (("key-tokens", queries), ("key-tokens-lookup", lookup)):
            scores = vectors.scores(documents)
            for (rows, found), row in zip(runs[name].rankings, scores, strict=True):
                assert sorted(rows.tolist()) == np.flatnonzero(row).tolist()
                np.testing.assert_allclose(found, np.sort(row[row > 0])[::-1], rtol=1e-5)
            assert runs[name].query_active_dims == vectors.active_dims.mean()
            assert runs[name].document_active_dims == documents.active_dims.mean()
            assert runs[name].index_bytes == 8 * documents.nnz

    def test_the_papers_method_is_the_one_by_that_name(self, llama_embedder, runs, encoded):
        paper = KeyTokenEncoder(copy.deepcopy(llama_embedder), method="nie2025")
        collection = encoded.collection
        queries, documents = paper.encode_query(collection.queries), paper.encode_document(collection.documents)
        scores = queries.sparse.scores(documents.sparse)
        for (rows, found), row in zip(runs["nie2025"].rankings, scores, strict=True):
            assert len(rows) == np.count_nonzero(row)
            np.testing.assert_allclose(found, np.sort(row[row > 0])[::-1], rtol=1e-4)
        removed = [rows.tolist() for rows, _ in runs["nie2025-remove"].rankings]
        assert removed != [rows.tolist() for rows, _ in runs["nie2025"].rankings]

    def test_trust_and_lead_weigh_the_sides(self, encoded):
        own = encoded.encoder
        calibration = copy.copy(own.calibration)
        calibration.decoded_trust = 0.3
        encoder = with_settings(own, own.weighting, calibration, **own.head.get_config_dict())
        weights = encoder.fusion_weights
        assert weights == {"dense": pytest.approx(0.225), "sparse": 1.0}
        names = ["dense", "key-tokens", "dense+key-tokens-adaptive"]
        runs = run_methods(replace(encoded, encoder=encoder), names)
        for number in range(5):
            sides = {
                side: list(zip(*map(np.ndarray.tolist, runs[name].rankings[number]), strict=True))
                for side, name in (("dense", "dense"), ("sparse", "key-tokens"))
            }
            expected = {hit.id: hit.score for hit in adaptive_fusion(sides, weights=weights)}
            found = dict(zip(*map(np.ndarray.tolist, runs["dense+key-tokens-adaptive"].rankings[number]), strict=True))
            assert found == pytest.approx(expected)

    def test_passes_and_queries_without_terms(self, runs):
        passes = {name: run.forward_passes for name, run in runs.items()}
        without = {"bm25-words", "bm25-stemmed", "bm25-tokens", "key-tokens-lookup"}
        assert {name for name, number in passes.items() if number == 0} == without
        assert runs["bm25-words"].queries_without_terms == 1
        assert runs["dense+bm25-words-rrf"].queries_without_terms == 1
        assert runs["bm25-words"].rankings[4][0].tolist() == []

    def test_dense_ranks_by_cosine(self, runs, encoded):
        rows, scores = runs["dense"].rankings[0]
        expected = encoded.document_dense @ encoded.query_dense[0]
        assert rows[0] == expected.argmax()
        np.testing.assert_allclose(scores, np.sort(expected)[::-1], atol=1e-6)
        assert runs["dense"].index_bytes == 50 * 32 * 4

    def test_depth_cuts_every_ranking(self, encoded):
        for run in run_methods(encoded, ["dense", "key-tokens", "dense+key-tokens-score"], depth=3).values():
            assert max(len(rows) for rows, _ in run.rankings) == 3

    def test_the_default_hybrid_is_what_an_index_finds(self, encoder):
        base = build_collection()
        documents = [f"{text} {other}" for text in base.documents[:20] for other in base.documents[20:40]]
        records = [Record(f"d{number:03}", text) for number, text in enumerate(documents)]
        queries = [Record(id, text) for id, text in QUERIES.items() if text.strip()]
        judged = [(query.id, records[0].id, 1) for query in queries]
        encoded = encode_collection(Collection.build("pairs", records, queries, judged), encoder)
        name = "dense+key-tokens-hybrid-adaptive"
        scores, deeper = (
            [found[:10].tolist() for _, found in run_methods(encoded, [name], **settings)[name].rankings]
            for settings in ({}, {"fusion_depth": 400})
        )
        assert scores != deeper
        with HybridIndex(encoder=encoded.encoder) as index:
            index.add(texts=documents)
            hits = index.search([query.text for query in queries])
        for row, expected in zip(hits, scores, strict=True):
            assert [hit.score for hit in row] == pytest.approx(expected, rel=1e-4)

    def test_refuses(self, encoded):
        with pytest.raises(ValueError, match=r"methods must be among dense, .*, got 'splade'"):
            run_methods(encoded, ["splade"])
        with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
            run_methods(encoded, ["dense"], depth=0)
        with pytest.raises(ValueError, match="fusion_depth must be at least 1, got 0"):
            run_methods(encoded, ["dense"], fusion_depth=0)


class TestInTextWeights:
    def test_only_tokens_of_the_text_with_their_scores(self, encoder, encoded):
        texts, pooled = encoded.collection.documents, encoded.document_pooled
        found = in_text_weights(encoder, pooled, texts, batch_size=7)
        encoder = encoder.over_tokens()
        head = encoder.head.with_settings(correction="none", standardize=False)
        scores = head.decode_scores(torch.from_numpy(pooled)).detach().numpy()
        terms = encoder.vocabulary.terms
        for row, literal, weights in zip(scores, encoder.literal_terms(texts), found.to_dicts(), strict=True):
            best = {int(term): float(row[terms == term].max()) for term in set(literal.tolist())}
            assert weights == pytest.approx({t: np.log1p(score) for t, score in best.items() if score > 0}, rel=1e-4)
        assert found.nnz > 50

    def test_keeps_the_strongest(self, encoder, encoded):
        texts, pooled = encoded.collection.documents[:3], encoded.document_pooled[:3]
        pruned = in_text_weights(encoder, pooled, texts, max_active_dims=2)
        assert pruned == in_text_weights(encoder, pooled, texts).prune(2)
        assert pruned.active_dims.max() == 2
