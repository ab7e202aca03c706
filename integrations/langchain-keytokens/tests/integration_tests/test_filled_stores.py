"""Stores that were filled before: their ids, their vectors, their filters, and both sides in step."""

from __future__ import annotations

import sys
import uuid

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever

QUERY = "electrons in an atom"


@pytest.fixture
def documents(abstracts):
    return [
        Document(id=str(uuid.uuid4()), page_content=d.page_content, metadata={"tenant": "ab"[i % 2], "position": i})
        for i, d in enumerate(abstracts[:40])
    ]


def in_memory(documents, embeddings, request):
    store = InMemoryVectorStore(embeddings)
    store.add_documents(documents)
    return store, {"filter": lambda document: document.metadata["tenant"] == "a"}


def faiss(documents, embeddings, request):
    vectorstores = pytest.importorskip("langchain_community.vectorstores")
    store = vectorstores.FAISS.from_documents(documents, embeddings, ids=[d.id for d in documents])
    return store, {"filter": {"tenant": "a"}}


def chroma(documents, embeddings, request):
    pytest.importorskip("chromadb")
    store = pytest.importorskip("langchain_chroma").Chroma(str(uuid.uuid4()), embeddings)
    store.add_documents(documents, ids=[d.id for d in documents])
    return store, {"filter": {"tenant": "a"}}


def qdrant(documents, embeddings, request):
    store = pytest.importorskip("langchain_qdrant").QdrantVectorStore.from_documents(
        documents, embeddings, location=":memory:", ids=[d.id for d in documents]
    )
    from qdrant_client import models

    tenant = models.FieldCondition(key="metadata.tenant", match=models.MatchValue(value="a"))
    return store, {"filter": models.Filter(must=[tenant])}


def milvus(documents, embeddings, request):
    pytest.importorskip("milvus_lite")
    path = request.getfixturevalue("tmp_path") / "milvus.db"
    request.getfixturevalue("connect_milvus")(path)
    store = pytest.importorskip("langchain_milvus").Milvus.from_documents(
        documents,
        embeddings,
        ids=[d.id for d in documents],
        connection_args={"uri": str(path)},
        index_params={"index_type": "FLAT", "metric_type": "COSINE"},
    )
    return store, {"expr": "tenant == 'a'"}


@pytest.fixture(scope="module")
def postgres(pytestconfig):
    tests = pytestconfig.rootpath.parents[1] / "tests" / "engines"
    if not (tests / "postgres_server.py").exists():
        pytest.skip("the server is started by a module of a clone of the repository")
    sys.path.append(str(tests))
    try:
        from postgres_server import running_postgres
    finally:
        sys.path.remove(str(tests))
    with running_postgres() as url:
        yield url.replace("postgresql://", "postgresql+psycopg://")


def pgvector(documents, embeddings, request):
    package = pytest.importorskip("langchain_postgres")
    connection = request.getfixturevalue("postgres")
    store = package.PGVector(embeddings, connection=connection, collection_name=str(uuid.uuid4()))
    store.add_documents(documents, ids=[d.id for d in documents])
    return store, {"filter": {"tenant": "a"}}


@pytest.mark.parametrize("kind", [in_memory, faiss, chroma, qdrant, milvus, pgvector])
def test_a_filled_store(documents, encoder, passes, kind, request):
    store, of_a = kind(documents, KeyTokensEmbeddings(encoder), request)
    encoder.cache.clear()
    passes.texts = 0
    with pytest.warns(UserWarning, match="holds 40 documents and the index 0"):
        retriever = KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store, k=40, scores_key="scores")
    assert retriever.update_from_vectorstore() == {"added": 40, "replaced": 0, "deleted": 0}
    assert passes.texts <= 1
    assert set(retriever.retriever.ids()) == {d.id for d in documents}
    found = retriever.invoke(QUERY)
    assert {d.id for d in found} == {d.id for d in documents}
    assert all("dense" in d.metadata["scores"] for d in found)
    of_tenant = retriever.invoke(QUERY, search_kwargs=of_a)
    assert {d.id for d in of_tenant} == {d.id for d in documents if d.metadata["tenant"] == "a"}
    assert any(set(d.metadata["scores"]) == {"dense", "sparse"} for d in of_tenant)
    assert retriever.delete([documents[0].id, documents[1].id]) == 2
    assert retriever.counts() == {"vectorstore": 38, "index": 38}
    for _ in range(2):
        retriever.add_documents(documents[:3])
        assert retriever.counts() == {"vectorstore": 40, "index": 40}


async def test_an_asynchronous_store(documents, encoder, request):
    package = pytest.importorskip("langchain_postgres")
    connection = request.getfixturevalue("postgres")
    store = package.PGVector(
        KeyTokensEmbeddings(encoder), connection=connection, collection_name=str(uuid.uuid4()), async_mode=True
    )
    made = await KeyTokensHybridRetriever.afrom_documents(documents, encoder, vectorstore=store, k=40)
    assert await made.acounts() == {"vectorstore": 40, "index": 40}
    with pytest.raises(TypeError, match=r"await aupdate_from_vectorstore\(\)"):
        made.update_from_vectorstore()
    opened = await KeyTokensHybridRetriever.afrom_vectorstore(store, encoder, k=40)
    assert [d.id for d in await opened.ainvoke(QUERY)] == [d.id for d in await made.ainvoke(QUERY)]
    of_a = await opened.ainvoke(QUERY, search_kwargs={"filter": {"tenant": "a"}})
    assert {d.metadata["tenant"] for d in of_a} == {"a"} and len(of_a) == 20
    assert await opened.adelete([documents[0].id]) == 1
    assert await opened.acounts() == {"vectorstore": 39, "index": 39}
    assert await made.aupdate_from_vectorstore() == {"added": 0, "replaced": 0, "deleted": 1}
