"""The retrievers as parts of larger things."""

from __future__ import annotations

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnablePassthrough
from langchain_core.tools import create_retriever_tool

from langchain_keytokens import KeyTokensHybridRetriever, KeyTokensRetriever

QUERY = "electrons in an atom"


@pytest.fixture(params=[KeyTokensRetriever, KeyTokensHybridRetriever])
def retriever(request, abstracts, encoder):
    return request.param.from_documents(abstracts, encoder, k=2)


class TestExpressionLanguage:
    def test_a_chain(self, retriever):
        prompts = []

        def note(prompt):
            prompts.append(prompt.to_string())
            return prompt

        chain = (
            {
                "context": retriever | (lambda found: "\n".join(document.page_content for document in found)),
                "question": RunnablePassthrough(),
            }
            | ChatPromptTemplate.from_template("{context}\n{question}")
            | note
            | FakeListChatModel(responses=["Around the nucleus."])
            | StrOutputParser()
        )
        assert chain.invoke(QUERY) == "Around the nucleus."
        assert all(document.page_content in prompts[0] for document in retriever.invoke(QUERY))

    async def test_batches_and_streams(self, retriever):
        expected = [retriever.invoke(QUERY), retriever.invoke("stars")]
        assert retriever.batch([QUERY, "stars"]) == expected
        assert await retriever.abatch([QUERY, "stars"]) == expected
        assert [chunk async for chunk in retriever.astream(QUERY)] == expected[:1]

    def test_bound_arguments(self, retriever):
        found = retriever.bind(k=1, filter={"position": {"$lt": 30}}).invoke(QUERY)
        assert len(found) == 1 and found[0].metadata["position"] < 30

    def test_configurable_fields_keep_the_index(self, retriever):
        configurable = retriever.configurable_fields(k=ConfigurableField(id="number"))
        assert len(configurable.invoke(QUERY)) == 2
        assert len(configurable.invoke(QUERY, {"configurable": {"number": 5}})) == 5

    def test_as_a_tool(self, retriever):
        tool = create_retriever_tool(retriever, "abstracts", "Searches abstracts.")
        assert retriever.invoke(QUERY)[0].page_content in tool.invoke({"query": QUERY})

    def test_a_dictionary_instead_of_a_query_says_what_to_do(self, retriever):
        with pytest.raises(TypeError, match=r"query must be a string, got dict .* put itemgetter"):
            retriever.invoke({"question": QUERY})


class TestCallbacks:
    class Noting(BaseCallbackHandler):
        def __init__(self):
            self.events = []

        def on_retriever_start(self, serialized, query, **kwargs):
            self.events.append(("start", query, kwargs["metadata"]["ls_retriever_name"]))

        def on_retriever_end(self, documents, **kwargs):
            self.events.append(("end", len(documents)))

        def on_retriever_error(self, error, **kwargs):
            self.events.append(("error", type(error).__name__))

    def test_start_and_end(self, retriever):
        handler = self.Noting()
        retriever.invoke(QUERY, {"callbacks": [handler]})
        name = "keytokenshybrid" if isinstance(retriever, KeyTokensHybridRetriever) else "keytokens"
        assert handler.events == [("start", QUERY, name), ("end", 2)]

    async def test_an_error(self, retriever):
        handler = self.Noting()
        with pytest.raises(ValueError, match="k must be >= 1"):
            await retriever.ainvoke(QUERY, {"callbacks": [handler]}, k=0)
        assert handler.events[-1] == ("error", "ValueError")


class TestEnsemble:
    @pytest.fixture
    def ensemble(self, abstracts, encoder):
        ensemble = pytest.importorskip("langchain_classic.retrievers.ensemble")
        retrievers = [
            KeyTokensRetriever.from_documents(abstracts, encoder, k=5),
            KeyTokensHybridRetriever.from_documents(abstracts, encoder, k=5),
        ]
        return ensemble.EnsembleRetriever(retrievers=retrievers, weights=[0.7, 0.3])

    def test_ranks_are_fused(self, ensemble):
        points = {}
        for retriever, weight in zip(ensemble.retrievers, ensemble.weights, strict=True):
            for rank, document in enumerate(retriever.invoke(QUERY), start=1):
                points[document.id] = points.get(document.id, 0) + weight / (60 + rank)
        expected = sorted(points, key=lambda id: -points[id])
        assert [document.id for document in ensemble.invoke(QUERY)] == expected

    async def test_asynchronously(self, ensemble):
        assert await ensemble.ainvoke(QUERY) == ensemble.invoke(QUERY)

    def test_both_share_the_forward_pass_of_the_query(self, passes, ensemble):
        passes.texts = 0
        ensemble.invoke(QUERY)
        assert passes.texts == 1
