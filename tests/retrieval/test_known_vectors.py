"""Vectors that documents or queries bring with them are used; those of another model are embedded anew."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from retrieval_samples import TEXTS

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import PairedEmbeddings, Retriever, SearchSettings

MANY = [f"{TEXTS[number % len(TEXTS)]} {number}" for number in range(1100)]  # more than the encoder remembers


@pytest.fixture
def fresh(llama_embedder, calibration):
    return KeyTokenEncoder(llama_embedder, calibration=calibration)


class TestDocuments:
    @pytest.mark.parametrize("has_dense", [True, False])
    def test_stored_vectors_take_one_pass_for_all(self, fresh, encoder, passes, has_dense):
        expected = encoder.encode_document(MANY)
        passes.take()
        with Retriever(fresh, has_dense=has_dense) as retriever:
            retriever.add(MANY, embeddings=expected.dense.tolist())
            assert passes.take() == 1  # the one that tells whose they are
            settings = SearchSettings(mode="sparse", top_k=20)
            found = [(hit.text, hit.score) for hit in retriever.search(TEXTS[1], settings)]
            with Retriever(encoder) as embedded:
                embedded.add(MANY)
                hits = embedded.search(TEXTS[1], settings)
            assert found == [(hit.text, pytest.approx(hit.score, rel=1e-4)) for hit in hits]

    def test_a_half_that_waits_needs_none_at_all(self, fresh, passes):
        pair = PairedEmbeddings(fresh)
        dense = [vector for start in range(0, 1100, 64) for vector in pair.dense_documents(MANY[start : start + 64])]
        assert passes.take() == 1100
        with Retriever(fresh) as retriever:
            retriever.add(MANY, embeddings=dense)
            assert passes.take() == 0
            assert len(retriever) == 1100

    def test_some_of_them(self, fresh, encoder, passes):
        expected = encoder.encode_document(TEXTS)
        passes.take()
        given = [None, *expected.dense.tolist()[1:]]
        both = PairedEmbeddings(fresh).hybrid_documents(TEXTS, given)
        assert passes.take() == 2
        np.testing.assert_allclose(both.dense, expected.dense, rtol=1e-4, atol=1e-5)
        for found, wanted in zip(both.sparse.to_dicts(), expected.sparse.to_dicts(), strict=True):
            assert found == pytest.approx(wanted, rel=1e-3)

    @pytest.mark.parametrize("dimension", [32, 7])
    def test_those_of_another_model_are_not_taken(self, fresh, encoder, dimension, caplog):
        other = np.random.default_rng(0).normal(size=(len(TEXTS), dimension)).tolist()
        with caplog.at_level(logging.WARNING):
            both = PairedEmbeddings(fresh).hybrid_documents(TEXTS, other)
        np.testing.assert_allclose(both.dense, encoder.encode_document(TEXTS).dense, rtol=1e-4, atol=1e-5)
        assert ("are not this encoder's: the cosine" in caplog.text) == (dimension == 32)

    def test_lengths(self, fresh):
        with pytest.raises(ValueError, match=r"embeddings must be one for each of \d+ texts, got 1"):
            PairedEmbeddings(fresh).hybrid_documents(TEXTS, [None])


class TestQueries:
    def test_a_dense_vector_that_is_known(self, retriever, encoder, passes):
        dense = encoder.encode_query(TEXTS[2]).dense[0].tolist()
        passes.take()
        vectors = retriever.query_vectors([TEXTS[2]], dense=dense, mode="hybrid")
        found = retriever.search("anything", SearchSettings(), vectors=vectors)
        assert passes.take() == 0
        assert [(hit.id, hit.score) for hit in found] == [
            (hit.id, pytest.approx(hit.score, rel=1e-5)) for hit in retriever.search(TEXTS[2], SearchSettings())
        ]

    @pytest.mark.parametrize("mode", ["hybrid", "sparse"])
    def test_several_texts_are_their_mean(self, retriever, encoder, mode):
        vectors = retriever.query_vectors(TEXTS[:2], mode=mode)
        one, two = (encoder.encode_query(text, is_hybrid=mode == "hybrid") for text in TEXTS[:2])
        if mode == "hybrid":
            np.testing.assert_allclose(vectors.dense, (one.dense + two.dense) / 2, rtol=1e-4, atol=1e-5)
        one, two = (
            retriever.index.fit_queries(encoder, [text], query.sparse)
            for text, query in zip(TEXTS[:2], (one, two), strict=True)
        )
        (first,), (second,) = one.to_dicts(), two.to_dicts()
        expected = {term: (first.get(term, 0) + second.get(term, 0)) / 2 for term in first | second}
        assert vectors.sparse.to_dicts()[0] == pytest.approx(expected, rel=1e-4)

    def test_another_dimension(self, retriever):
        with pytest.raises(ValueError, match="dense must have the encoder's dimension 32, got 2"):
            retriever.query_vectors(["a"], dense=[0.0, 1.0], mode="hybrid")


def test_all_documents(retriever, encoder):
    documents = retriever.documents()
    assert [document.text for document in documents] == TEXTS
    assert documents == retriever.get([document.id for document in documents])
    first, *others = [document.id for document in documents]
    assert [document.id for document in retriever.documents([first, "unknown"])] == [first]
    chosen = retriever.documents(lambda document: document.text in TEXTS[1:3])
    assert [document.text for document in chosen] == TEXTS[1:3]
    retriever.delete([first])
    assert [document.id for document in retriever.documents()] == others
    assert retriever.documents([first]) == []
    with Retriever(encoder) as empty:
        assert empty.documents() == empty.documents({"a": 1}) == []


def test_documents_by_metadata(retriever):
    retriever.add(["one", "two"], ids=["x", "y"], metadata=[{"n": 1}, {"n": 2}])
    assert [document.id for document in retriever.documents({"n": {"$gt": 1}})] == ["y"]
