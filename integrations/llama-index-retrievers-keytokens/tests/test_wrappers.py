"""A filter holds through whatever LlamaIndex puts between a query and our retrievers."""

from __future__ import annotations

import asyncio
import logging

import pytest

pytest.importorskip("llama_index.core")

from conftest import SENTENCES
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.query_engine import RetrieverQueryEngine, TransformQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever, RouterRetriever, TransformRetriever
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.selectors import LLMMultiSelector
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index_instrumentation import root_dispatcher

from llama_index.retrievers.keytokens import (
    KeyTokensEmbedding,
    KeyTokensHybridRetriever,
    KeyTokensQueryBundle,
    KeyTokensRetriever,
)
from llama_index.retrievers.keytokens.hits import _SPANS

QUERY = "how proteins fold in the light of distant stars"


class QueryWriter(CustomLLM):
    """An LLM that answers with three queries."""

    @property
    def metadata(self):
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **settings):
        return CompletionResponse(text="proteins in a cell\nlight of galaxies\nvirus and vaccine")

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **settings):
        yield self.complete(prompt)


class Rewriting(BaseQueryTransform):
    """A transform of a user's own that makes a plain query."""

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass

    def _run(self, query_bundle, metadata):
        return QueryBundle("light of stars and galaxies, " + query_bundle.query_str)


class Relay(BaseRetriever):
    """A retriever of a user's own that passes the text on alone."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__()

    def _retrieve(self, query_bundle):
        return self.inner.retrieve(query_bundle.query_str)


def make_nodes():
    return [
        TextNode(text=text, id_=str(i), metadata={"number": i, "public": i % 2 == 0})
        for i, text in enumerate(SENTENCES)
    ]


def at_least(number):
    return MetadataFilters(filters=[MetadataFilter(key="number", value=number, operator=">=")])


@pytest.fixture(params=["sparse", "own", "over-index"])
def retriever(request, encoder):
    if request.param == "sparse":
        return KeyTokensRetriever(encoder, make_nodes(), similarity_top_k=8)
    dense = None
    if request.param == "over-index":
        dense = VectorStoreIndex(make_nodes(), embed_model=KeyTokensEmbedding(encoder))
    return KeyTokensHybridRetriever(encoder, make_nodes(), dense=dense, similarity_top_k=8)


def fusion(retriever, **settings):
    return QueryFusionRetriever(
        [retriever], llm=QueryWriter(), num_queries=3, similarity_top_k=8, mode="reciprocal_rerank", **settings
    )


WRAPPERS = {
    "transform": lambda retriever: TransformRetriever(retriever, Rewriting()),
    "hyde": lambda retriever: TransformRetriever(retriever, HyDEQueryTransform(llm=QueryWriter())),
    "fusion": lambda retriever: fusion(retriever, use_async=False),
    "fusion-async": lambda retriever: fusion(retriever, use_async=True),
    "relay": Relay,
    "router": lambda retriever: RouterRetriever(
        FirstOnly(), [RetrieverTool.from_defaults(retriever, description="all")], llm=MockLLM()
    ),
    "all-of-them": lambda retriever: TransformRetriever(
        Relay(fusion(TransformRetriever(Relay(retriever), HyDEQueryTransform(llm=QueryWriter())), use_async=True)),
        Rewriting(),
    ),
}


class FirstOnly(LLMMultiSelector):
    """Chooses the first, without an LLM."""

    def __init__(self):
        pass

    def _select(self, choices, query):
        from llama_index.core.base.base_selector import MultiSelection, SingleSelection

        return MultiSelection(selections=[SingleSelection(index=0, reason="")])

    async def _aselect(self, choices, query):
        return self._select(choices, query)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_filter_holds(retriever, name):
    wrapped = WRAPPERS[name](retriever)
    assert {hit.node.metadata["number"] for hit in wrapped.retrieve(QUERY)} & {0, 1, 2}
    bundle = KeyTokensQueryBundle(QUERY, filters=at_least(3), similarity_top_k=4)
    for hits in (wrapped.retrieve(bundle), asyncio.run(wrapped.aretrieve(bundle))):
        numbers = {hit.node.metadata["number"] for hit in hits}
        assert numbers
        assert min(numbers) >= 3
    assert {hit.node.metadata["number"] for hit in wrapped.retrieve(QUERY)} & {0, 1, 2}  # of that query alone
    assert _SPANS.in_force == {}


def test_the_number_of_hits_holds(retriever):
    wrapped = TransformRetriever(retriever, Rewriting())
    assert len(wrapped.retrieve(KeyTokensQueryBundle(QUERY, similarity_top_k=2))) == 2


def test_in_a_query_engine(retriever):
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    hyde = TransformQueryEngine(engine, HyDEQueryTransform(llm=MockLLM()))
    bundle = KeyTokensQueryBundle(QUERY, filters=at_least(5))
    for response in (hyde.query(bundle), asyncio.run(hyde.aquery(bundle))):
        assert {hit.node.metadata["number"] for hit in response.source_nodes} <= {5, 6, 7}
        assert response.source_nodes


def test_queries_beside_it_are_not_filtered(retriever):
    wrapped = fusion(retriever, use_async=True)

    async def both():
        return await asyncio.gather(
            wrapped.aretrieve(KeyTokensQueryBundle(QUERY, filters=at_least(6))), wrapped.aretrieve(QUERY)
        )

    filtered, plain = asyncio.run(both())
    assert {hit.node.metadata["number"] for hit in filtered} <= {6, 7}
    assert {hit.node.metadata["number"] for hit in plain} & {0, 1, 2}


def test_a_query_that_failed_leaves_nothing(retriever):
    wrapped = TransformRetriever(retriever, Rewriting())
    with pytest.raises(ValueError, match="filter IN on 'number' must have a list, got 1"):
        wrong = MetadataFilters(filters=[MetadataFilter(key="number", value=1, operator="in")])
        wrapped.retrieve(KeyTokensQueryBundle(QUERY, filters=wrong))
    assert _SPANS.in_force == {}
    assert len(retriever.retrieve(QUERY)) > 2


def test_the_handler_is_put_back(retriever):
    root_dispatcher.span_handlers.remove(_SPANS)
    bundle = KeyTokensQueryBundle(QUERY, filters=at_least(6))
    hits = TransformRetriever(retriever, Rewriting()).retrieve(bundle)
    assert {hit.node.metadata["number"] for hit in hits} <= {6, 7}
    assert root_dispatcher.span_handlers.count(_SPANS) == 1


class TestWithFilters:
    def test_hold_in_a_wrapper(self, retriever):
        narrowed = retriever.with_filters(at_least(4))
        hits = fusion(narrowed, use_async=False).retrieve(QUERY)
        assert {hit.node.metadata["number"] for hit in hits} <= {4, 5, 6, 7}
        twice = narrowed.with_filters(MetadataFilters(filters=[MetadataFilter(key="number", value=6, operator="<")]))
        assert {hit.node.metadata["number"] for hit in twice.retrieve(QUERY)} == {4, 5}
        assert retriever.filters is None

    def test_share_the_index(self, retriever):
        narrowed = retriever.with_filters(at_least(4))
        retriever.add_nodes([TextNode(text="Wolves hunt deer.", id_="wolf", metadata={"number": 9})])
        assert narrowed.retrieve("wolves and deer")[0].node.node_id == "wolf"

    def test_of_the_wrong_type(self, retriever):
        with pytest.raises(TypeError, match="filters must be MetadataFilters, got dict"):
            retriever.with_filters({"number": 4})


def test_booleans(retriever):
    public = MetadataFilters(filters=[MetadataFilter(key="public", value=1)])
    assert {hit.node.node_id for hit in retriever.retrieve(QUERY, filters=public)} <= {"0", "2", "4", "6"}
    assert retriever.retrieve(QUERY, filters=public)


def test_a_key_that_no_node_has_is_said_once(retriever, caplog):
    absent = MetadataFilters(filters=[MetadataFilter(key="langauge", value="en")])
    nothing = MetadataFilters(filters=[MetadataFilter(key="number", value=99)])
    with caplog.at_level(logging.WARNING):
        assert retriever.retrieve(QUERY, filters=nothing) == []
        assert caplog.text == ""
        assert [retriever.retrieve(QUERY, filters=absent) for _ in range(2)] == [[], []]
    assert caplog.text.count("filters ask for the key 'langauge', which none of 8 nodes has.") == 1
