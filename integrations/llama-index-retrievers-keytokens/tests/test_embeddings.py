from __future__ import annotations

import asyncio
import pickle

import pytest

pytest.importorskip("llama_index.core")

from conftest import SENTENCES
from st_keytokens import KeyTokenEncoder

from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensSparseEmbedding, qdrant_sparse_functions

TEXTS = list(SENTENCES[:3])
QUERY = "how proteins fold"


@pytest.fixture
def dense(encoder):
    return KeyTokensEmbedding(encoder)


@pytest.fixture
def sparse(encoder):
    return KeyTokensSparseEmbedding(encoder)


def close(embeddings):
    return [pytest.approx(embedding, rel=1e-4, abs=1e-6) for embedding in embeddings]


class TestVectors:
    def test_dense_ones_are_the_models_own(self, dense, model):
        assert dense.get_text_embedding_batch(TEXTS) == close(model.encode_document(TEXTS).tolist())
        assert dense.get_query_embedding(QUERY) == close(model.encode_query([QUERY]).tolist())[0]

    def test_sparse_ones_are_the_encoders(self, sparse, encoder):
        assert sparse.get_text_embedding_batch(TEXTS) == encoder.encode_document(TEXTS).sparse.to_dicts()
        assert sparse.get_query_embedding(QUERY) == encoder.encode_query(QUERY).sparse.to_dicts()[0]

    @pytest.mark.parametrize("kind", ["dense", "sparse"])
    def test_asynchronous_ones_are_the_same(self, kind, request):
        embedding = request.getfixturevalue(kind)

        async def main():
            return (
                await embedding.aget_text_embedding_batch(TEXTS),
                await embedding.aget_text_embedding(TEXTS[0]),
                await embedding.aget_query_embedding(QUERY),
            )

        texts, text, query = asyncio.run(main())
        assert texts == embedding.get_text_embedding_batch(TEXTS)
        assert text == embedding.get_text_embedding(TEXTS[0])
        assert query == embedding.get_query_embedding(QUERY)

    def test_a_text_without_a_term(self, dense, sparse, encoder):
        size = sparse.encoder.vocabulary.vocab_size
        assert sparse.get_text_embedding("") == {size: 1.0}  # Pinecone refuses a batch for one that is empty
        assert sparse.get_query_embedding("  ") == {size + 1: 1.0}  # and a query; neither finds the other
        assert len(dense.get_text_embedding("")) == encoder.get_embedding_dimension()
        for function in qdrant_sparse_functions(encoder):
            assert function(["", "stars"])[0][0] == []

    def test_sparse_similarity_is_the_dot_product(self, sparse):
        assert sparse.similarity({1: 2.0, 5: 3.0}, {5: 4.0, 9: 1.0}) == 12.0
        assert sparse.similarity({}, {5: 4.0}) == 0.0


class TestQdrantFunctions:
    def test_form(self, encoder, sparse):
        document_function, query_function = qdrant_sparse_functions(encoder)
        indices, values = document_function(TEXTS)
        assert [dict(zip(*row, strict=True)) for row in zip(indices, values, strict=True)] == (
            sparse.get_text_embedding_batch(TEXTS)
        )
        assert all(row == sorted(set(row)) for row in indices)
        ((row,), (weights,)) = query_function([QUERY])
        assert dict(zip(row, weights, strict=True)) == sparse.get_query_embedding(QUERY)
        assert all(type(term) is int for term in row)
        assert all(type(weight) is float for weight in weights)


class TestForwardPasses:
    @pytest.mark.parametrize("cache_size", [0, 2, 1024])
    def test_dense_and_sparse_share_one(self, model, calibration, passes, cache_size):
        encoder = KeyTokenEncoder(model, calibration=calibration, cache_size=cache_size)
        dense, sparse = KeyTokensEmbedding(encoder), KeyTokensSparseEmbedding(encoder)
        document_function, query_function = qdrant_sparse_functions(encoder)
        dense.get_text_embedding_batch(SENTENCES)
        document_function(list(SENTENCES))
        assert passes.take() == len(SENTENCES)
        dense.get_query_embedding(QUERY)
        query_function([QUERY])
        assert passes.take() == 1
        sparse.get_text_embedding_batch(["one text", "and another"])
        dense.get_text_embedding_batch(["one text", "and another"])
        assert passes.take() == 2

    def test_queries_by_lookup_take_none_for_the_sparse_side(self, model, calibration, passes):
        encoder = KeyTokenEncoder(model, calibration=calibration, query="lookup")
        assert KeyTokensSparseEmbedding(encoder).get_query_embedding(QUERY)
        assert passes.take() == 0
        assert any(KeyTokensEmbedding(encoder).get_query_embedding(QUERY))
        assert passes.take() == 1


class TestIdentity:
    def test_class_names(self, dense, sparse):
        assert "BaseEmbedding" in [base.__name__ for base in KeyTokensEmbedding.__mro__]
        assert "BaseSparseEmbedding" in [base.__name__ for base in KeyTokensSparseEmbedding.__mro__]
        assert (dense.class_name(), sparse.class_name()) == ("KeyTokensEmbedding", "KeyTokensSparseEmbedding")

    def test_caches_tell_encoders_apart(self, model, dense):
        other = KeyTokensEmbedding(KeyTokenEncoder(model))
        assert dense.to_dict() != other.to_dict()
        assert dense.to_dict() == KeyTokensEmbedding(dense.encoder).to_dict()

    def test_processes_can_be_sent_one(self, dense):
        copy = pickle.loads(pickle.dumps(dense))
        assert copy.get_text_embedding(TEXTS[0]) == close([dense.get_text_embedding(TEXTS[0])])[0]


@pytest.mark.parametrize("kind", [KeyTokensEmbedding, KeyTokensSparseEmbedding, qdrant_sparse_functions])
def test_validation(kind):
    with pytest.raises(TypeError, match="encoder must be a KeyTokenEncoder, got str"):
        kind("model")
