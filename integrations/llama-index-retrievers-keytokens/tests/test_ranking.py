"""Rankings that mean something: abstracts found by their titles, against a computation without any index."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("llama_index.core")

from conftest import EXAMPLES
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from st_keytokens import KeyTokenEncoder

from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensHybridRetriever, KeyTokensRetriever

SIZE = 60


def read(name):
    with (EXAMPLES / "data" / "arxiv-abstracts" / name).open(encoding="utf-8") as lines:
        return {row["_id"]: row["text"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def collection(model):
    """Sixty abstracts by id, and their titles."""
    judged = (EXAMPLES / "data" / "arxiv-abstracts" / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    titles, texts = read("queries.jsonl"), read("corpus.jsonl")
    pairs = [line.split("\t")[:2] for line in judged[1 : SIZE + 1]]
    return {document: texts[document] for _, document in pairs}, [titles[query] for query, _ in pairs]


@pytest.fixture(scope="module")
def encoder(model, collection):
    encoder = KeyTokenEncoder(model)
    encoder.calibrate(list(collection[0].values()), show_progress_bar=False)
    return encoder


@pytest.fixture(scope="module")
def nodes(collection):
    return [TextNode(text=text, id_=name) for name, text in collection[0].items()]


@pytest.fixture(scope="module")
def similarities(encoder, collection):
    """Scores of every document for every title, ``(titles, documents)``, by numpy alone."""
    texts, titles = collection
    documents, queries = encoder.encode_document(list(texts.values())), encoder.encode_query(titles)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries.dense, documents.dense)]
    rows = {"sparse": queries.sparse, "beside": encoder.encode_query(titles, is_hybrid=True).sparse}
    sparse = {name: (row.to_scipy() @ documents.sparse.to_scipy().T).toarray() for name, row in rows.items()}
    return {"dense": unit[0] @ unit[1].T, **sparse}


def scaled(scores, is_found):
    """Min-max over what a side finds; what it does not find counts 0."""
    low, high = scores[is_found].min(), scores[is_found].max()
    return np.where(is_found, (scores - low) / (high - low), 0.0)


def assert_ranked(hits, names, scores):
    """The hits are all that score, by falling score; ties in any order."""
    expected = dict(zip(names, scores, strict=True))
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True)[: len(hits)], rel=1e-4, abs=1e-6)
    assert [expected[hit.node.node_id] for hit in hits] == pytest.approx(
        [hit.score for hit in hits], rel=1e-4, abs=1e-6
    )


def first_ranks(results, names):
    return np.mean([hits[0].node.node_id == name for hits, name in zip(results, names, strict=True)])


def test_sparse(encoder, nodes, collection, similarities):
    texts, titles = collection
    retriever = KeyTokensRetriever(encoder, nodes, similarity_top_k=SIZE)
    results = retriever.retrieve_batch(titles)
    for hits, scores in zip(results, similarities["sparse"], strict=True):
        assert len(hits) == np.count_nonzero(scores)
        assert_ranked(hits, texts, scores)
    assert first_ranks(results, texts) > 0.9


@pytest.mark.parametrize("kind", ["own index", "vector store"])
def test_hybrid(encoder, nodes, collection, similarities, kind):
    texts, titles = collection
    dense = VectorStoreIndex(nodes, embed_model=KeyTokensEmbedding(encoder)) if kind == "vector store" else None
    retriever = KeyTokensHybridRetriever(encoder, nodes, dense=dense, similarity_top_k=SIZE)
    results = retriever.retrieve_batch(titles)
    weights = encoder.fusion_weights
    for hits, dense_scores, scores in zip(results, similarities["dense"], similarities["beside"], strict=True):
        assert len(hits) == SIZE
        lead = 1 - np.sort(scores)[-10] / scores.max()
        best, tenth, middle = np.sort(dense_scores)[::-1][[0, 9, SIZE // 2 - 1]]
        dense_lead = max(0.5, (best - tenth) / (best - middle) * np.log10(SIZE // 2))
        both = weights["dense"] * dense_lead * scaled(dense_scores, np.full(SIZE, True))
        assert_ranked(hits, texts, both + weights["sparse"] * lead / 0.3 * scaled(scores, scores > 0))
    assert first_ranks(results, texts) > 0.9


def test_the_sparse_side_finds_more_titles_than_the_dense_one(collection, similarities):
    """So that what is retrieved in hybrid search is known to need both."""
    right = {side: np.mean(similarities[side].argmax(1) == np.arange(SIZE)) for side in ("dense", "sparse")}
    assert right["dense"] > 0.6
    assert right["sparse"] > right["dense"]


def test_words_of_another_script_find_what_holds_them(encoder):
    """In falling order of how much of the query a text holds."""
    texts = ["量子计算机使用干涉", "蛋白质折叠成形状", "the 蛋白质 database of the cell", "Звёзды и галактики"]
    retriever = KeyTokensRetriever(encoder, [TextNode(text=text, id_=text) for text in texts], similarity_top_k=4)
    for query, expected in {
        "量子计算机": texts[0],
        "蛋白质折叠": texts[1],
        "蛋白质 database": texts[2],
        "галактики": texts[3],
    }.items():
        first, second = [*retriever.retrieve(query), None][:2]
        assert first.node.node_id == expected
        assert second is None or first.score > second.score


def test_embedded_metadata_decide(encoder):
    """Of two equal texts the one comes first, with more than twice the score, whose title is embedded."""
    seen = TextNode(text="It is here.", id_="seen", metadata={"title": "superconductors in strong magnetic fields"})
    hidden = TextNode(**{**seen.model_dump(), "id_": "hidden", "excluded_embed_metadata_keys": ["title"]})
    retriever = KeyTokensRetriever(encoder, [hidden, seen])
    for query in ("superconductors", "magnetic fields"):
        scores = {hit.node.node_id: hit.score for hit in retriever.retrieve(query)}
        assert max(scores, key=scores.get) == "seen"
        assert scores["seen"] > 2 * scores.get("hidden", 0.0)
