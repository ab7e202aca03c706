"""A query whose words no node has."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.schema import QueryBundle, TextNode
from st_keytokens import KeyTokenEncoder

from llama_index.retrievers.keytokens import KeyTokensRetriever


@pytest.fixture(scope="module")
def word_encoder(model, abstracts):
    encoder = KeyTokenEncoder(model, terms="words", language="english")
    encoder.calibrate(list(abstracts.values()), show_progress_bar=False)
    return encoder


def test_it_finds_nothing_by_noise(abstracts, word_encoder, tmp_path):
    nodes = [TextNode(id_=id, text=text) for id, text in abstracts.items()]
    retriever = KeyTokensRetriever(word_encoder, nodes, path=tmp_path / "kept", similarity_top_k=3)
    assert retriever.retrieve("jgosntih") == [] == asyncio.run(retriever.aretrieve("jgosntih"))
    assert [len(hits) for hits in retriever.retrieve_batch(["jgosntih", "electrons"])] == [0, 3]
    assert retriever.retrieve(QueryBundle("electrons", custom_embedding_strs=["jgosntih", "xxzzy"])) == []
    assert len(retriever.retrieve(QueryBundle("x", custom_embedding_strs=["jgosntih", "electrons"]))) == 3
    retriever.needs_known_word = False
    assert len(retriever.retrieve("jgosntih")) == 3
    assert len(retriever.retrieve(QueryBundle("x", custom_embedding_strs=["jgosntih", "xxzzy"]))) == 3
    retriever.persist(tmp_path / "kept")
    retriever.close()
    assert len(KeyTokensRetriever.from_persist_dir(tmp_path / "kept", word_encoder).retrieve("jgosntih")) == 3
