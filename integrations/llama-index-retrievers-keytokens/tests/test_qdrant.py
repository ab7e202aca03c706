"""Qdrant in this process: through LlamaIndex's store, and the engine itself."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from st_keytokens import HybridIndex

from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensHybridRetriever, qdrant_sparse_functions

WOLF = "00000000-0000-0000-0000-000000000001"
QUERIES = ("planets around other stars", "how proteins fold", "superconductivity at high temperature")


def make_nodes(abstracts):
    return [
        TextNode(text=text, id_=name, metadata={"number": i}, excluded_embed_metadata_keys=["number"])
        for i, (name, text) in enumerate(abstracts.items())
    ]


def make_index(encoder, abstracts):
    qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
    document_function, query_function = qdrant_sparse_functions(encoder)
    store = qdrant.QdrantVectorStore(
        "abstracts",
        client=pytest.importorskip("qdrant_client").QdrantClient(":memory:"),
        enable_hybrid=True,
        sparse_doc_fn=document_function,
        sparse_query_fn=query_function,
    )
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(make_nodes(abstracts), storage_context=context, embed_model=KeyTokensEmbedding(encoder))


@pytest.fixture(scope="module")
def expected(encoder, abstracts):
    index = HybridIndex(encoder=encoder)
    index.add(list(abstracts), list(abstracts.values()))
    return {
        query: [(hit.id, hit.score) for hit in index.search(query, mode="sparse", top_k=len(abstracts))]
        for query in QUERIES
    }


def assert_same_ranking(found, expected):
    """The same scores by id, in falling order: the same ranking, ties aside."""
    assert len(found) >= 10
    scores = dict(expected)
    assert [score for _, score in found] == pytest.approx([score for _, score in expected[: len(found)]], rel=1e-4)
    assert all(score == pytest.approx(scores[name], rel=1e-4) for name, score in found)
    assert all(one >= two for (_, one), (_, two) in pairwise(found))


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
class TestVectorStore:
    @pytest.fixture
    def index(self, fresh_encoder, abstracts):
        return make_index(fresh_encoder, abstracts)

    def test_one_pass_a_text_and_a_query_and_our_ranking(self, passes, index, abstracts, expected):
        assert passes.take() == len(abstracts)
        for query in QUERIES:
            sparse = index.as_retriever(vector_store_query_mode="sparse", similarity_top_k=10, sparse_top_k=10)
            hits = sparse.retrieve(query)
            assert_same_ranking([(hit.node.node_id, hit.score) for hit in hits], expected[query])
            assert passes.take() == 1
            assert len(index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=5).retrieve(query)) == 5
            assert passes.take() == 0  # remembered
        hybrid = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=5)
        assert len(hybrid.retrieve("a query that nobody asked before")) == 5
        assert passes.take() == 1

    def test_its_own_fusion_is_ours(self, lookup_encoder, abstracts):
        """LlamaIndex fuses what Qdrant finds by min-max normalised scores, as we do; queries by their own words."""
        index = make_index(lookup_encoder, abstracts)
        ours = KeyTokensHybridRetriever(
            lookup_encoder,
            make_nodes(abstracts),
            fusion="score",
            weights={"dense": 0.7, "sparse": 0.3},
            depth=20,
            similarity_top_k=10,
        )
        theirs = index.as_retriever(
            vector_store_query_mode="hybrid", similarity_top_k=20, sparse_top_k=20, hybrid_top_k=10, alpha=0.7
        )
        for query in QUERIES:
            hits, expected = theirs.retrieve(query), ours.retrieve(query)
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], rel=1e-4)
            assert [hit.node.node_id for hit in hits[:3]] == [hit.node.node_id for hit in expected[:3]]

    def test_our_hybrid_retriever_over_it(self, passes, index, fresh_encoder, abstracts):
        nodes = make_nodes(abstracts)
        passes.take()
        retriever = KeyTokensHybridRetriever.from_defaults(nodes=nodes, dense=index, encoder=fresh_encoder)
        assert passes.take() == 0
        own = KeyTokensHybridRetriever(fresh_encoder, nodes, similarity_top_k=10)
        over_store = KeyTokensHybridRetriever(fresh_encoder, nodes, dense=index.vector_store, similarity_top_k=10)
        for query in QUERIES:
            hits = over_store.retrieve(query)
            assert passes.take() == 1
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in own.retrieve(query)], rel=1e-4)
            assert [hit.node for hit in retriever.retrieve(query)] == [hit.node for hit in hits[:2]]
        below = MetadataFilters(filters=[MetadataFilter(key="number", value=5, operator="<")])
        nested = MetadataFilters(
            filters=[below, MetadataFilters(filters=[MetadataFilter(key="number", value=2)], condition="not")]
        )
        hits = over_store.retrieve(QUERIES[0], filters=nested)
        assert {hit.node.metadata["number"] for hit in hits} == {0, 1, 3, 4}

    def test_asynchronous_client(self, fresh_encoder, abstracts):
        qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
        qdrant_client = pytest.importorskip("qdrant_client")
        nodes = make_nodes(abstracts)[:10]

        async def main():
            store = qdrant.QdrantVectorStore("abstracts", aclient=qdrant_client.AsyncQdrantClient(":memory:"))
            index = VectorStoreIndex(
                [],
                storage_context=StorageContext.from_defaults(vector_store=store),
                embed_model=KeyTokensEmbedding(fresh_encoder),
            )
            await index.ainsert_nodes(nodes)
            retriever = KeyTokensHybridRetriever(fresh_encoder, nodes, dense=index, similarity_top_k=5)
            hits = await retriever.aretrieve(QUERIES[0])
            await retriever.aadd_nodes([TextNode(text="Wolves hunt deer.", id_=WOLF)])
            (first, *_) = await retriever.aretrieve("wolves hunt deer")
            assert (first.node.node_id, set(first.scores)) == (WOLF, {"dense", "sparse"})
            await retriever.aadd_nodes([TextNode(text="Bees carry pollen.", id_=WOLF)])
            (first, *_) = await retriever.aretrieve("bees carry pollen")
            assert (first.node.node_id, set(first.scores)) == (WOLF, {"dense", "sparse"})
            assert await retriever.adelete_nodes([WOLF]) == 1
            assert WOLF not in {hit.node.node_id for hit in await retriever.aretrieve("bees carry pollen")}
            assert await retriever.aretrieve(" ") == []
            return hits

        own = KeyTokensHybridRetriever(fresh_encoder, nodes, similarity_top_k=5)
        hits = asyncio.run(main())
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in own.retrieve(QUERIES[0])], rel=1e-4)


def test_the_embedded_engine_ranks_as_we_do(encoder, abstracts, expected, tmp_path):
    """Qdrant's engine without a client: LlamaIndex's store speaks to clients only, so it gets our vectors itself."""
    edge = pytest.importorskip("qdrant_edge")
    document_function, query_function = qdrant_sparse_functions(encoder)
    dense = KeyTokensEmbedding(encoder)
    config = edge.EdgeConfig(
        vectors={"dense": edge.EdgeVectorParams(encoder.get_embedding_dimension(), edge.Distance.Cosine)},
        sparse_vectors={"sparse": edge.EdgeSparseVectorParams()},
    )
    (tmp_path / "shard").mkdir()
    shard = edge.EdgeShard.create(str(tmp_path / "shard"), config)
    texts = list(abstracts.values())
    rows = zip(dense.get_text_embedding_batch(texts), *document_function(texts), strict=True)
    points = [
        edge.Point(name, {"dense": vector, "sparse": edge.SparseVector(indices, values)}, {"number": number})
        for number, (name, (vector, indices, values)) in enumerate(zip(abstracts, rows, strict=True))
    ]
    shard.update(edge.UpdateOperation.upsert_points(points))
    shard.close()
    shard = edge.EdgeShard.load(str(tmp_path / "shard"))
    ours = KeyTokensHybridRetriever(
        encoder,
        make_nodes(abstracts),
        fusion="rrf",
        weights={"dense": 1.0, "sparse": 1.0},
        depth=20,
        similarity_top_k=10,
    )
    below = MetadataFilters(filters=[MetadataFilter(key="number", value=9, operator="<")])
    for query in QUERIES:
        ((indices,), (values,)) = query_function([query])
        sparse = edge.Query.Nearest(edge.SparseVector(indices, values), using="sparse")
        found = [(point.id, point.score) for point in shard.query(edge.QueryRequest(query=sparse, limit=10))]
        assert_same_ranking([(str(name), score) for name, score in found], expected[query])
        nearest = edge.Query.Nearest(dense.get_query_embedding(query), using="dense")
        indices, values = (part.tolist() for part in encoder.encode_query(query, is_hybrid=True).sparse.row(0))
        words = edge.Query.Nearest(edge.SparseVector(indices, values), using="sparse")
        for filters, condition in (
            (None, None),
            (below, edge.Filter(must=[edge.FieldCondition("number", range=edge.RangeFloat(lt=9))])),
        ):
            hybrid = edge.QueryRequest(
                prefetches=[edge.Prefetch(query=side, limit=20, filter=condition) for side in (nearest, words)],
                query=edge.Fusion.Rrf(k=61),  # Qdrant counts ranks from 0
                limit=10,
            )
            fused = [point.score for point in shard.query(hybrid)]
            assert fused == pytest.approx([hit.score for hit in ours.retrieve(query, filters=filters)], rel=1e-4)
    shard.close()
