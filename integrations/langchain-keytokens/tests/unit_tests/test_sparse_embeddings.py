"""What a vector store may expect of sparse embeddings; neither framework has a suite for it."""

from __future__ import annotations

import itertools

import pytest

from langchain_keytokens import KeyTokensEmbeddings

QDRANT, MILVUS = "KeyTokensSparseEmbeddings", "KeyTokensMilvusSparseEmbeddings"
PACKAGES = {QDRANT: "langchain_qdrant", MILVUS: "langchain_milvus"}
TEXTS = ["Stars form in clouds of gas.", "行星围绕恒星运行。", "mRNA 疫苗 and ёж", "stars stars stars"]


@pytest.fixture(params=[QDRANT, MILVUS])
def embeddings(request, encoder):
    import langchain_keytokens

    pytest.importorskip(PACKAGES[request.param])
    return getattr(langchain_keytokens, request.param)(encoder)


def pairs(vector):
    """Indices and values of either kind of vector."""
    if isinstance(vector, dict):
        return list(vector), list(vector.values())
    return vector.indices, vector.values


class TestVectors:
    def test_indices_ascend_and_values_are_positive_floats(self, embeddings):
        for vector in [*embeddings.embed_documents(TEXTS), *map(embeddings.embed_query, TEXTS)]:
            ids, values = pairs(vector)
            assert len(ids) == len(values) > 0
            assert all(type(id) is int for id in ids) and all(type(value) is float for value in values)
            assert all(a < b for a, b in itertools.pairwise(ids))
            assert min(values) > 0

    def test_they_are_those_of_the_encoder(self, embeddings, encoder):
        documents, queries = encoder.encode_document(TEXTS).sparse, encoder.encode_query(TEXTS).sparse
        for row, text in enumerate(TEXTS):
            ids, values = pairs(embeddings.embed_documents([text])[0])
            assert (ids, values) == tuple(array.tolist() for array in documents.row(row))
            ids, values = pairs(embeddings.embed_query(text))
            assert (ids, values) == tuple(array.tolist() for array in queries.row(row))

    def test_a_query_without_a_term_is_empty(self, embeddings):
        assert pairs(embeddings.embed_query("")) == ([], [])

    def test_no_text_gives_no_vector(self, embeddings):
        assert embeddings.embed_documents([]) == []

    async def test_asynchronous_methods_give_the_same(self, embeddings):
        assert await embeddings.aembed_documents(TEXTS) == embeddings.embed_documents(TEXTS)
        assert await embeddings.aembed_query(TEXTS[0]) == embeddings.embed_query(TEXTS[0])


class TestEmptyDocuments:
    def test_qdrant_takes_an_empty_vector(self, encoder):
        pytest.importorskip("langchain_qdrant")
        from langchain_keytokens import KeyTokensSparseEmbeddings

        assert pairs(KeyTokensSparseEmbeddings(encoder).embed_documents([""])[0]) == ([], [])

    def test_for_milvus_it_is_refused(self, encoder):
        pytest.importorskip("langchain_milvus")
        from langchain_keytokens import KeyTokensMilvusSparseEmbeddings

        with pytest.raises(ValueError, match=r"texts must have a term each, .* got ' '\. Leave it out"):
            KeyTokensMilvusSparseEmbeddings(encoder).embed_documents(["stars", " "])


class TestOnePass:
    @pytest.mark.parametrize("order", ["dense first", "sparse first"])
    def test_dense_and_sparse_vectors_share_it(self, embeddings, encoder, passes, order):
        dense = KeyTokensEmbeddings(encoder)
        both = [dense, embeddings] if order == "dense first" else [embeddings, dense]
        for each in both:
            each.embed_documents(TEXTS)
        assert passes.texts == len(TEXTS)
        for each in both:
            each.embed_query(TEXTS[0])
        assert passes.texts == len(TEXTS) + 1

    def test_more_texts_than_the_encoders_cache_holds_share_it_too(self, embeddings, encoder, passes, monkeypatch):
        monkeypatch.setattr(encoder.cache, "size", 2)
        KeyTokensEmbeddings(encoder).embed_documents(TEXTS)
        embeddings.embed_documents(TEXTS)
        assert passes.texts == len(TEXTS)


def test_something_else_than_an_encoder_is_refused(embeddings):
    with pytest.raises(TypeError, match="encoder must be a KeyTokenEncoder, got NoneType"):
        type(embeddings)(None)
