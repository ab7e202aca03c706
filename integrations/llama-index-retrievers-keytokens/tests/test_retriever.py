from __future__ import annotations

import datetime

import pytest

pytest.importorskip("llama_index.core")

from conftest import SENTENCES
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import IndexNode, QueryBundle, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from st_keytokens import HybridIndex, KeyTokenEncoder

from llama_index.retrievers.keytokens import KeyTokensNodeWithScore, KeyTokensQueryBundle, KeyTokensRetriever


def make_nodes():
    return [
        TextNode(text=text, id_=str(i), metadata={"number": i}, excluded_embed_metadata_keys=["number"])
        for i, text in enumerate(SENTENCES)
    ]


def ids(hits):
    return [hit.node.node_id for hit in hits]


def below(number):
    return MetadataFilters(filters=[MetadataFilter(key="number", value=number, operator="<")])


@pytest.fixture
def retriever(encoder):
    retriever = KeyTokensRetriever(encoder, make_nodes(), similarity_top_k=3)
    yield retriever
    retriever.close()


@pytest.fixture
def empty(encoder):
    retriever = KeyTokensRetriever.from_defaults(nodes=[], encoder=encoder)
    yield retriever
    retriever.close()


def test_class():
    assert "BaseRetriever" in [base.__name__ for base in KeyTokensRetriever.__mro__]


class TestRetrieving:
    def test_ranking_and_scores_are_those_of_our_index(self, encoder, abstracts):
        nodes = [TextNode(text=text, id_=name) for name, text in abstracts.items()]
        retriever = KeyTokensRetriever(encoder, nodes, similarity_top_k=10)
        index = HybridIndex(encoder=encoder)
        index.add(list(abstracts), list(abstracts.values()))
        for query in ("planets around other stars", "how proteins fold"):
            expected = index.search(query, mode="sparse", top_k=10)
            hits = retriever.retrieve(query)
            assert [(hit.node.node_id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in expected]
            assert hits[0].score > hits[-1].score > 0

    def test_hits_are_whole_nodes_with_their_scores(self, retriever):
        (hit, *_) = retriever.retrieve("how proteins fold")
        assert isinstance(hit, KeyTokensNodeWithScore)
        assert hit.node == make_nodes()[2]
        assert hit.scores == {"sparse": hit.score}
        assert hit.matches is None

    def test_explained_hits_say_what_they_matched(self, encoder):
        retriever = KeyTokensRetriever(encoder, make_nodes(), explain=True)
        (hit, *_) = retriever.retrieve("how proteins fold")
        assert {"proteins", "fold"} <= {token.strip().lower() for token, _ in hit.matches}
        assert sum(contribution for _, contribution in hit.matches) == pytest.approx(hit.score, rel=1e-5)
        assert hit.matches == sorted(hit.matches, key=lambda match: -match[1])
        assert hit.node.metadata == {"number": 2}

    def test_more_than_there_are(self, encoder):
        retriever = KeyTokensRetriever(encoder, make_nodes(), similarity_top_k=1000)
        assert sorted(ids(retriever.retrieve(" ".join(SENTENCES)))) == [str(i) for i in range(len(SENTENCES))]
        assert retriever.similarity_top_k == 1000

    def test_hits_of_one_call(self, retriever):
        assert len(retriever.retrieve("the light of stars", similarity_top_k=1)) == 1
        assert len(retriever.retrieve(KeyTokensQueryBundle("the light of stars", similarity_top_k=2))) == 2
        assert len(retriever.retrieve(QueryBundle("the light of stars"))) == 3

    def test_metadata_that_are_embedded_are_found(self, empty):
        seen = TextNode(text="It is here.", id_="seen", metadata={"title": "superconductors"})
        hidden = seen.model_copy(update={"id_": "hidden", "excluded_embed_metadata_keys": ["title"]})
        empty.add_nodes([hidden, seen])
        scores = {hit.node.node_id: hit.score for hit in empty.retrieve("superconductors")}
        assert scores["seen"] > scores.get("hidden", 0.0)

    def test_batches_give_what_single_queries_give(self, retriever):
        queries = ["how proteins fold", "galaxies and stars", "", "the immune system"]
        single = [retriever.retrieve(query, filters=below(6), similarity_top_k=2) for query in queries]
        assert retriever.retrieve_batch(queries, filters=below(6), similarity_top_k=2) == single

    def test_a_batch_takes_one_pass_a_query(self, fresh_encoder, passes):
        retriever = KeyTokensRetriever(fresh_encoder, make_nodes())
        assert passes.take() == len(SENTENCES)
        queries = ["how proteins fold", "galaxies and stars", "the immune system"]
        assert all(retriever.retrieve_batch(queries))
        assert passes.take() == 3

    def test_chinese_and_mixed_scripts(self, encoder):
        texts = ["量子计算机使用干涉", "蛋白质折叠成形状", "the 蛋白质 database of the cell", "Звёзды и галактики"]
        retriever = KeyTokensRetriever(encoder, [TextNode(text=text, id_=text) for text in texts], similarity_top_k=4)
        assert ids(retriever.retrieve("蛋白质"))[:2] in ([texts[1], texts[2]], [texts[2], texts[1]])
        assert ids(retriever.retrieve("量子"))[0] == texts[0]
        assert ids(retriever.retrieve("галактики"))[0] == texts[3]


class TestFilters:
    def test_what_is_filtered_out_never_comes_back(self, encoder):
        retriever = KeyTokensRetriever(encoder, make_nodes(), filters=below(2), similarity_top_k=100)
        assert set(ids(retriever.retrieve(" ".join(SENTENCES)))) == {"0", "1"}

    def test_of_one_call_hold_beside_the_retrievers(self, encoder):
        retriever = KeyTokensRetriever(encoder, make_nodes(), filters=below(5), similarity_top_k=100)
        inner = MetadataFilters(filters=below(2).filters, condition="not")
        call = MetadataFilters(filters=[inner, below(99)])
        assert set(ids(retriever.retrieve(" ".join(SENTENCES), filters=call))) == {"2", "3", "4"}
        bundle = KeyTokensQueryBundle(" ".join(SENTENCES), filters=call)
        assert set(ids(retriever.retrieve(bundle))) == {"2", "3", "4"}
        assert set(ids(retriever.retrieve(bundle, filters=below(3)))) == {"2"}
        assert set(ids(retriever.retrieve(" ".join(SENTENCES)))) == {"0", "1", "2", "3", "4"}

    def test_missing_key(self, retriever):
        absent = MetadataFilters(filters=[MetadataFilter(key="language", value="en")])
        assert retriever.retrieve("how proteins fold", filters=absent) == []

    def test_nothing_left(self, retriever):
        assert retriever.retrieve("how proteins fold", filters=below(0)) == []

    def test_operators_that_need_a_function(self, retriever):
        filters = MetadataFilters(filters=[MetadataFilter(key="number", value=None, operator="is_empty")])
        assert retriever.retrieve("how proteins fold", filters=filters) == []


class TestFindingNothing:
    def test_empty_retriever(self, empty):
        assert empty.retrieve("how proteins fold") == []
        assert empty.retrieve_batch(["how proteins fold", "stars"]) == [[], []]
        assert len(empty) == 0

    @pytest.mark.parametrize("query", ["", "   ", "\n\t"])
    def test_blank_query(self, retriever, query):
        assert retriever.retrieve(query) == []

    def test_query_that_shares_no_term(self, model):
        literal = KeyTokenEncoder(model, query="lookup")
        retriever = KeyTokensRetriever(literal, [TextNode(text="stars")])
        assert retriever.retrieve("蛋") == []

    def test_node_without_text(self, retriever):
        retriever.add_nodes([TextNode(text="", id_="silent")])
        assert len(retriever) == len(SENTENCES) + 1
        assert "silent" not in ids(retriever.retrieve(" ".join(SENTENCES), similarity_top_k=100))


class TestChanging:
    def test_add_and_delete(self, retriever):
        node = TextNode(text="Wolves hunt deer in the forest.", id_="wolf")
        assert retriever.add_nodes([node]) == ["wolf"]
        assert ids(retriever.retrieve("wolves and deer"))[0] == "wolf"
        assert retriever.delete_nodes(["wolf", "unknown"]) == 1
        assert "wolf" not in ids(retriever.retrieve("wolves and deer"))

    def test_a_node_whose_id_is_there_is_replaced(self, retriever):
        retriever.add_nodes([TextNode(text="Wolves hunt deer in the forest.", id_="2")])
        assert len(retriever) == len(SENTENCES)
        assert ids(retriever.retrieve("wolves and deer"))[0] == "2"
        hits = retriever.retrieve("proteins fold", similarity_top_k=100)
        assert SENTENCES[2] not in [hit.node.get_content() for hit in hits]

    def test_or_refused(self, retriever):
        with pytest.raises(ValueError, match="ids must be new, got '2', which is there"):
            retriever.add_nodes([TextNode(text="a", id_="new"), TextNode(text="b", id_="2")], on_conflict="error")
        assert len(retriever) == len(SENTENCES)

    def test_an_id_twice_adds_nothing(self, retriever):
        with pytest.raises(ValueError, match="ids must be unique, got 'x' twice"):
            retriever.add_nodes([TextNode(text="a", id_="x"), TextNode(text="b", id_="x")])
        assert len(retriever) == len(SENTENCES)

    def test_metadata_that_cannot_be_kept_adds_nothing(self, retriever, passes):
        nodes = [TextNode(text="a"), TextNode(text="b", metadata={"deep": {"thing": {1, 2}}})]
        with pytest.raises(TypeError, match=r"got set for 'deep\.thing'"):
            retriever.add_nodes(nodes)
        assert len(retriever) == len(SENTENCES)
        assert passes.take() == 0

    def test_nodes_are_not_modified(self, encoder):
        nodes = make_nodes()
        KeyTokensRetriever(encoder, nodes)
        assert nodes == make_nodes()

    def test_metadata_of_other_types_come_back(self, empty):
        node = TextNode(text="stars", metadata={"date": datetime.date(2024, 5, 1), "pages": (1, 2)})
        empty.add_nodes([node])
        assert empty.retrieve("stars")[0].node.metadata == node.metadata
        since = MetadataFilters(filters=[MetadataFilter(key="date", value="2024-05-02", operator=">=")])
        assert empty.retrieve("stars", filters=since) == []


class TestSources:
    def test_docstore(self, encoder):
        docstore = SimpleDocumentStore()
        docstore.add_documents(make_nodes())
        assert len(KeyTokensRetriever.from_defaults(docstore=docstore, encoder=encoder)) == len(SENTENCES)

    def test_index(self, encoder):
        index = VectorStoreIndex(make_nodes(), embed_model=MockEmbedding(embed_dim=4))
        retriever = KeyTokensRetriever.from_defaults(index=index, encoder=encoder, similarity_top_k=1)
        assert ids(retriever.retrieve("how proteins fold")) == ["2"]

    def test_empty_docstore_of_a_store_that_keeps_the_text(self, encoder):
        qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
        client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
        context = StorageContext.from_defaults(vector_store=qdrant.QdrantVectorStore("nodes", client=client))
        index = VectorStoreIndex([], storage_context=context, embed_model=MockEmbedding(embed_dim=4))
        with pytest.raises(ValueError, match="index must keep its nodes in its docstore, got an empty one"):
            KeyTokensRetriever.from_defaults(index=index, encoder=encoder)

    def test_exactly_one(self, encoder):
        with pytest.raises(ValueError, match="exactly one of index, nodes and docstore must be given, got none"):
            KeyTokensRetriever.from_defaults(encoder=encoder)
        with pytest.raises(ValueError, match="got nodes, docstore"):
            KeyTokensRetriever.from_defaults(nodes=[], docstore=SimpleDocumentStore(), encoder=encoder)


class TestPersisting:
    def test_every_setting_comes_back(self, encoder, tmp_path):
        filters = MetadataFilters(filters=[below(6), MetadataFilter(key="number", value=[0], operator="nin")])
        retriever = KeyTokensRetriever(encoder, make_nodes(), filters=filters, similarity_top_k=4, explain=True)
        retriever.persist(tmp_path / "kept")
        opened = KeyTokensRetriever.from_persist_dir(tmp_path / "kept", encoder)
        assert (opened.similarity_top_k, opened.filters, opened.explain) == (4, filters, True)
        hits = opened.retrieve("the light of stars")
        assert hits == retriever.retrieve("the light of stars")
        assert hits

    def test_what_is_added_after_opening_is_there(self, retriever, encoder, tmp_path):
        retriever.persist(tmp_path / "kept")
        with_more = KeyTokensRetriever.from_persist_dir(tmp_path / "kept", encoder)
        with_more.add_nodes([TextNode(text="Wolves hunt deer.", id_="wolf")])
        with_more.similarity_top_k = 7
        with_more.persist(tmp_path / "kept")
        with_more.close()
        again = KeyTokensRetriever.from_persist_dir(tmp_path / "kept", encoder)
        assert len(again) == len(SENTENCES) + 1
        assert again.similarity_top_k == 7
        assert len(retriever) == len(SENTENCES)

    def test_path_from_the_start(self, encoder, tmp_path):
        KeyTokensRetriever(encoder, make_nodes(), path=tmp_path / "kept").close()
        assert len(KeyTokensRetriever(encoder, path=tmp_path / "kept")) == len(SENTENCES)

    def test_an_older_one_is_replaced(self, retriever, encoder, tmp_path):
        retriever.persist(tmp_path / "kept")
        retriever.delete_nodes(["0"])
        retriever.persist(tmp_path / "kept")
        assert len(KeyTokensRetriever.from_persist_dir(tmp_path / "kept", encoder)) == len(SENTENCES) - 1

    def test_empty_retriever(self, empty, encoder, tmp_path):
        empty.persist(tmp_path / "kept")
        opened = KeyTokensRetriever.from_persist_dir(tmp_path / "kept", encoder)
        assert opened.retrieve("stars") == []
        assert opened.add_nodes(make_nodes()) == [str(i) for i in range(len(SENTENCES))]

    def test_other_files_are_kept(self, retriever, tmp_path):
        (tmp_path / "precious.txt").write_text("mine")
        with pytest.raises(ValueError, match="path must be an index, an empty directory or new"):
            retriever.persist(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]

    def test_another_encoder_is_refused(self, retriever, model, tmp_path):
        retriever.persist(tmp_path / "kept")
        with pytest.raises(ValueError, match="fingerprint must be"):
            KeyTokensRetriever.from_persist_dir(tmp_path / "kept", KeyTokenEncoder(model))

    def test_nothing_there(self, encoder, tmp_path):
        with pytest.raises(FileNotFoundError, match="path must hold a persisted retriever"):
            KeyTokensRetriever.from_persist_dir(tmp_path, encoder)


def test_an_encoder_that_changes_is_refused(model, calibration):
    encoder = KeyTokenEncoder(model, calibration=calibration)
    retriever = KeyTokensRetriever(encoder, make_nodes())
    encoder.head.max_active_dims = 3
    with pytest.raises(ValueError, match="the encoder must have the fingerprint"):
        retriever.retrieve("stars")
    with pytest.raises(ValueError, match="the encoder must have the fingerprint"):
        retriever.add_nodes([TextNode(text="stars")])


class TestEvents:
    def test_each_query_is_one_event(self, encoder):
        handler = LlamaDebugHandler(print_trace_on_end=False)
        retriever = KeyTokensRetriever(encoder, make_nodes(), callback_manager=CallbackManager([handler]))
        hits = retriever.retrieve("stars")
        batch = retriever.retrieve_batch(["proteins", "light"])
        pairs = handler.get_event_pairs(CBEventType.RETRIEVE)
        assert [start.payload["query_str"] for start, _ in pairs] == ["stars", "proteins", "light"]
        assert [end.payload["nodes"] for _, end in pairs] == [hits, *batch]


class TestObjects:
    def test_of_added_nodes(self, retriever, encoder):
        inner = KeyTokensRetriever(encoder, [TextNode(text="Wolves hunt deer.", id_="wolf")])
        retriever.add_nodes([IndexNode(text="all about wolves", index_id="wolves", obj=inner)])
        assert ids(retriever.retrieve("about wolves"))[0] == "wolf"
        assert ids(retriever.retrieve_batch(["about wolves"])[0])[0] == "wolf"

    def test_given_again_after_opening(self, retriever, encoder, tmp_path):
        inner = KeyTokensRetriever(encoder, [TextNode(text="Wolves hunt deer.", id_="wolf")])
        node = IndexNode(text="all about wolves", index_id="wolves", obj=inner)
        retriever.add_nodes([node])
        retriever.persist(tmp_path / "kept")
        opened = KeyTokensRetriever.from_persist_dir(tmp_path / "kept", encoder, objects=[node])
        assert ids(opened.retrieve("about wolves"))[0] == "wolf"

    def test_nodes_as_objects(self, empty):
        small = IndexNode(text="wolves", index_id="big", obj=TextNode(text="Wolves hunt deer.", id_="big"))
        empty.add_nodes([small])
        assert ids(empty.retrieve("wolves")) == ["big"]


class TestValidation:
    def test_encoder(self):
        with pytest.raises(TypeError, match="encoder must be a KeyTokenEncoder, got str"):
            KeyTokensRetriever("model")

    @pytest.mark.parametrize("top_k", [0, -1])
    def test_similarity_top_k(self, encoder, retriever, top_k):
        with pytest.raises(ValueError, match=f"top_k must be >= 1, got {top_k}"):
            KeyTokensRetriever(encoder, similarity_top_k=top_k)
        with pytest.raises(ValueError, match=f"top_k must be >= 1, got {top_k}"):
            retriever.retrieve("stars", similarity_top_k=top_k)

    def test_filters(self, encoder, retriever):
        with pytest.raises(TypeError, match="filters must be MetadataFilters, got dict"):
            KeyTokensRetriever(encoder, filters={"number": 1})
        with pytest.raises(TypeError, match="filters must be MetadataFilters, got dict"):
            retriever.retrieve("stars", filters={"number": 1})

    def test_an_argument_that_nobody_knows(self, encoder, retriever):
        for call in (
            lambda: KeyTokensRetriever(encoder, top_k=3),
            lambda: KeyTokensRetriever.from_defaults(nodes=[], encoder=encoder, top_k=3),
            lambda: retriever.retrieve("stars", top_k=3),
            lambda: retriever.retrieve_batch([], top_k=3),
        ):
            with pytest.raises(TypeError, match="unexpected keyword argument 'top_k'"):
                call()
