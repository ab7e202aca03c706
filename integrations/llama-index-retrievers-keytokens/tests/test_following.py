"""What an application does to its index or docstore is followed, or counted and said."""

from __future__ import annotations

import asyncio
import logging

import pytest

pytest.importorskip("llama_index.core")

from conftest import SENTENCES
from llama_index.core import Document, StorageContext, SummaryIndex, VectorStoreIndex, load_index_from_storage
from llama_index.core.node_parser import HierarchicalNodeParser, SentenceSplitter, get_leaf_nodes
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from llama_index.retrievers.keytokens import (
    KeyTokensEmbedding,
    KeyTokensHybridRetriever,
    KeyTokensRetriever,
    KeyTokensVectorStore,
)

QUERY = "how proteins fold"
NEW = "Enzymes fold proteins in the cell."


def make_index(encoder):
    return VectorStoreIndex.from_documents(
        [Document(text=text, id_=f"doc-{i}") for i, text in enumerate(SENTENCES)],
        embed_model=KeyTokensEmbedding(encoder),
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0)],
    )


def contents(hits):
    return [hit.node.get_content() for hit in hits]


@pytest.fixture(params=[KeyTokensRetriever, KeyTokensHybridRetriever], ids=["sparse", "hybrid"])
def kind(request):
    return request.param


@pytest.fixture
def index(encoder):
    return make_index(encoder)


@pytest.fixture
def retriever(kind, index, encoder):
    return kind.from_defaults(index=index, encoder=encoder, similarity_top_k=8)


class TestFollowing:
    @pytest.mark.parametrize("route", ["sync", "async", "batch"])
    def test_deleted_and_inserted(self, retriever, index, route):
        assert contents(retriever.retrieve(QUERY))[0] == SENTENCES[2]
        index.delete_ref_doc("doc-2", delete_from_docstore=True)
        index.insert(Document(text=NEW, id_="new"))
        found = {
            "sync": lambda: retriever.retrieve(QUERY),
            "async": lambda: asyncio.run(retriever.aretrieve(QUERY)),
            "batch": lambda: retriever.retrieve_batch([QUERY])[0],
        }[route]()
        assert contents(found)[0] == NEW
        assert "sparse" in found[0].scores
        assert SENTENCES[2] not in contents(found)
        assert len(retriever) == len(SENTENCES)
        assert not retriever.drift()

    def test_refreshed(self, retriever, index):
        index.refresh_ref_docs([Document(text=NEW, id_="doc-2"), Document(text="Wolves hunt deer.", id_="wolf")])
        assert contents(retriever.retrieve(QUERY))[0] == NEW
        assert contents(retriever.retrieve("wolves and deer"))[0] == "Wolves hunt deer."
        assert len(retriever) == len(SENTENCES) + 1

    def test_takes_no_pass_more(self, kind, fresh_encoder, passes):
        index = make_index(fresh_encoder)
        retriever = kind.from_defaults(index=index, encoder=fresh_encoder)
        assert passes.take() == len(SENTENCES)
        index.insert(Document(text=NEW, id_="new"))
        retriever.retrieve(QUERY)
        assert passes.take() == 2  # the document and the query

    def test_nodes_of_its_own_stay(self, retriever, index):
        retriever.add_nodes([TextNode(text="Wolves hunt deer.", id_="wolf")])
        index.delete_ref_doc("doc-2", delete_from_docstore=True)
        assert contents(retriever.retrieve("wolves and deer"))[0] == "Wolves hunt deer."
        assert len(retriever) == len(SENTENCES)

    def test_a_failure_is_made_up_for(self, retriever, index, monkeypatch):
        index.insert(Document(text=NEW, id_="new"))
        with monkeypatch.context() as patch:
            patch.setattr(index.docstore, "get_nodes", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                retriever.retrieve(QUERY)
        assert NEW in contents(retriever.retrieve(QUERY))


class TestTheIndexesOwnNodes:
    @pytest.fixture
    def hierarchy(self):
        text = " ".join(SENTENCES * 6)
        parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[256, 64, 32], chunk_overlap=0)
        return parser.get_nodes_from_documents([Document(text=text)])

    def test_leaves_alone(self, kind, encoder, hierarchy):
        docstore = SimpleDocumentStore()
        docstore.add_documents(hierarchy)
        leaves = get_leaf_nodes(hierarchy)
        context = StorageContext.from_defaults(docstore=docstore)
        index = VectorStoreIndex(leaves, storage_context=context, embed_model=KeyTokensEmbedding(encoder))
        retriever = kind.from_defaults(index=index, encoder=encoder, similarity_top_k=100)
        assert 0 < len(leaves) < len(hierarchy)
        assert len(retriever) == len(leaves)
        assert {hit.node.node_id for hit in retriever.retrieve(QUERY)} <= {node.node_id for node in leaves}

    def test_another_kind_of_index(self, encoder):
        index = SummaryIndex([TextNode(text=text) for text in SENTENCES])
        assert len(KeyTokensRetriever.from_defaults(index=index, encoder=encoder)) == len(SENTENCES)

    def test_over_our_own_store(self, kind, encoder):
        context = StorageContext.from_defaults(vector_store=KeyTokensVectorStore(encoder))
        index = VectorStoreIndex([], storage_context=context, embed_model=KeyTokensEmbedding(encoder))
        with pytest.raises(ValueError, match="index must be over another store, got a KeyTokensVectorStore"):
            kind.from_defaults(index=index, encoder=encoder)


class TestDrift:
    def test_said_when_opened(self, kind, retriever, index, encoder, tmp_path, caplog):
        retriever.persist(tmp_path / "kept")
        index.delete_ref_doc("doc-2", delete_from_docstore=True)
        index.insert(Document(text=NEW, id_="new"))
        index.insert(Document(text="Wolves hunt deer.", id_="wolf"))
        given = {"dense": index} if kind is KeyTokensHybridRetriever else {"index": index}
        with caplog.at_level(logging.WARNING):
            opened = kind.from_persist_dir(tmp_path / "kept", encoder, **given)
        assert (
            "the retriever holds 8 nodes and the application 9: 1 are in the retriever alone, and 2 in" in caplog.text
        )
        drift = opened.drift()
        assert (drift.count, drift.source_count, len(drift.gone), len(drift.missing)) == (8, 9, 1, 2)
        assert opened.sync() == drift
        assert not opened.drift()
        assert contents(opened.retrieve(QUERY))[0] == NEW
        assert SENTENCES[2] not in contents(opened.retrieve(QUERY))

    def test_nothing_said_where_there_is_none(self, kind, retriever, index, encoder, tmp_path, caplog):
        retriever.persist(tmp_path / "kept")
        given = {"dense": index} if kind is KeyTokensHybridRetriever else {"index": index}
        with caplog.at_level(logging.WARNING):
            kind.from_persist_dir(tmp_path / "kept", encoder, **given)
        assert caplog.text == ""

    def test_a_docstore(self, encoder):
        docstore = SimpleDocumentStore()
        docstore.add_documents([TextNode(text=text, id_=str(i)) for i, text in enumerate(SENTENCES)])
        retriever = KeyTokensRetriever.from_defaults(docstore=docstore, encoder=encoder, similarity_top_k=8)
        docstore.delete_document("2")
        docstore.add_documents([TextNode(text=NEW, id_="3"), TextNode(text="Wolves hunt deer.", id_="wolf")])
        drift = retriever.drift()
        assert (drift.missing, drift.gone, drift.changed) == (["wolf"], ["2"], ["3"])
        assert (drift.count, drift.source_count) == (8, 8)
        retriever.sync()
        assert contents(retriever.retrieve(QUERY))[0] == NEW
        assert not retriever.drift()

    def test_nodes(self, encoder, fresh_encoder, passes):
        nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(SENTENCES)]
        retriever = KeyTokensHybridRetriever(fresh_encoder, nodes)
        passes.take()
        retriever.sync(nodes=[*nodes[:6], TextNode(text=NEW, id_="new")])
        assert passes.take() == 1  # what is the same is left alone
        assert len(retriever) == 7

    def test_nothing_to_compare_with(self, encoder):
        with pytest.raises(ValueError, match="nodes or docstore must be given, got neither"):
            KeyTokensRetriever(encoder, []).drift()

    def test_a_loaded_index(self, encoder, retriever, index, kind, passes, tmp_path):
        """The next day: the application loads its index, and nothing is embedded."""
        index.storage_context.persist(str(tmp_path / "storage"))
        retriever.persist(tmp_path / "kept")
        context = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"))
        loaded = load_index_from_storage(context, embed_model=KeyTokensEmbedding(encoder))
        passes.take()
        given = {"dense": loaded} if kind is KeyTokensHybridRetriever else {"index": loaded}
        opened = kind.from_persist_dir(tmp_path / "kept", encoder, **given)
        assert passes.take() == 0
        assert not opened.drift()
        loaded.delete_ref_doc("doc-2", delete_from_docstore=True)
        assert SENTENCES[2] not in contents(opened.retrieve(QUERY))


class TestStoresThatCannotListTheirNodes:
    def test_another_number_is_said_with_both(self, encoder, caplog):
        pytest.importorskip("qdrant_client")
        qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
        from qdrant_client import QdrantClient

        nodes = [TextNode(id_=f"{n:032x}", text=text) for n, text in enumerate(SENTENCES)]
        store = qdrant.QdrantVectorStore("nodes", client=QdrantClient(":memory:"))
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex(nodes, storage_context=context, embed_model=KeyTokensEmbedding(encoder))
        with caplog.at_level(logging.WARNING, "llama_index.retrievers.keytokens"):
            KeyTokensHybridRetriever(encoder, nodes, dense=index)
            KeyTokensHybridRetriever(encoder, dense=index)  # to be filled
            assert caplog.records == []
            retriever = KeyTokensHybridRetriever(encoder, nodes[:5], dense=store)
        assert [record.getMessage().split(":")[0] for record in caplog.records] == [
            f"the retriever holds 5 nodes and the vector store {len(SENTENCES)}"
        ]
        retriever.sync(nodes=nodes)
        assert len(retriever) == len(SENTENCES)
