"""Any ``BaseEmbedding`` in place of an encoder: what is found, how often it is called, how it fails, the next day."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedding_provider import Asynchronous, Provider
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import QueryBundle, TextNode
from st_keytokens import KeyTokenEncoder

from llama_index.retrievers.keytokens import (
    KeyTokensEmbedding,
    KeyTokensHybridRetriever,
    KeyTokensRetriever,
    KeyTokensVectorStore,
)

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
QUERY = "planets around other stars"
MANY = 1_100
KINDS = [KeyTokensRetriever, KeyTokensHybridRetriever]


def ids(hits):
    return [hit.node.node_id for hit in hits]


@pytest.fixture(scope="module")
def many():
    """Eleven hundred abstracts as nodes without vectors. Copy them before an index puts some in."""
    with (EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(next(lines)) for _ in range(MANY)]
    return [TextNode(id_=row["_id"], text=row["text"]) for row in rows]


@pytest.fixture(scope="module")
def few(many):
    return many[:60]


def texts_of(nodes):
    return {node.get_content() for node in nodes}


def copies(nodes):
    return [node.model_copy() for node in nodes]


@pytest.fixture
def provider():
    return Provider()


class TestFound:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_node_by_its_own_words(self, few, provider, kind):
        retriever = kind.from_defaults(nodes=few, encoder=provider, similarity_top_k=1)
        found = [ids(retriever.retrieve(node.text.split(". ")[0]))[0] for node in few]
        assert np.mean([id == node.node_id for id, node in zip(found, few, strict=True)]) > 0.9
        assert retriever.encoder.calibration.document_count == 60

    @pytest.mark.parametrize("kind", KINDS)
    def test_asynchronous_ones(self, few, provider, kind):
        expected = ids(kind(provider, few, similarity_top_k=9).retrieve(QUERY))
        asynchronous = Asynchronous()
        retriever = kind.from_defaults(nodes=few, encoder=asynchronous, similarity_top_k=9)
        assert ids(asyncio.run(retriever.aretrieve(QUERY))) == ids(retriever.retrieve(QUERY)) == expected
        assert asynchronous.most() == 1

    def test_length_of_the_vectors_says_nothing(self, few, provider):
        long = KeyTokensHybridRetriever(Provider(length=7.0), few, similarity_top_k=9).retrieve(QUERY)
        expected = KeyTokensHybridRetriever(provider, few, similarity_top_k=9).retrieve(QUERY)
        assert ids(long) == ids(expected)
        np.testing.assert_allclose([h.score for h in long], [h.score for h in expected], rtol=1e-3)

    def test_as_a_vector_store(self, few, provider):
        store = KeyTokensVectorStore(provider)
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex(copies(few), storage_context=context, embed_model=KeyTokensEmbedding(store.encoder))
        retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=9)
        expected = KeyTokensHybridRetriever(Provider(), few, similarity_top_k=9).retrieve(QUERY)
        assert ids(retriever.retrieve(QUERY)) == ids(expected)
        assert provider.most() == 1

    def test_nodes_that_come_later(self, few, provider):
        retriever = KeyTokensRetriever(provider, similarity_top_k=1)
        assert (retriever.retrieve(QUERY), retriever.retrieve_batch([QUERY, "stars"])) == ([], [[], []])
        assert retriever.retrieve(QueryBundle(QUERY, custom_embedding_strs=["stars"])) == []
        retriever.add_nodes(few[:50])
        retriever.add_nodes(few[50:])
        assert (len(retriever), retriever.encoder.calibration.document_count) == (60, 50)
        assert ids(retriever.retrieve(few[55].text)) == [few[55].node_id] and provider.most() == 1


class TestCalls:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_text_is_sent_once(self, many, provider, kind):
        retriever = kind.from_defaults(nodes=many, encoder=provider)
        assert texts_of(many) <= provider.documents.keys()
        assert len(provider.documents) <= MANY + 300 and len(provider.queries) <= 300 + 1
        retriever.retrieve_batch([QUERY, "black holes"])
        retriever.retrieve(QUERY)
        assert provider.most() == 1

    @pytest.mark.parametrize("fails_at", [5, 113, 180, 300])
    def test_a_failure_midway_loses_nothing(self, many, provider, fails_at, tmp_path):
        provider.fail_at(fails_at)
        with pytest.raises(ConnectionError, match="429"):
            KeyTokensRetriever.from_defaults(nodes=many, encoder=provider, path=tmp_path / "index")
        provider.fail_at(None)
        retriever = KeyTokensRetriever.from_defaults(nodes=many, encoder=provider, path=tmp_path / "index")
        assert len(retriever) == MANY and texts_of(many) <= provider.documents.keys()
        assert provider.most() == 1

    def test_other_dimensions_than_before(self, few, provider):
        retriever = KeyTokensHybridRetriever(provider, few[:30])
        provider.dimension = 32
        with pytest.raises(ValueError, match="must give vectors of dimension 48, as before, got 32"):
            retriever.add_nodes(few[30:])
        with pytest.raises(ValueError, match="must give vectors of dimension 48, as before, got 32"):
            retriever.retrieve(QUERY)
        assert len(retriever) == 30

    @pytest.mark.parametrize("kind", KINDS)
    def test_nodes_that_carry_vectors(self, many, provider, kind):
        nodes = [node.model_copy(update={"embedding": provider.vector(node.text)}) for node in many]
        retriever = kind.from_defaults(nodes=nodes, encoder=provider, similarity_top_k=9)
        assert len(texts_of(many) & provider.documents.keys()) == 1  # compared with its own
        assert ids(retriever.retrieve(QUERY)) == ids(kind(Provider(), many, similarity_top_k=9).retrieve(QUERY))
        assert provider.most() == 1

    def test_nodes_that_carry_vectors_of_another_model(self, few, provider):
        nodes = [node.model_copy(update={"embedding": provider.vector(node.text[::-1])}) for node in few]
        KeyTokensRetriever.from_defaults(nodes=nodes, encoder=provider)
        assert texts_of(few) <= provider.documents.keys() and provider.most() == 1


class TestFilledIndexes:
    @pytest.fixture
    def index(self, many, provider):
        index = VectorStoreIndex(copies(many), embed_model=provider)
        provider.documents.clear()
        return index

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_node_is_sent_again(self, many, index, provider, kind):
        retriever = kind.from_defaults(index=index, encoder=provider, similarity_top_k=9)
        assert not texts_of(many) & provider.documents.keys() and len(retriever) == MANY
        expected = kind(Provider(), many, similarity_top_k=9).retrieve(QUERY)
        assert ids(retriever.retrieve(QUERY)) == ids(expected)
        retriever.retrieve_batch(["black holes", "proteins that fold"])
        asyncio.run(retriever.aretrieve("a quantum computer"))
        assert provider.most() == 1  # also for the queries of both sides

    def test_what_is_inserted_later(self, index, provider):
        retriever = KeyTokensHybridRetriever.from_defaults(index=index, encoder=provider, similarity_top_k=1)
        index.insert_nodes([TextNode(id_="zebra", text="A note on zebras. It is short.")])
        assert ids(retriever.retrieve("zebras")) == ["zebra"]
        retriever.add_nodes([TextNode(id_="gnu", text="A note on gnus. It is short.")])
        assert ids(retriever.retrieve("gnus")) == ["gnu"]
        assert provider.most() == 1


NEXT_DAY = """
import sys
sys.path[:0] = {paths!r}
from embedding_provider import Provider
from llama_index.retrievers.keytokens import KeyTokensHybridRetriever, KeyTokensRetriever
provider = Provider(**{settings!r})
retriever = {kind}.from_persist_dir({folder!r}{argument})
print([hit.node.node_id for hit in retriever.retrieve({query!r})])
print(len(retriever), retriever.encoder.calibration.document_count, sum(provider.documents.values()))
print(dict(provider.queries))
"""


def next_day(folder, kind, argument=", provider", **settings):
    """What a second process prints, or its last line of error."""
    here = Path(__file__).resolve()
    script = NEXT_DAY.format(
        paths=[str(here.parent)], settings=settings, kind=kind, folder=str(folder), argument=argument, query=QUERY
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    return done.stdout.splitlines() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


class TestTheNextDay:
    @pytest.fixture(scope="class")
    def folder(self, few, tmp_path_factory):
        """An index at ``path=``, and its answer."""
        folder = tmp_path_factory.mktemp("first") / "index"
        return folder, ids(KeyTokensRetriever(Provider(), few, path=folder, similarity_top_k=7).retrieve(QUERY))

    def test_a_second_process(self, folder):
        assert next_day(folder[0], "KeyTokensRetriever") == [
            str(folder[1]),
            "60 60 0",
            str({"dimension": 1, QUERY: 1}),
        ]

    def test_what_was_persisted(self, few, tmp_path):
        made = KeyTokensHybridRetriever(Provider(), few, similarity_top_k=7)
        made.persist(tmp_path / "kept")
        expected = [str(ids(made.retrieve(QUERY))), "60 60 0"]
        assert next_day(tmp_path / "kept", "KeyTokensHybridRetriever")[:2] == expected

    def test_left_out(self, folder):
        assert next_day(folder[0], "KeyTokensRetriever", argument="") == (
            f"ValueError: encoder must be given for {folder[0]}, which was saved without one, got None. "
            "Pass the embedder that it was made with, Provider text-embedding-x of dimension 48."
        )

    def test_other_dimensions(self, folder):
        assert next_day(folder[0], "KeyTokensRetriever", dimension=32) == (
            f"ValueError: encoder must give vectors of dimension 48, as the embedder that {folder[0]} was made with, "
            "Provider text-embedding-x of dimension 48, got 32 from Provider text-embedding-x. Pass that embedder, "
            "or make a new index."
        )

    def test_a_script_that_runs_twice(self, few, folder):
        provider = Provider()
        again = KeyTokensRetriever.from_defaults(nodes=few, encoder=provider, path=folder[0], similarity_top_k=7)
        assert len(again) == 60 and not provider.documents

    def test_a_vector_store(self, few, tmp_path):
        store = KeyTokensVectorStore(Provider(), tmp_path / "nodes")
        store.add(few)
        opened = KeyTokensVectorStore.from_persist_dir(tmp_path / "nodes", Provider())
        assert len(opened) == 60 and opened.encoder.fingerprint == store.encoder.fingerprint
        with pytest.raises(ValueError, match="Pass the embedder that it was made with, Provider text-embedding-x"):
            KeyTokensVectorStore.from_persist_dir(tmp_path / "nodes")

    def test_an_encoder_that_is_not_calibrated_is_so_then(self, folder):
        encoder = KeyTokenEncoder(Provider())
        opened = KeyTokensRetriever.from_persist_dir(folder[0], encoder)
        assert ids(opened.retrieve(QUERY)) == folder[1] and opened.encoder is encoder


class TestWhatWasWanted:
    def test_a_number_of_hits_that_is_none(self, few, encoder):
        wanted = "similarity_top_k must be an integer, got str 'many'"
        with pytest.raises(TypeError, match=wanted):
            KeyTokensRetriever(encoder, similarity_top_k="many")
        with pytest.raises(TypeError, match=wanted):
            KeyTokensRetriever(encoder, few).retrieve(QUERY, similarity_top_k="many")

    @pytest.mark.parametrize("name", ["k", "top_k"])
    def test_another_name(self, encoder, name):
        wanted = rf"unexpected keyword argument '{name}'\. The number of hits is similarity_top_k\."
        retriever = KeyTokensHybridRetriever(encoder)
        for call in (
            lambda: KeyTokensRetriever(encoder, **{name: 3}),
            lambda: KeyTokensHybridRetriever.from_defaults(nodes=[], encoder=encoder, **{name: 3}),
            lambda: retriever.retrieve("stars", **{name: 3}),
            lambda: retriever.retrieve_batch(["stars"], **{name: 3}),
        ):
            with pytest.raises(TypeError, match=wanted):
                call()
