"""Our retrievers and embeddings where LlamaIndex's own ones go."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_index.core")

from conftest import SENTENCES
from llama_index.core import Document
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index.retrievers.keytokens import (
    KeyTokensEmbedding,
    KeyTokensHybridRetriever,
    KeyTokensQueryBundle,
    KeyTokensRetriever,
)


def make_nodes():
    return [TextNode(text=text, id_=str(i), metadata={"number": i}) for i, text in enumerate(SENTENCES)]


@pytest.mark.parametrize("kind", [KeyTokensRetriever, KeyTokensHybridRetriever])
def test_query_engine(encoder, kind):
    retriever = kind(encoder, make_nodes(), similarity_top_k=2)
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), response_mode=ResponseMode.COMPACT)
    response = engine.query("how proteins fold")
    assert response.source_nodes[0].node.node_id == "2"
    assert response.source_nodes[0].scores["sparse"] > 0
    assert SENTENCES[2] in str(response)  # MockLLM repeats the prompt

    filters = MetadataFilters(filters=[MetadataFilter(key="number", value=1, operator="<=")])
    response = engine.query(KeyTokensQueryBundle("how proteins fold", filters=filters))
    assert {hit.node.node_id for hit in response.source_nodes} == {"0", "1"}


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "relative_score", "dist_based_score", "simple"])
def test_query_fusion_retriever(encoder, mode):
    sparse = KeyTokensRetriever(encoder, make_nodes(), similarity_top_k=4)
    hybrid = KeyTokensHybridRetriever(encoder, make_nodes(), similarity_top_k=4)
    fusion = QueryFusionRetriever(
        [sparse, hybrid], llm=MockLLM(), mode=mode, num_queries=1, similarity_top_k=3, use_async=False
    )
    hits = fusion.retrieve("how proteins fold")
    assert hits[0].node.node_id == "2"
    assert len({hit.node.node_id for hit in hits}) == len(hits) == 3


class TestIngestionPipeline:
    def test_embedded_once_for_both_vectors(self, fresh_encoder, passes):
        embedding = KeyTokensEmbedding(fresh_encoder)
        pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), embedding])
        nodes = pipeline.run(documents=[Document(text=text) for text in SENTENCES])
        assert passes.take() == len(nodes) == len(SENTENCES)
        assert all(node.embedding for node in nodes)
        retriever = KeyTokensRetriever(fresh_encoder, nodes)
        assert passes.take() == 0
        assert retriever.retrieve("how proteins fold")[0].node.get_content() == SENTENCES[2]

    def test_its_cache_knows_us(self, fresh_encoder, passes):
        pipeline = IngestionPipeline(transformations=[KeyTokensEmbedding(fresh_encoder)], cache=IngestionCache())
        first = pipeline.run(nodes=make_nodes())
        fresh_encoder.cache.clear()
        passes.take()
        assert pipeline.run(nodes=make_nodes()) == first
        assert passes.take() == 0
