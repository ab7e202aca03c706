"""Every route is the same route: what is known is not embedded again, events come on all, copies and folders open."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("llama_index.core")

from conftest import EXAMPLES, SENTENCES
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.bridge.pydantic import Field
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index_instrumentation import root_dispatcher

from llama_index.retrievers.keytokens import (
    KeyTokensEmbedding,
    KeyTokensHybridRetriever,
    KeyTokensQueryBundle,
    KeyTokensRetriever,
)

MANY = [f"{SENTENCES[i % 8]} {i}" for i in range(1100)]
QUERY = "how proteins fold"


def make_nodes(texts=SENTENCES):
    return [TextNode(text=text, id_=str(i)) for i, text in enumerate(texts)]


def ids(hits):
    return [hit.node.node_id for hit in hits]


@pytest.fixture(params=["sparse", "own", "over-index"])
def make(request):
    """Makes a retriever of nodes, of one of the three kinds."""

    def make(encoder, nodes, **settings):
        if request.param == "sparse":
            return KeyTokensRetriever(encoder, nodes, **settings)
        dense = None
        if request.param == "over-index":
            dense = VectorStoreIndex(nodes, embed_model=KeyTokensEmbedding(encoder))
        return KeyTokensHybridRetriever(encoder, nodes, dense=dense, **settings)

    return make


class TestForwardPasses:
    """At 1,100 nodes, which are more than the encoder remembers."""

    def test_nodes_of_a_pipeline(self, make, fresh_encoder, passes):
        pipeline = IngestionPipeline(transformations=[KeyTokensEmbedding(fresh_encoder)])
        nodes = pipeline.run(nodes=make_nodes(MANY))
        assert passes.take() == 1100
        retriever = make(fresh_encoder, nodes)
        assert passes.take() == 0
        assert len(retriever) == 1100

    def test_nodes_that_carry_stored_vectors(self, fresh_encoder, passes):
        nodes = make_nodes(MANY)
        for node, vector in zip(nodes, fresh_encoder.encode_document(MANY).dense.tolist(), strict=True):
            node.embedding = vector
        assert passes.take() == 1100
        for kind in (KeyTokensRetriever, KeyTokensHybridRetriever):
            fresh_encoder.cache.clear()
            retriever = kind(fresh_encoder, nodes)
            assert passes.take() == 1  # the one that tells whose they are
            assert retriever.retrieve(MANY[2])[0].node.node_id == "2"
            passes.take()

    def test_an_index_of_ours(self, fresh_encoder, passes):
        index = VectorStoreIndex(make_nodes(MANY), embed_model=KeyTokensEmbedding(fresh_encoder))
        assert passes.take() == 1100
        KeyTokensHybridRetriever.from_defaults(index=index, encoder=fresh_encoder)
        assert passes.take() == 0
        fresh_encoder.cache.clear()
        KeyTokensRetriever.from_defaults(index=index, encoder=fresh_encoder)
        assert passes.take() == 1

    @pytest.mark.parametrize("kind", [KeyTokensRetriever, KeyTokensHybridRetriever])
    def test_the_same_nodes_in_the_same_place(self, kind, fresh_encoder, passes, tmp_path):
        kind(fresh_encoder, make_nodes(MANY), path=tmp_path / "kept").close()
        fresh_encoder.cache.clear()
        passes.take()
        changed = [TextNode(text="Wolves hunt deer.", id_="7"), TextNode(text="Bees carry pollen.", id_="bee")]
        nodes = [node for node in make_nodes(MANY) if node.node_id != "7"] + changed
        assert len(kind(fresh_encoder, nodes, path=tmp_path / "kept")) == 1101
        assert passes.take() == 2

    def test_a_batch_of_queries(self, make, fresh_encoder, passes):
        retriever = make(fresh_encoder, make_nodes())
        passes.take()
        retriever.retrieve_batch([f"question {i}" for i in range(12)])
        assert passes.take() == 12


class TestBundles:
    def test_embedding_strings(self, make, encoder):
        retriever = make(encoder, make_nodes(), similarity_top_k=8)
        bundle = QueryBundle("tell me", custom_embedding_strs=[SENTENCES[2]])
        expected = [(hit.node.node_id, pytest.approx(hit.score, rel=1e-4)) for hit in retriever.retrieve(SENTENCES[2])]
        for hits in (retriever.retrieve(bundle), asyncio.run(retriever.aretrieve(bundle))):
            assert [(hit.node.node_id, hit.score) for hit in hits] == expected

    def test_several_embedding_strings(self, make, encoder):
        retriever = make(encoder, make_nodes(), similarity_top_k=8)
        hits = retriever.retrieve(QueryBundle("tell me", custom_embedding_strs=[SENTENCES[2], SENTENCES[6]]))
        assert set(ids(hits)[:2]) == {"2", "6"}

    @pytest.mark.parametrize("dense", [False, True])
    def test_embedding(self, fresh_encoder, passes, dense):
        index = VectorStoreIndex(make_nodes(), embed_model=KeyTokensEmbedding(fresh_encoder)) if dense else None
        retriever = KeyTokensHybridRetriever(
            fresh_encoder, make_nodes(), dense=index, weights={"sparse": 0.0}, similarity_top_k=8
        )
        vector = fresh_encoder.encode_query(SENTENCES[2]).dense[0].tolist()
        passes.take()
        hits = retriever.retrieve(QueryBundle("tell me", embedding=vector))
        assert passes.take() == 0
        assert hits[0].node.node_id == "2"
        assert retriever.retrieve(QueryBundle("", embedding=vector))[0].node.node_id == "2"

    def test_what_another_retriever_put_there(self, encoder):
        retriever = KeyTokensHybridRetriever(encoder, make_nodes(), similarity_top_k=8)
        assert ids(retriever.retrieve(QueryBundle(QUERY, embedding=[0.5, 0.5]))) == ids(retriever.retrieve(QUERY))


class Recorder(BaseEventHandler):
    events: list[tuple[str, str]] = Field(default_factory=list)

    @classmethod
    def class_name(cls):
        return "Recorder"

    def handle(self, event, **settings):
        if type(event).__name__.startswith("Retrieval"):
            self.events.append((type(event).__name__, str(event.str_or_query_bundle)))


@pytest.mark.parametrize("is_async", [False, True])
def test_events_of_a_batch(make, encoder, is_async):
    retriever, queries = make(encoder, make_nodes()), [QUERY, "the immune system"]
    recorder = Recorder(events=[])
    root_dispatcher.add_event_handler(recorder)
    try:
        found = asyncio.run(retriever.aretrieve_batch(queries)) if is_async else retriever.retrieve_batch(queries)
    finally:
        root_dispatcher.event_handlers.remove(recorder)
    assert len(found) == 2
    own = [event for event in recorder.events if event[1] in queries]
    assert sorted(set(own)) == sorted(
        (name, query) for name in ("RetrievalStartEvent", "RetrievalEndEvent") for query in queries
    )


class TestAsynchronousQdrant:
    @pytest.fixture
    def over_store(self, encoder):
        qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
        client = pytest.importorskip("qdrant_client").AsyncQdrantClient(":memory:")
        nodes = [TextNode(text=text, id_=f"{i:032x}") for i, text in enumerate(SENTENCES)]
        context = StorageContext.from_defaults(vector_store=qdrant.QdrantVectorStore("nodes", aclient=client))
        index = VectorStoreIndex([], storage_context=context, embed_model=KeyTokensEmbedding(encoder))
        return KeyTokensHybridRetriever(encoder, dense=index, similarity_top_k=8), nodes

    def test_a_batch(self, over_store):
        retriever, nodes = over_store
        queries = [QUERY, "the immune system", " "]

        async def ask():
            await retriever.aadd_nodes(nodes)
            batch = await retriever.aretrieve_batch(queries)
            single = [await retriever.aretrieve(query) for query in queries]
            return batch, single

        batch, single = asyncio.run(ask())
        assert [ids(hits) for hits in batch] == [ids(hits) for hits in single]
        assert [len(hits) for hits in batch] == [8, 8, 0]
        assert set(batch[0][0].scores) == {"dense", "sparse"}

    def test_a_synchronous_client_is_asked_in_a_thread(self, encoder):
        qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
        client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
        nodes = [TextNode(text=text, id_=f"{i:032x}") for i, text in enumerate(SENTENCES)]
        context = StorageContext.from_defaults(vector_store=qdrant.QdrantVectorStore("nodes", client=client))
        index = VectorStoreIndex(nodes, storage_context=context, embed_model=KeyTokensEmbedding(encoder))
        retriever = KeyTokensHybridRetriever(encoder, nodes, dense=index, similarity_top_k=8)
        assert ids(asyncio.run(retriever.aretrieve(QUERY))) == ids(retriever.retrieve(QUERY))
        assert ids(asyncio.run(retriever.aretrieve_batch([QUERY]))[0]) == ids(retriever.retrieve(QUERY))


class TestTheNextDay:
    FILTERS = MetadataFilters(filters=[MetadataFilter(key="day", value=1)])

    def settings(self):
        return {"similarity_top_k": 3, "filters": self.FILTERS, "explain": True, "verbose": False}

    @pytest.mark.parametrize("kind", [KeyTokensRetriever, KeyTokensHybridRetriever])
    @pytest.mark.parametrize("way", ["path", "persist"])
    def test_one_kind_of_folder(self, encoder, kind, way, tmp_path):
        nodes = [TextNode(text=text, id_=str(i), metadata={"day": 1}) for i, text in enumerate(SENTENCES)]
        if way == "path":
            retriever = kind(encoder, nodes, path=tmp_path / "kept", **self.settings())
        else:
            retriever = kind(encoder, nodes, **self.settings())
            retriever.persist(tmp_path / "kept")
        opened = kind.from_persist_dir(tmp_path / "kept", encoder)
        assert {name: getattr(opened, name) for name in ("similarity_top_k", "filters", "explain")} == {
            name: self.settings()[name] for name in ("similarity_top_k", "filters", "explain")
        }
        assert opened.retrieve(QUERY) == retriever.retrieve(QUERY)

    def test_a_script_that_is_run_twice(self, tmp_path):
        """Nodes get new random ids each time."""
        script = textwrap.dedent(
            f"""
            from llama_index.core import Document
            from llama_index.core.node_parser import SentenceSplitter
            from st_keytokens import KeyTokenEncoder
            from llama_index.retrievers.keytokens import KeyTokensHybridRetriever
            texts = {list(SENTENCES)!r}
            splitter = SentenceSplitter(chunk_size=64, chunk_overlap=0)
            nodes = splitter.get_nodes_from_documents([Document(text=text) for text in texts])
            encoder = KeyTokenEncoder({str(EXAMPLES / "tiny-embedder" / "embedder")!r})
            retriever = KeyTokensHybridRetriever(encoder, nodes, path={str(tmp_path / "kept")!r}, similarity_top_k=2)
            print(len(retriever), [hit.node.get_content() for hit in retriever.retrieve("how proteins fold")])
            """
        )
        printed = [
            subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
            for _ in range(2)
        ]
        assert printed[0] == printed[1]
        assert printed[0].startswith("8 ['Proteins fold")

    def test_explicit_ids_are_documents_of_their_own(self, encoder, tmp_path):
        KeyTokensRetriever(encoder, [TextNode(text="a text", id_="one")], path=tmp_path / "kept").close()
        retriever = KeyTokensRetriever(encoder, [TextNode(text="a text", id_="two")], path=tmp_path / "kept")
        assert len(retriever) == 2

    @pytest.mark.parametrize("change", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
    def test_copies(self, make, encoder, change):
        retriever = make(encoder, make_nodes(), similarity_top_k=3)
        copied = change(retriever)
        assert copied.retrieve(QUERY) == retriever.retrieve(QUERY)
        copied._retriever.delete(["2"])
        assert len(copied) == 7
        assert ids(retriever.retrieve(QUERY))[0] == "2"

    @pytest.mark.parametrize("change", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
    def test_copies_of_one_with_a_path(self, encoder, change, tmp_path):
        retriever = KeyTokensHybridRetriever(encoder, make_nodes(), path=tmp_path / "kept")
        copied = change(retriever)
        assert copied.retrieve(QUERY) == retriever.retrieve(QUERY)
        assert len(copied) == 8


class TestWrongArguments:
    def test_weights(self, encoder):
        with pytest.raises(TypeError, match=r"weights must be a dictionary of 'dense' and 'sparse', got float 0\.5"):
            KeyTokensHybridRetriever(encoder, weights=0.5)

    @pytest.mark.parametrize("kind", [KeyTokensRetriever, KeyTokensHybridRetriever])
    def test_nodes(self, encoder, kind):
        index = VectorStoreIndex(make_nodes(), embed_model=KeyTokensEmbedding(encoder))
        for wrong, name in ((index, "VectorStoreIndex"), (iter(make_nodes()), "list_iterator"), ("text", "str")):
            for call in (
                lambda wrong=wrong: kind(encoder, wrong),
                lambda wrong=wrong: kind.from_defaults(nodes=wrong, encoder=encoder),
                lambda wrong=wrong: kind(encoder).add_nodes(wrong),
            ):
                with pytest.raises(TypeError, match=f"nodes must be a list of nodes, got {name}"):
                    call()
        with pytest.raises(TypeError, match="nodes must be a list of nodes, got generator"):
            kind(encoder, (node for node in make_nodes()))
        with pytest.raises(TypeError, match=r"index must be a LlamaIndex index, got list\. Nodes are given as nodes="):
            kind.from_defaults(make_nodes(), encoder=encoder)
        with pytest.raises(TypeError, match="docstore must be a LlamaIndex docstore, got VectorStoreIndex"):
            kind.from_defaults(docstore=index, encoder=encoder)

    def test_queries(self, make, encoder):
        with pytest.raises(TypeError, match="queries must be a list of strings, got str"):
            make(encoder, make_nodes()).retrieve_batch("text")

    def test_top_k_of_a_bundle(self, make, encoder):
        with pytest.raises(ValueError, match="top_k must be"):
            make(encoder, make_nodes()).retrieve(KeyTokensQueryBundle("a", similarity_top_k=0))
