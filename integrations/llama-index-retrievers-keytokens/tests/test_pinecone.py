"""Pinecone has no local engine: what its LlamaIndex store does with our sparse embeddings, up to the request."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensSparseEmbedding


class RecordingIndex:
    """Takes the requests that would go to Pinecone."""

    def __init__(self):
        self.upserted, self.queries = [], []

    def upsert(self, vectors, **settings):
        self.upserted += vectors

    def query(self, **request):
        self.queries.append(request)
        return type("Response", (), {"matches": []})()


def test_requests(fresh_encoder, passes):
    pinecone = pytest.importorskip("llama_index.vector_stores.pinecone")
    dense, sparse = KeyTokensEmbedding(fresh_encoder), KeyTokensSparseEmbedding(fresh_encoder)
    index = RecordingIndex()
    store = pinecone.PineconeVectorStore(pinecone_index=index, add_sparse_vector=True, sparse_embedding_model=sparse)
    texts = ["Stars form from gas.", "Proteins fold."]
    nodes = [
        TextNode(text=text, embedding=vector)
        for text, vector in zip(texts, dense.get_text_embedding_batch(texts), strict=True)
    ]
    store.add(nodes)
    assert passes.take() == 2
    expected = fresh_encoder.encode_document(texts).sparse.to_dicts()
    sent = [vector["sparse_values"] for vector in index.upserted]
    assert [dict(zip(row["indices"], row["values"], strict=True)) for row in sent] == expected

    query = VectorStoreQuery(
        query_embedding=dense.get_query_embedding("stars"),
        query_str="stars",
        mode=VectorStoreQueryMode.HYBRID,
        similarity_top_k=2,
        alpha=0.25,
    )
    store.query(query)
    assert passes.take() == 1
    request = index.queries[0]["sparse_vector"]
    (weights,) = fresh_encoder.encode_query("stars").sparse.to_dicts()
    assert dict(zip(request["indices"], request["values"], strict=True)) == pytest.approx(
        {term: 0.75 * weight for term, weight in weights.items()}
    )


def test_a_text_without_terms_never_loses_a_batch(fresh_encoder):
    pinecone = pytest.importorskip("llama_index.vector_stores.pinecone")
    dense, sparse = KeyTokensEmbedding(fresh_encoder), KeyTokensSparseEmbedding(fresh_encoder)
    index = RecordingIndex()
    store = pinecone.PineconeVectorStore(pinecone_index=index, add_sparse_vector=True, sparse_embedding_model=sparse)
    texts = ["Stars form from gas.", "", "   "]
    vectors = dense.get_text_embedding_batch(texts)
    store.add([TextNode(text=text, embedding=vector) for text, vector in zip(texts, vectors, strict=True)])
    sent = [vector["sparse_values"] for vector in index.upserted]
    assert len(sent) == 3 and all(row["values"] for row in sent)
    query = VectorStoreQuery(
        query_embedding=dense.get_query_embedding("stars"), query_str=" ", mode=VectorStoreQueryMode.SPARSE, alpha=0.5
    )
    store.query(query)
    asked = index.queries[0]["sparse_vector"]
    assert asked["values"] and not {*asked["indices"]} & {term for row in sent for term in row["indices"]}
