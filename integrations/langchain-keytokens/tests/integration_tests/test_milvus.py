"""Milvus Lite through langchain-milvus, real abstracts, nothing mocked."""

from __future__ import annotations

import numpy as np
import pytest

from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever, KeyTokensRetriever

pytest.importorskip("langchain_milvus")
pytest.importorskip("milvus_lite")

from langchain_milvus import Milvus

from langchain_keytokens import KeyTokensMilvusSparseEmbeddings

SCORED = {"score_key": "score", "scores_key": "scores"}
QUERIES = ["electrons in an atom", "planets around other stars", "prime numbers", "疫苗 mRNA"]
DENSE, SPARSE = {"metric_type": "COSINE"}, {"metric_type": "IP"}
INDEXES = {"dense": {"index_type": "FLAT", **DENSE}, "sparse": {"index_type": "SPARSE_INVERTED_INDEX", **SPARSE}}


@pytest.fixture(autouse=True)
def _connected(connect_milvus, tmp_path):
    connect_milvus(tmp_path / "milvus.db")


def milvus(documents, encoder, folder, fields):
    embeddings = {"dense": KeyTokensEmbeddings(encoder), "sparse": KeyTokensMilvusSparseEmbeddings(encoder)}
    return Milvus.from_texts(
        [document.page_content for document in documents],
        [embeddings[field] for field in fields],
        [document.metadata for document in documents],
        ids=[document.id for document in documents],
        vector_field=fields,
        index_params=[INDEXES[field] for field in fields],
        search_params=[{"dense": DENSE, "sparse": SPARSE}[field] for field in fields],
        connection_args={"uri": str(folder / "milvus.db")},
    )


def test_every_text_and_every_query_takes_one_forward_pass(abstracts, passes, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder.cache, "size", 8)  # Milvus asks for all texts at once, dense and then sparse
    store = milvus(abstracts, encoder, tmp_path, ["dense", "sparse"])
    assert passes.texts == len(abstracts)
    passes.texts = 0
    for query in QUERIES:
        found = store.similarity_search_with_score(query, k=5, ranker_type="rrf", ranker_params={"k": 60})
        assert len(found) == 5
    assert passes.texts == len(QUERIES)


def test_the_sparse_ranking_is_that_of_our_index(abstracts, encoder, tmp_path):
    store = milvus(abstracts, encoder, tmp_path, ["sparse"])
    retriever = KeyTokensRetriever.from_documents(abstracts, encoder, k=20, score_key="score", needs_known_word=False)
    for query in QUERIES:
        theirs = [(d.metadata["pk"], score) for d, score in store.similarity_search_with_score(query, k=20)]
        ours = retriever.invoke(query)
        scores = [d.metadata["score"] for d in ours]
        assert [score for _, score in theirs] == pytest.approx(scores, rel=1e-4)
        distinct = [i for i in range(19) if min(abs(np.diff(scores)[max(0, i - 1) : i + 1])) > 1e-3]  # ties aside
        assert len(distinct) > 5
        assert [theirs[i][0] for i in distinct] == [ours[i].id for i in distinct]


def test_the_hybrid_ranking_is_that_of_our_index(abstracts, encoder, tmp_path, monkeypatch):
    """Queries by their own words."""
    monkeypatch.setattr(encoder, "query", "lookup")
    store = milvus(abstracts, encoder, tmp_path, ["dense", "sparse"])
    retriever = KeyTokensHybridRetriever.from_documents(
        abstracts, encoder, k=5, fusion="rrf", weights={"dense": 1.0, "sparse": 1.0}, **SCORED
    )
    for query in QUERIES:
        ranked = store.similarity_search_with_score(
            query, k=5, fetch_k=100, ranker_type="rrf", ranker_params={"k": 60}
        )
        expected = retriever.invoke(query)
        assert [score for _, score in ranked] == pytest.approx([d.metadata["score"] for d in expected], rel=1e-3)


def test_as_the_dense_side_of_our_hybrid_retriever(abstracts, passes, encoder, tmp_path):
    store = milvus(abstracts[:1], encoder, tmp_path, ["dense"])
    passes.texts = 0
    retriever = KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store, id_key="pk", k=5, **SCORED)
    retriever.add_documents(abstracts[:1], is_in_vectorstore=True)
    retriever.add_documents(abstracts[1:])
    assert passes.texts == len(abstracts) - 1
    own = KeyTokensHybridRetriever.from_documents(abstracts, encoder, k=5, **SCORED)
    for query in QUERIES:
        found, expected = retriever.invoke(query), own.invoke(query)
        assert [d.metadata["score"] for d in found] == pytest.approx([d.metadata["score"] for d in expected])
        assert all(set(d.metadata["scores"]) <= {"dense", "sparse"} and "pk" not in d.metadata for d in found)
    retriever.delete([abstracts[0].id])
    assert abstracts[0].id not in {d.id for d in retriever.invoke(QUERIES[0], k=60)}


def test_a_text_without_a_term_is_refused_before_anything_is_inserted(abstracts, encoder, tmp_path):
    store = milvus(abstracts[:2], encoder, tmp_path, ["dense", "sparse"])
    with pytest.raises(ValueError, match="texts must have a term each"):
        store.add_texts(["stars", " "], [{"archive": "a", "position": 1}] * 2, ids=["x", "y"])
    assert len(store.similarity_search("stars", k=10)) == 2


def test_a_query_without_a_term_finds_nothing(abstracts, encoder, tmp_path):
    assert milvus(abstracts[:5], encoder, tmp_path, ["sparse"]).similarity_search("", k=3) == []
