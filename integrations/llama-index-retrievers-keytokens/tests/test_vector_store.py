"""Our index as a vector store: what LlamaIndex does to keep a store in step reaches both vectors."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

pytest.importorskip("llama_index.core")

from conftest import SENTENCES
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery

from llama_index.retrievers.keytokens import (
    KeyTokensEmbedding,
    KeyTokensHybridRetriever,
    KeyTokensQueryBundle,
    KeyTokensRetriever,
    KeyTokensVectorStore,
)

QUERY = "how proteins fold"
MODES = ("default", "sparse", "hybrid")


def make_documents(count=8):
    return [
        Document(text=text, id_=f"doc-{i}", metadata={"number": i}, excluded_embed_metadata_keys=["number"])
        for i, text in enumerate(SENTENCES[:count])
    ]


def make_index(encoder, documents=None, path=None):
    context = StorageContext.from_defaults(vector_store=KeyTokensVectorStore(encoder, path))
    return VectorStoreIndex.from_documents(
        make_documents() if documents is None else documents,
        storage_context=context,
        embed_model=KeyTokensEmbedding(encoder),
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0)],
    )


def texts(index, query, mode, **settings):
    found = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=8, **settings).retrieve(query)
    return [hit.node.get_content() for hit in found]


def below(number):
    return MetadataFilters(filters=[MetadataFilter(key="number", value=number, operator="<")])


@pytest.fixture
def index(encoder):
    return make_index(encoder)


class TestQueries:
    def test_modes_are_our_retrievers(self, index, encoder):
        nodes = index.vector_store.get_nodes()
        sparse = KeyTokensRetriever(encoder, nodes, similarity_top_k=8).retrieve(QUERY)
        hybrid = KeyTokensHybridRetriever(encoder, nodes, similarity_top_k=8).retrieve(QUERY)
        for mode, expected in (("sparse", sparse), ("hybrid", hybrid)):
            found = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=8).retrieve(QUERY)
            assert [(hit.node.node_id, hit.score) for hit in found] == [
                (hit.node.node_id, pytest.approx(hit.score, rel=1e-4)) for hit in expected
            ]
        plain = VectorStoreIndex(nodes, embed_model=KeyTokensEmbedding(encoder))
        dense = plain.as_retriever(similarity_top_k=8).retrieve(QUERY)
        found = index.as_retriever(similarity_top_k=8).retrieve(QUERY)
        assert [(hit.node.node_id, hit.score) for hit in found] == [
            (hit.node.node_id, pytest.approx(hit.score, rel=1e-4)) for hit in dense
        ]

    def test_alpha(self, index):
        assert texts(index, QUERY, "hybrid", alpha=1.0)[:7] == texts(index, QUERY, "default")[:7]
        assert texts(index, QUERY, "hybrid", alpha=0.0)[0] == texts(index, QUERY, "sparse")[0] == SENTENCES[2]

    @pytest.mark.parametrize("mode", MODES)
    def test_filters(self, index, mode):
        assert set(texts(index, QUERY + " " + SENTENCES[6], mode, filters=below(3))) <= set(SENTENCES[:3])
        assert texts(index, QUERY, mode, filters=below(3))
        assert texts(index, QUERY, mode, doc_ids=["doc-2", "doc-5"])[0] == SENTENCES[2]
        assert set(texts(index, QUERY, mode, doc_ids=["doc-2", "doc-5"])) <= {SENTENCES[2], SENTENCES[5]}
        assert texts(index, QUERY, mode, doc_ids=["doc-2"], filters=below(2)) == []

    @pytest.mark.parametrize("mode", MODES)
    def test_filters_of_a_bundle(self, index, mode):
        retriever = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=8)
        hits = retriever.retrieve(KeyTokensQueryBundle(QUERY + " " + SENTENCES[6], filters=below(3)))
        assert hits
        assert {hit.node.metadata["number"] for hit in hits} <= {0, 1, 2}

    def test_node_ids(self, index):
        wanted = [node.node_id for node in index.vector_store.get_nodes(filters=below(2))]
        query = VectorStoreQuery(query_str=QUERY, node_ids=wanted, similarity_top_k=9, mode="hybrid")
        query.query_embedding = index._embed_model.get_query_embedding(QUERY)
        assert sorted(index.vector_store.query(query).ids) == sorted(wanted)

    @pytest.mark.parametrize("mode", MODES)
    def test_asynchronously(self, index, mode):
        retriever = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=8)
        assert asyncio.run(retriever.aretrieve(QUERY)) == retriever.retrieve(QUERY)

    def test_empty(self, encoder):
        index = make_index(encoder, [])
        assert [texts(index, QUERY, mode) for mode in MODES] == [[], [], []]

    def test_refused(self, index):
        with pytest.raises(ValueError, match=r"mode must be one of 'default', .*, got 'mmr'"):
            texts(index, QUERY, "mmr")
        with pytest.raises(ValueError, match="query_embedding must be given in mode 'hybrid', got None"):
            index.vector_store.query(VectorStoreQuery(query_str=QUERY, mode="hybrid"))


class TestForwardPasses:
    def test_1100_nodes_take_one_each(self, fresh_encoder, passes):
        nodes = [TextNode(text=f"{SENTENCES[i % 8]} {i}") for i in range(1100)]
        context = StorageContext.from_defaults(vector_store=KeyTokensVectorStore(fresh_encoder))
        embedding = KeyTokensEmbedding(fresh_encoder)
        index = VectorStoreIndex(nodes, storage_context=context, embed_model=embedding)
        assert passes.take() == 1100
        index.as_retriever(vector_store_query_mode="hybrid").retrieve(QUERY)
        assert passes.take() == 1


class TestChanges:
    def test_delete_and_insert(self, index):
        index.delete_ref_doc("doc-2", delete_from_docstore=True)
        index.insert(Document(text="Enzymes fold proteins in the cell.", id_="new"))
        for mode in MODES:
            found = texts(index, QUERY, mode)
            assert found[0] == "Enzymes fold proteins in the cell."
            assert SENTENCES[2] not in found
        assert len(index.vector_store) == len(SENTENCES)

    def test_asynchronously(self, index):
        async def change():
            await index.adelete_ref_doc("doc-2", delete_from_docstore=True)
            await index.ainsert(Document(text="Enzymes fold proteins in the cell.", id_="new"))

        asyncio.run(change())
        assert texts(index, QUERY, "sparse")[0] == "Enzymes fold proteins in the cell."
        assert SENTENCES[2] not in texts(index, QUERY, "hybrid")

    def test_refresh(self, encoder):
        documents = make_documents(4)
        index = make_index(encoder, documents)
        documents[2] = Document(text="Wolves hunt deer in the forest.", id_="doc-2")
        assert index.refresh_ref_docs([*documents, *make_documents()[4:5]]) == [False, False, True, False, True]
        assert sorted(node.get_content() for node in index.vector_store.get_nodes()) == sorted(
            [SENTENCES[0], SENTENCES[1], SENTENCES[3], SENTENCES[4], "Wolves hunt deer in the forest."]
        )

    def test_delete_nodes_and_clear(self, index):
        store = index.vector_store
        index.delete_nodes([node.node_id for node in store.get_nodes(filters=below(3))])
        assert len(store) == 5
        store.delete_nodes(filters=below(5))
        assert len(store) == 3
        with pytest.raises(ValueError, match="node_ids or filters must be given, got neither"):
            store.delete_nodes()
        store.clear()
        assert len(store) == 0

    def test_metadata_of_the_names_of_a_source(self, encoder):
        """The source is what the node says, and not what metadata of that name do."""
        names = dict.fromkeys(("ref_doc_id", "doc_id", "document_id"), "doc-1")
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc-0")}
        store = KeyTokensVectorStore(encoder)
        store.add([TextNode(text="a", id_="x", metadata=names, relationships=source), TextNode(text="b", id_="y")])
        store.delete("doc-1")
        assert len(store) == 2
        store.delete("doc-0")
        assert [node.node_id for node in store.get_nodes()] == ["y"]


class TestIngestionPipeline:
    @pytest.fixture
    def pipeline(self, encoder):
        return IngestionPipeline(
            transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), KeyTokensEmbedding(encoder)],
            vector_store=KeyTokensVectorStore(encoder),
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        )

    @pytest.mark.parametrize("is_async", [False, True])
    def test_upserts_and_deletes(self, pipeline, is_async):
        def run(documents):
            return asyncio.run(pipeline.arun(documents=documents)) if is_async else pipeline.run(documents=documents)

        store = pipeline.vector_store
        documents = make_documents(5)
        assert len(run(documents)) == 5
        assert len(run(documents)) == 0  # nothing has changed
        documents[1] = Document(text="Wolves hunt deer.", id_="doc-1")
        run(documents[:4])
        assert sorted(node.ref_doc_id for node in store.get_nodes()) == ["doc-0", "doc-1", "doc-2", "doc-3"]
        query = VectorStoreQuery(query_str="wolves and deer", similarity_top_k=3, mode="sparse")
        assert store.query(query).nodes[0].get_content() == "Wolves hunt deer."
        query.query_str = SENTENCES[1]
        assert SENTENCES[1] not in [node.get_content() for node in store.query(query).nodes]

    def test_documents_that_are_not_split(self, encoder):
        store = KeyTokensVectorStore(encoder)
        pipeline = IngestionPipeline(
            transformations=[KeyTokensEmbedding(encoder)],
            vector_store=store,
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        )
        pipeline.run(documents=make_documents(3))
        pipeline.run(documents=make_documents(2))
        assert sorted(node.node_id for node in store.get_nodes()) == ["doc-0", "doc-1"]


class TestKeeping:
    def test_a_path(self, encoder, passes, tmp_path):
        before = texts(make_index(encoder, path=tmp_path / "nodes"), QUERY, "hybrid")
        passes.take()
        store = KeyTokensVectorStore(encoder, tmp_path / "nodes")
        opened = VectorStoreIndex.from_vector_store(store, embed_model=KeyTokensEmbedding(encoder))
        assert passes.take() == 0
        assert texts(opened, QUERY, "hybrid") == before

    def test_persisting_a_storage_context(self, index, encoder, tmp_path):
        index.storage_context.persist(str(tmp_path / "storage"))
        store = KeyTokensVectorStore(encoder, tmp_path / "storage" / "default__vector_store.json")
        assert store.get_nodes() == index.vector_store.get_nodes()

    @pytest.mark.parametrize("is_kept", [False, True])
    @pytest.mark.parametrize("change", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
    def test_copies(self, encoder, tmp_path, change, is_kept):
        store = make_index(encoder, path=tmp_path / "nodes" if is_kept else None).vector_store
        copied = change(store)
        assert copied.get_nodes() == store.get_nodes()
        copied.clear()
        assert len(store) == (0 if is_kept else len(SENTENCES))


class TestValidation:
    def test_vectors_of_another_dimension(self, encoder):
        context = StorageContext.from_defaults(vector_store=KeyTokensVectorStore(encoder))
        with pytest.raises(ValueError, match=r"the encoder's dimension \d+, got 4. Give KeyTokensEmbedding"):
            VectorStoreIndex([TextNode(text="a")], storage_context=context, embed_model=MockEmbedding(embed_dim=4))

    def test_encoder(self):
        with pytest.raises(TypeError, match="encoder must be a KeyTokenEncoder, got str"):
            KeyTokensVectorStore("path")


class TestTheNextDay:
    @pytest.mark.parametrize("has_path", [True, False])
    def test_one_kind_of_folder(self, encoder, tmp_path, has_path):
        folder = tmp_path / "kept"
        store = KeyTokensVectorStore(encoder, folder if has_path else None)
        nodes = [TextNode(id_=str(n), text=text) for n, text in enumerate(SENTENCES)]
        for node, vector in zip(nodes, KeyTokensEmbedding(encoder).get_text_embedding_batch(SENTENCES), strict=True):
            node.embedding = vector
        store.add(nodes)
        store.persist(str(folder))
        store.close()
        opened = KeyTokensVectorStore.from_persist_dir(folder, encoder)
        assert len(opened) == len(SENTENCES)
        opened.close()
        hybrid = KeyTokensHybridRetriever.from_persist_dir(folder, encoder)
        assert hybrid.retrieve("distant galaxies")[0].node.node_id == "1"
        hybrid.close()
        again = KeyTokensVectorStore.from_persist_dir(folder, encoder)
        assert [node.node_id for node in again.get_nodes()] == [str(n) for n in range(len(SENTENCES))]
        again.close()
        with pytest.raises(ValueError, match=r"path must hold what KeyTokensRetriever\.persist kept"):
            KeyTokensRetriever.from_persist_dir(folder, encoder)

    def test_none_is_there(self, encoder, tmp_path):
        with pytest.raises(FileNotFoundError, match="path must hold a persisted retriever"):
            KeyTokensVectorStore.from_persist_dir(tmp_path / "nothing", encoder)
        assert not (tmp_path / "nothing").exists()
