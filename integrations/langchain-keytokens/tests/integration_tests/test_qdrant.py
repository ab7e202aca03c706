"""Qdrant's in-process client, real abstracts, nothing mocked."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from langchain_core.documents import Document

from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever, KeyTokensRetriever

pytest.importorskip("langchain_qdrant")

from langchain_qdrant import QdrantVectorStore, RetrievalMode
from qdrant_client import models

from langchain_keytokens import KeyTokensSparseEmbeddings

SCORED = {"score_key": "score", "scores_key": "scores"}
QUERIES = ["electrons in an atom", "planets around other stars", "prime numbers", "疫苗 mRNA"]
DUMMY = 1  # langchain-qdrant embeds "dummy_text" to learn the dimension


@pytest.fixture
def documents(abstracts):
    """The abstracts under ids that Qdrant takes."""
    return [
        Document(id=str(uuid.uuid5(uuid.NAMESPACE_URL, d.id)), page_content=d.page_content, metadata=d.metadata)
        for d in abstracts
    ]


def qdrant(documents, encoder, mode):
    return QdrantVectorStore.from_documents(
        documents,
        embedding=KeyTokensEmbeddings(encoder),
        sparse_embedding=KeyTokensSparseEmbeddings(encoder),
        retrieval_mode=mode,
        location=":memory:",
    )


@pytest.fixture(params=[RetrievalMode.SPARSE, RetrievalMode.DENSE, RetrievalMode.HYBRID])
def mode(request):
    return request.param


def test_every_text_and_every_query_takes_one_forward_pass(documents, passes, encoder, mode):
    store = qdrant(documents, encoder, mode)
    dummy = 0 if mode is RetrievalMode.SPARSE else DUMMY
    assert passes.texts == len(documents) + dummy
    passes.texts = 0
    for query in QUERIES:
        store.similarity_search_with_score(query, k=10)
    assert passes.texts == len(QUERIES)


@pytest.mark.parametrize("query", QUERIES)
def test_the_sparse_ranking_is_that_of_our_index(documents, encoder, query):
    store = qdrant(documents, encoder, RetrievalMode.SPARSE)
    theirs = [(d.metadata["_id"], score) for d, score in store.similarity_search_with_score(query, k=20)]
    retriever = KeyTokensRetriever.from_documents(documents, encoder, k=20, score_key="score", needs_known_word=False)
    ours = retriever.invoke(query)
    scores = [d.metadata["score"] for d in ours]
    assert [score for _, score in theirs] == pytest.approx(scores, rel=1e-4)
    distinct = [i for i in range(19) if min(abs(np.diff(scores)[max(0, i - 1) : i + 1])) > 1e-3]  # ties aside
    assert len(distinct) > 5
    assert [theirs[i][0] for i in distinct] == [ours[i].id for i in distinct]


@pytest.mark.parametrize("query", QUERIES)
def test_the_dense_ranking_is_that_of_our_index(documents, encoder, query):
    store = qdrant(documents, encoder, RetrievalMode.DENSE)
    theirs = [score for _, score in store.similarity_search_with_score(query, k=20)]
    ours = KeyTokensHybridRetriever.from_documents(documents, encoder, k=60, **SCORED).invoke(query)
    assert theirs == pytest.approx(sorted((d.metadata["scores"]["dense"] for d in ours), reverse=True)[:20], abs=1e-5)


@pytest.mark.parametrize("query", QUERIES)
def test_the_hybrid_ranking_is_ours(documents, encoder, query, monkeypatch):
    """Reciprocal ranks, which Qdrant counts from 0; queries by their own words."""
    monkeypatch.setattr(encoder, "query", "lookup")
    store = qdrant(documents, encoder, RetrievalMode.HYBRID)
    fusion = models.RrfQuery(rrf=models.Rrf(k=61))
    theirs = store.similarity_search_with_score(query, k=len(documents), hybrid_fusion=fusion)
    retriever = KeyTokensHybridRetriever.from_documents(
        documents, encoder, k=len(documents), fusion="rrf", weights={"dense": 1.0, "sparse": 1.0}, **SCORED
    )
    ours = retriever.invoke(query)
    assert [score for _, score in theirs] == pytest.approx([d.metadata["score"] for d in ours], rel=1e-4)
    assert [d.metadata["_id"] for d, _ in theirs[:3]] == [d.id for d in ours[:3]]


def test_as_the_dense_side_of_our_hybrid_retriever(documents, passes, encoder):
    store = QdrantVectorStore.from_texts([], KeyTokensEmbeddings(encoder), location=":memory:")
    passes.texts = 0
    retriever = KeyTokensHybridRetriever.from_documents(
        documents, encoder, vectorstore=store, id_key="_id", k=10, **SCORED
    )
    assert passes.texts == len(documents)
    own = KeyTokensHybridRetriever.from_documents(documents, encoder, k=10, **SCORED)
    passes.texts = 0
    for query in QUERIES:
        found, expected = retriever.invoke(query), own.invoke(query)
        assert [d.metadata["score"] for d in found] == pytest.approx([d.metadata["score"] for d in expected])
        assert {d.id for d in found[:5]} == {d.id for d in expected[:5]}
        assert all("_id" not in d.metadata for d in found)
    assert passes.texts == len(QUERIES)


async def test_asynchronously(documents, encoder):
    store = QdrantVectorStore.from_texts([], KeyTokensEmbeddings(encoder), location=":memory:")
    retriever = KeyTokensHybridRetriever.from_documents(
        documents, encoder, vectorstore=store, id_key="_id", k=10, **SCORED
    )
    found, expected = await retriever.ainvoke(QUERIES[0]), retriever.invoke(QUERIES[0])
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("score", "scores"):
            assert ours.metadata.pop(key) == pytest.approx(theirs.metadata.pop(key))
    assert found == expected


def test_our_filter_and_the_stores_own(documents, encoder):
    store = QdrantVectorStore.from_texts([], KeyTokensEmbeddings(encoder), location=":memory:")
    retriever = KeyTokensHybridRetriever.from_documents(
        documents, encoder, vectorstore=store, id_key="_id", k=60, **SCORED
    )
    condition = models.FieldCondition(key="metadata.position", range=models.Range(lt=10))
    arguments = {"filter": models.Filter(must=[condition])}
    found = retriever.invoke(QUERIES[0], filter={"position": {"$lt": 10}}, search_kwargs=arguments)
    assert sorted(d.metadata["position"] for d in found) == list(range(10))
    ours_alone = retriever.invoke(QUERIES[0], filter={"position": {"$lt": 10}})
    assert {d.id: d.metadata["score"] for d in found} == {d.id: pytest.approx(d.metadata["score"]) for d in ours_alone}


def test_ids_that_qdrant_refuses_leave_the_index_as_it_was(abstracts, encoder):
    store = QdrantVectorStore.from_texts([], KeyTokensEmbeddings(encoder), location=":memory:")
    retriever = KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store, **SCORED)
    with pytest.raises(ValueError, match="is not a valid"):
        retriever.add_documents(abstracts[:2])
    assert len(retriever.retriever) == 0


def test_deleted_from_both(documents, encoder):
    store = QdrantVectorStore.from_texts([], KeyTokensEmbeddings(encoder), location=":memory:")
    retriever = KeyTokensHybridRetriever.from_documents(
        documents, encoder, vectorstore=store, id_key="_id", k=60, **SCORED
    )
    assert retriever.delete([documents[0].id]) == 1
    assert documents[0].id not in {d.id for d in retriever.invoke(QUERIES[0])}
    assert documents[0].page_content not in {d.page_content for d in store.similarity_search(QUERIES[0], k=60)}


def test_an_empty_text_and_an_empty_query(documents, encoder):
    empty = Document(id=str(uuid.uuid4()), page_content="")
    store = qdrant([*documents, empty], encoder, RetrievalMode.SPARSE)
    assert "" not in {d.page_content for d in store.similarity_search(QUERIES[0], k=61)}
    assert store.similarity_search("", k=5) == []


def test_the_embedded_engine_ranks_as_we_do(documents, encoder, tmp_path):
    """Qdrant's engine without a client: LangChain's store speaks to clients only, so it gets our vectors itself."""
    edge = pytest.importorskip("qdrant_edge")
    embeddings = KeyTokensSparseEmbeddings(encoder)
    (tmp_path / "shard").mkdir()
    shard = edge.EdgeShard.create(
        str(tmp_path / "shard"), edge.EdgeConfig(sparse_vectors={"sparse": edge.EdgeSparseVectorParams()})
    )
    vectors = embeddings.embed_documents([d.page_content for d in documents])
    points = [
        edge.Point(d.id, {"sparse": edge.SparseVector(vector.indices, vector.values)}, d.metadata)
        for d, vector in zip(documents, vectors, strict=True)
    ]
    shard.update(edge.UpdateOperation.upsert_points(points))
    retriever = KeyTokensRetriever.from_documents(documents, encoder, k=20, score_key="score", needs_known_word=False)
    for query in QUERIES:
        vector = embeddings.embed_query(query)
        nearest = edge.Query.Nearest(edge.SparseVector(vector.indices, vector.values), using="sparse")
        for condition, filter in (
            (None, None),
            (edge.FieldCondition("position", range=edge.RangeFloat(lt=30)), {"position": {"$lt": 30}}),
        ):
            request = edge.QueryRequest(
                query=nearest, limit=20, filter=None if condition is None else edge.Filter(must=[condition])
            )
            ours = {d.id: d.metadata["score"] for d in retriever.invoke(query, k=60, filter=filter)}
            found = shard.query(request)
            assert [point.score for point in found] == pytest.approx(list(ours.values())[:20], rel=1e-4)
            assert all(ours[str(point.id)] == pytest.approx(point.score, rel=1e-4) for point in found)
    shard.close()
