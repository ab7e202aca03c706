"""A query whose words no document has finds nothing by what it decodes to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import Retriever, SearchSettings

TEXTS = [
    "Stars form when clouds of gas and dust collapse.",
    "Proteins fold into a shape inside the cell.",
    "The telescope measured the light of distant galaxies.",
]
SPARSE = SearchSettings(mode="sparse")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def encoder():
    encoder = KeyTokenEncoder(
        REPOSITORY / "examples" / "tiny-embedder" / "embedder", terms="words", language="english"
    )
    encoder.calibrate(TEXTS * 4, show_progress_bar=False)
    return encoder


@pytest.fixture
def retriever(encoder):
    with Retriever(encoder) as retriever:
        retriever.add(TEXTS, ids=["stars", "proteins", "light"])
        yield retriever


@pytest.mark.parametrize("query", ["jgosntih", "qopamevu lizatoru", "xxzzy xxzzy"])
def test_made_up_words(retriever, query):
    found_by_noise = retriever.search(query, replace(SPARSE, needs_known_word=False))
    assert found_by_noise  # else this shows nothing
    assert retriever.search(query, SPARSE) == []
    vectors = retriever.embed([query, "stars"], SPARSE)
    assert retriever.search(query, SPARSE, vectors=vectors[:1]) == []
    assert retriever.search("stars", SPARSE, vectors=vectors[1:]) == retriever.search("stars", SPARSE) != []
    assert retriever.search(query, SPARSE, vectors=retriever.query_vectors([query, "nope"], mode="sparse")) == []
    assert retriever.search(query, SPARSE, vectors=retriever.query_vectors([query, "star"], mode="sparse"))


def test_one_known_word_is_enough_and_a_batch_keeps_them_apart(retriever):
    queries = ["jgosntih", "a jgosntih star", "", "galaxy"]
    found = retriever.search(queries, SPARSE)
    assert [bool(hits) for hits in found] == [False, True, False, True]
    assert found[1] == retriever.search(queries[1], replace(SPARSE, needs_known_word=False))


def test_words_that_go_are_unknown(retriever):
    assert [hit.id for hit in retriever.search("proteins", SPARSE)][:1] == ["proteins"]
    retriever.delete(["proteins"])
    assert retriever.search("proteins", SPARSE) == []


def test_the_dense_side_ranks_all_the_same(retriever):
    hits = retriever.search("jgosntih", SearchSettings(mode="hybrid"))
    assert len(hits) == 3 and all(set(hit.scores) == {"dense"} for hit in hits)


def test_what_was_measured():
    results = json.loads((REPOSITORY / "docs" / "results" / "unknown-words.json").read_text())["results"]
    assert len(results) >= 2
    for found in results.values():
        assert found["real"]["without_a_known_word"] == 0
        assert found["made up"]["without_a_known_word"] >= 0.98 * found["made up"]["queries"]
        assert found["made up"]["found_by_decoded_terms"] >= 0.9 * found["made up"]["queries"]
        assert found["auc_of_score"] < 0.9 and found["auc_of_cosine"] < 0.9  # no threshold of scores tells them apart
