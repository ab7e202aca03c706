"""A query whose words no document has."""

from __future__ import annotations

import pytest
from st_keytokens import KeyTokenEncoder

from langchain_keytokens import KeyTokensHybridRetriever, KeyTokensRetriever


@pytest.fixture(scope="module")
def word_encoder(abstracts, shared_encoder):
    encoder = KeyTokenEncoder(shared_encoder.model, terms="words", language="english")
    encoder.calibrate([document.page_content for document in abstracts])
    return encoder


async def test_it_finds_nothing_by_noise(abstracts, word_encoder, tmp_path):
    retriever = KeyTokensRetriever.from_documents(abstracts, word_encoder, k=3, path=tmp_path / "kept")
    assert retriever.invoke("jgosntih") == [] == await retriever.ainvoke("jgosntih")
    assert [len(found) for found in retriever.batch(["jgosntih", "electrons"])] == [0, 3]
    retriever.needs_known_word = False
    assert len(retriever.invoke("jgosntih")) == 3
    retriever.save_local(tmp_path / "kept")
    assert len(KeyTokensRetriever.load_local(tmp_path / "kept", word_encoder).invoke("jgosntih")) == 3


def test_a_hybrid_has_its_dense_ranking_alone(abstracts, word_encoder):
    hybrid = KeyTokensHybridRetriever.from_documents(abstracts, word_encoder, k=3, scores_key="scores")
    assert [set(document.metadata["scores"]) for document in hybrid.invoke("jgosntih")] == [{"dense"}] * 3
