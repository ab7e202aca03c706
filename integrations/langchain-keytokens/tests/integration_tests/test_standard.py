"""The suites of langchain-tests."""

from __future__ import annotations

import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from st_keytokens.retrieval import Retriever

from langchain_keytokens import (
    KeyTokensEmbeddings,
    KeyTokensHybridRetriever,
    KeyTokensRetriever,
    KeyTokensVectorStore,
)


class TestEmbeddings(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _encoder(self, encoder):
        self.encoder = encoder

    @property
    def embeddings_class(self):
        return KeyTokensEmbeddings

    @property
    def embedding_model_params(self):
        return {"encoder": self.encoder}


class TestSparse(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _retriever(self, abstracts, encoder):
        self.parameters = {"retriever": KeyTokensRetriever.from_documents(abstracts, encoder).retriever}

    @property
    def retriever_constructor(self):
        return KeyTokensRetriever

    @property
    def retriever_constructor_params(self):
        return self.parameters

    @property
    def retriever_query_example(self):
        return "electrons in an atom"


class TestHybrid(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True, params=["own index", "vector store"])
    def _retriever(self, request, abstracts, encoder):
        store = None if request.param == "own index" else InMemoryVectorStore(KeyTokensEmbeddings(encoder))
        made = KeyTokensHybridRetriever(retriever=Retriever(encoder, has_dense=store is None), vectorstore=store)
        made.add_documents(abstracts)
        self.parameters = {"retriever": made.retriever, "vectorstore": store}

    @property
    def retriever_constructor(self):
        return KeyTokensHybridRetriever

    @property
    def retriever_constructor_params(self):
        return self.parameters

    @property
    def retriever_query_example(self):
        return "electrons in an atom"


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture(params=["own index", "vector store"])
    def vectorstore(self, request, encoder):
        store = None if request.param == "own index" else InMemoryVectorStore(KeyTokensEmbeddings(encoder))
        return KeyTokensVectorStore(KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store))
