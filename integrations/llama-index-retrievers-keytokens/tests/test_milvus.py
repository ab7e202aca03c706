"""Milvus in this process, by milvus-lite, through LlamaIndex's store."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from st_keytokens import HybridIndex

from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensHybridRetriever

QUERIES = ("planets around other stars", "how proteins fold")


@pytest.fixture
def nodes(abstracts):
    return [TextNode(text=text, id_=name) for name, text in abstracts.items()]


@pytest.fixture
def store(fresh_encoder, tmp_path):
    pytest.importorskip("milvus_lite")
    milvus = pytest.importorskip("llama_index.vector_stores.milvus")
    from llama_index.retrievers.keytokens.milvus import KeyTokensMilvusFunction

    return milvus.MilvusVectorStore(
        uri=str(tmp_path / "milvus.db"),
        dim=fresh_encoder.get_embedding_dimension(),
        similarity_metric="COSINE",
        enable_sparse=True,
        sparse_embedding_function=KeyTokensMilvusFunction(fresh_encoder),
    )


def test_one_pass_a_text_and_a_query_and_our_ranking(fresh_encoder, store, nodes, passes, abstracts):
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=KeyTokensEmbedding(fresh_encoder))
    assert passes.take() == len(nodes)
    hybrid = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=10)
    for query in QUERIES:
        assert len(hybrid.retrieve(query)) == 10
        assert passes.take() == 1
    fresh_encoder.query = "lookup"  # the sparse side is the query's own words, as in our hybrid searches
    own = KeyTokensHybridRetriever(
        fresh_encoder, nodes, fusion="rrf", weights={"dense": 1.0, "sparse": 1.0}, depth=10, similarity_top_k=10
    )
    for query in QUERIES:
        expected = [hit.score for hit in own.retrieve(query)]
        assert [hit.score for hit in hybrid.retrieve(query)] == pytest.approx(expected, rel=1e-4)
    fresh_encoder.query = "encode"

    # LlamaIndex's sparse mode drops the smallest weights of a query, which milvus-lite refuses; so the sparse side is
    # asked for as a hybrid search in which the dense side weighs nothing, and directly.
    store.hybrid_ranker, store.hybrid_ranker_params = "WeightedRanker", {"weights": [0.0, 1.0]}
    ours = HybridIndex(encoder=fresh_encoder)
    ours.add(list(abstracts), list(abstracts.values()))
    for query in QUERIES:
        (vector,) = store.sparse_embedding_function.encode_queries([query])
        (found,) = store.client.search(
            store.collection_name, data=[vector], anns_field=store.sparse_embedding_field, limit=10
        )
        expected = ours.search(query, mode="sparse", top_k=len(abstracts))
        scores = {hit.id: hit.score for hit in expected}
        by_sparse = [scores[hit.node.node_id] for hit in hybrid.retrieve(query)][:9]  # the tenth counts 0, as the rest
        assert by_sparse == pytest.approx([hit.score for hit in expected[:9]], rel=1e-4)
        assert [hit["distance"] for hit in found] == pytest.approx([hit.score for hit in expected[:10]], rel=1e-4)
        assert all(hit["distance"] == pytest.approx(scores[hit["id"]], rel=1e-4) for hit in found)

    own = KeyTokensHybridRetriever(fresh_encoder, nodes, similarity_top_k=10)
    over_store = KeyTokensHybridRetriever(fresh_encoder, nodes, dense=index, similarity_top_k=10)
    passes.take()
    hits = over_store.retrieve("superconductivity at high temperature")
    assert passes.take() == 1
    expected = own.retrieve("superconductivity at high temperature")
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], rel=1e-4)


def test_an_empty_chunk_does_not_lose_the_batch(fresh_encoder, store):
    function = store.sparse_embedding_function
    nodes = [TextNode(text="Proteins fold.", id_="a"), TextNode(text=" ", id_="b"), TextNode(text="Stars.", id_="c")]
    context = StorageContext.from_defaults(vector_store=store)
    VectorStoreIndex(nodes, storage_context=context, embed_model=KeyTokensEmbedding(fresh_encoder))
    for query, expected in (("proteins", ["a", "c"]), (" ", [])):  # one term, and what is decoded
        (found,) = store.client.search(
            store.collection_name,
            data=function.encode_queries([query]),
            anns_field=store.sparse_embedding_field,
            limit=10,
        )
        assert [hit["id"] for hit in found] == expected
    assert sorted(node.node_id for node in store.get_nodes(node_ids=["a", "b", "c"])) == ["a", "b", "c"]


def test_interface(encoder):
    pytest.importorskip("llama_index.vector_stores.milvus")
    from llama_index.retrievers.keytokens.milvus import KeyTokensMilvusFunction

    function = KeyTokensMilvusFunction(encoder)
    texts = ["stars and gas", "proteins"]
    expected = encoder.encode_document(texts).sparse.to_dicts()
    assert function.encode_documents(texts) == asyncio.run(function.async_encode_documents(texts)) == expected
    expected = encoder.encode_query(texts).sparse.to_dicts()
    assert function.encode_queries(texts) == asyncio.run(function.async_encode_queries(texts)) == expected


def test_missing_extra():
    """In a process where LlamaIndex's Milvus store cannot be imported."""
    code = "import sys; sys.modules['llama_index.vector_stores.milvus'] = None\n"
    code += "import llama_index.retrievers.keytokens.milvus"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: KeyTokensMilvusFunction needs LlamaIndex's Milvus store." in done.stderr
    assert 'pip install "llama-index-retrievers-keytokens[milvus]"' in done.stderr
