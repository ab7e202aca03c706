from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("llama_index.core")

from conftest import SENTENCES
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from st_keytokens import HybridIndex, KeyTokenEncoder, adaptive_fusion, reciprocal_rank_fusion, score_fusion
from st_keytokens.retrieval import SearchSettings

from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensHybridRetriever, KeyTokensRetriever

QUERY = "how proteins fold in the light of distant stars"


def make_nodes():
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="source")}
    return [
        TextNode(
            text=text,
            id_=str(i),
            metadata={"number": i},
            excluded_embed_metadata_keys=["number"],
            relationships=source if i == 3 else {},
        )
        for i, text in enumerate(SENTENCES)
    ]


def ids(hits):
    return [hit.node.node_id for hit in hits]


def ranking(hits):
    return [(hit.node.node_id, pytest.approx(hit.score, rel=1e-5)) for hit in hits]


def ids_and_scores(hits):
    return [(hit.node.node_id, hit.score) for hit in hits]


def below(number):
    return MetadataFilters(filters=[MetadataFilter(key="number", value=number, operator="<")])


def make_index(encoder, nodes=None):
    return VectorStoreIndex(make_nodes() if nodes is None else nodes, embed_model=KeyTokensEmbedding(encoder))


@pytest.fixture
def own(encoder):
    retriever = KeyTokensHybridRetriever(encoder, make_nodes(), similarity_top_k=8)
    yield retriever
    retriever.close()


@pytest.fixture
def over_index(encoder):
    retriever = KeyTokensHybridRetriever.from_defaults(index=make_index(encoder), encoder=encoder, similarity_top_k=8)
    yield retriever
    retriever.close()


class FailingStore(SimpleVectorStore):
    """A store that fails at its second batch, at any query, and at any deletion."""

    batches: int = 0

    def add(self, nodes, **settings):
        self.batches += 1
        if self.batches == 2:
            raise ConnectionError("the store went away")
        return super().add(nodes, **settings)

    def query(self, query, **settings):
        raise ConnectionError("the store went away")

    def delete_nodes(self, *arguments, **settings):
        raise ConnectionError("the store went away")


class TestFusing:
    @pytest.mark.parametrize("fusion", ["rrf", "score", "adaptive"])
    def test_scores_by_hand(self, encoder, fusion):
        """The fused scores follow from the two sides' own rankings."""
        index = HybridIndex(encoder=encoder)
        index.add([str(i) for i in range(len(SENTENCES))], SENTENCES)
        query = encoder.encode_query(QUERY, is_hybrid=True)
        sides = {
            mode: [(hit.id, hit.score) for hit in index.search(query, mode=mode, top_k=100)[0]]
            for mode in ("dense", "sparse")
        }
        weights = {"dense": 0.5, "sparse": 2.0}
        fuse = {"rrf": reciprocal_rank_fusion, "score": score_fusion, "adaptive": adaptive_fusion}[fusion]
        fused = fuse(sides, weights=weights)
        for dense in (None, make_index(encoder)):
            retriever = KeyTokensHybridRetriever(
                encoder, make_nodes(), dense=dense, fusion=fusion, weights=weights, similarity_top_k=8
            )
            hits = retriever.retrieve(QUERY)
            assert ranking(hits) == [(hit.id, pytest.approx(hit.score, rel=1e-5)) for hit in fused]
            for hit, expected in zip(hits, fused, strict=True):
                assert hit.scores == pytest.approx(expected.components, rel=1e-5)

    def test_the_first_on_both_sides(self, own, encoder):
        """By default each side counts as much as the encoder says."""
        total = sum(encoder.fusion_weights.values())
        assert own.fusion == SearchSettings().fusion == "adaptive"
        own.fusion = "score"
        assert own.retrieve(SENTENCES[2])[0].score == pytest.approx(total)
        own.fusion = "rrf"
        (first, *_) = own.retrieve(SENTENCES[2])
        assert first.node.node_id == "2"
        assert first.score == pytest.approx(total / 61)
        assert set(first.scores) == {"dense", "sparse"}

    def test_a_weight_of_zero_leaves_the_other_side(self, lookup_encoder, own):
        """The query's own words: what its embedding says is on the dense side."""
        sparse = KeyTokensRetriever(lookup_encoder, make_nodes(), similarity_top_k=8)
        own.weights = {"dense": 0.0}
        expected = ids(sparse.retrieve(QUERY))[:-1]  # the last is scaled to 0, as what is not found
        assert len(expected) > 4
        assert ids(own.retrieve(QUERY))[: len(expected)] == expected

    def test_depth(self, encoder):
        retriever = KeyTokensHybridRetriever(encoder, make_nodes(), depth=1, similarity_top_k=8)
        assert 1 <= len(retriever.retrieve(QUERY)) <= 2

    def test_own_index_and_vector_store_agree(self, own, over_index):
        for query in (QUERY, "the immune system", "zero weights"):
            assert ranking(own.retrieve(query)) == [
                (hit.node.node_id, hit.score) for hit in over_index.retrieve(query)
            ]

    def test_another_embedding_model(self, encoder, lookup_encoder):
        index = VectorStoreIndex(make_nodes(), embed_model=MockEmbedding(embed_dim=4))  # all vectors are the same
        retriever = KeyTokensHybridRetriever.from_defaults(
            index=index, encoder=encoder, fusion="score", similarity_top_k=8
        )
        hits = retriever.retrieve(QUERY)
        assert [hit.scores["dense"] for hit in hits] == pytest.approx([1.0] * len(SENTENCES))
        expected = KeyTokensRetriever(lookup_encoder, make_nodes(), similarity_top_k=8).retrieve(QUERY)
        found = {hit.node.node_id: hit.scores["sparse"] for hit in hits if "sparse" in hit.scores}
        assert found == pytest.approx({hit.node.node_id: hit.score for hit in expected})
        assert hits[0].score == pytest.approx(1.0 + 1.0)  # what our embedder is trusted says nothing about another one

    def test_explained(self, encoder):
        for dense in (None, make_index(encoder)):
            retriever = KeyTokensHybridRetriever(encoder, make_nodes(), dense=dense, explain=True, similarity_top_k=8)
            for hit in retriever.retrieve(QUERY):
                total = sum(contribution for _, contribution in hit.matches)
                assert total == pytest.approx(hit.scores.get("sparse", 0.0), rel=1e-5)

    def test_batches_give_what_single_queries_give(self, own, over_index):
        queries = [QUERY, "the immune system", " "]
        for retriever in (own, over_index):
            single = [retriever.retrieve(query, similarity_top_k=3, filters=below(6)) for query in queries]
            batch = retriever.retrieve_batch(queries, similarity_top_k=3, filters=below(6))
            assert [ranking(hits) for hits in batch] == [ids_and_scores(hits) for hits in single]


class TestForwardPasses:
    """One for each node and query, however many sides look at it."""

    def test_own_index(self, fresh_encoder, passes):
        retriever = KeyTokensHybridRetriever(fresh_encoder, make_nodes())
        assert passes.take() == len(SENTENCES)
        retriever.retrieve(QUERY)
        assert passes.take() == 1

    @pytest.mark.parametrize("cache_size", [0, 1024])
    def test_vector_store(self, model, calibration, passes, cache_size):
        encoder = KeyTokenEncoder(model, calibration=calibration, cache_size=cache_size)
        index = make_index(encoder)
        retriever = KeyTokensHybridRetriever.from_defaults(index=index, encoder=encoder, explain=True)
        assert passes.take() == len(SENTENCES)
        retriever.retrieve(QUERY)
        assert passes.take() == 1
        asyncio.run(retriever.aretrieve("the immune system"))
        assert passes.take() == 1
        retriever.retrieve_batch(["galaxies", "vaccines", "theorems"])
        assert passes.take() == 3
        retriever.add_nodes([TextNode(text="Wolves hunt deer."), TextNode(text="Bees carry pollen.")])
        assert passes.take() == 2


class TestFilters:
    @pytest.mark.parametrize("kind", ["own", "over_index"])
    def test_hold_on_both_sides(self, kind, request):
        retriever = request.getfixturevalue(kind)
        inner = MetadataFilters(filters=below(2).filters, condition="not")
        assert set(ids(retriever.retrieve(QUERY, filters=below(5)))) == {"0", "1", "2", "3", "4"}
        nested = MetadataFilters(filters=[inner, below(5)])
        assert set(ids(retriever.retrieve(QUERY, filters=nested))) == {"2", "3", "4"}
        retriever.filters = below(4)
        assert set(ids(retriever.retrieve(QUERY, filters=nested))) == {"2", "3"}
        assert retriever.retrieve(QUERY, filters=below(0)) == []

    @pytest.mark.parametrize("kind", ["own", "over_index"])
    def test_missing_key(self, kind, request):
        absent = MetadataFilters(filters=[MetadataFilter(key="language", value="en")])
        assert request.getfixturevalue(kind).retrieve(QUERY, filters=absent) == []

    @pytest.mark.parametrize("kind", ["own", "over_index"])
    def test_by_the_source_document(self, kind, request):
        source = MetadataFilters(filters=[MetadataFilter(key="ref_doc_id", value="source")])
        assert ids(request.getfixturevalue(kind).retrieve(QUERY, filters=source)) == ["3"]

    def test_hold_for_nodes_that_only_the_vector_store_has(self, encoder):
        retriever = KeyTokensHybridRetriever(
            encoder, make_nodes()[:2], dense=make_index(encoder), similarity_top_k=8, explain=True
        )
        hits = retriever.retrieve(QUERY, filters=below(4))
        assert set(ids(hits)) == {"0", "1", "2", "3"}
        (foreign,) = [hit for hit in hits if hit.node.node_id == "3"]
        assert foreign.node.get_content() == SENTENCES[3]
        assert (set(foreign.scores), foreign.matches) == ({"dense"}, [])


class TestFindingNothing:
    @pytest.mark.parametrize("dense", [False, True])
    def test_empty_retriever(self, encoder, dense):
        index = make_index(encoder, []) if dense else None
        retriever = KeyTokensHybridRetriever.from_defaults(nodes=[], dense=index, encoder=encoder)
        assert retriever.retrieve(QUERY) == []
        assert retriever.retrieve_batch([QUERY]) == [[]]

    @pytest.mark.parametrize("kind", ["own", "over_index"])
    @pytest.mark.parametrize("query", ["", " \n"])
    def test_blank_query(self, kind, query, request):
        retriever = request.getfixturevalue(kind)
        assert retriever.retrieve(query) == []
        assert asyncio.run(retriever.aretrieve(query)) == []

    @pytest.mark.parametrize("kind", ["own", "over_index"])
    def test_more_than_there_are(self, kind, request):
        hits = request.getfixturevalue(kind).retrieve(QUERY, similarity_top_k=1000)
        assert sorted(ids(hits)) == [str(i) for i in range(len(SENTENCES))]

    @pytest.mark.parametrize("dense", [False, True])
    def test_chinese_and_mixed_scripts(self, encoder, dense):
        """The sparse side tells them apart, whatever the dense one of a small English model says."""
        texts = ["量子计算机使用干涉", "蛋白质折叠成形状", "mRNA疫苗 stops COVID-19", "Звёзды и галактики"]
        nodes = [TextNode(text=text) for text in texts]
        retriever = KeyTokensHybridRetriever(
            encoder, nodes, dense=make_index(encoder, nodes) if dense else None, weights={"sparse": 3.0}
        )
        for query, text in zip(("量子", "蛋白质", "mRNA 疫苗", "галактики"), texts, strict=True):
            (first, *_) = retriever.retrieve(query)
            assert (first.node.get_content(), set(first.scores)) == (text, {"dense", "sparse"})

    def test_a_query_without_a_common_term_is_seen_to_be_dense_only(self, model):
        retriever = KeyTokensHybridRetriever(KeyTokenEncoder(model, query="lookup"), [TextNode(text="stars")])
        (hit,) = retriever.retrieve("蛋")
        assert set(hit.scores) == {"dense"}


class TestChanging:
    def test_both_sides_add_and_delete(self, over_index):
        store = over_index.vector_index.vector_store
        over_index.add_nodes([TextNode(text="Wolves hunt deer.", id_="wolf")])
        assert set(over_index.retrieve("wolves and deer")[0].scores) == {"dense", "sparse"}
        assert "wolf" in store.data.embedding_dict
        assert over_index.delete_nodes(["wolf", "unknown"]) == 1
        assert "wolf" not in ids(over_index.retrieve("wolves and deer"))
        assert "wolf" not in store.data.embedding_dict

    def test_both_sides_replace(self, over_index):
        over_index.add_nodes([TextNode(text="Wolves hunt deer.", id_="2")])
        (first, *_) = over_index.retrieve("wolves and deer")
        assert (first.node.node_id, set(first.scores)) == ("2", {"dense", "sparse"})
        assert len(over_index) == len(over_index.vector_index.vector_store.data.embedding_dict) == len(SENTENCES)

    def test_what_we_refuse_does_not_reach_the_store(self, over_index):
        before = dict(over_index.vector_index.vector_store.data.embedding_dict)
        for nodes, error in (
            ([TextNode(text="a", id_="x"), TextNode(text="b", id_="x")], "ids must be unique"),
            ([TextNode(text="a", id_="2")], "ids must be new"),
        ):
            with pytest.raises(ValueError, match=error):
                over_index.add_nodes(nodes, on_conflict="error")
        with pytest.raises(TypeError, match="got set for 'tags'"):
            over_index.add_nodes([TextNode(text="a", metadata={"tags": {1}})])
        assert over_index.vector_index.vector_store.data.embedding_dict == before


class TestFailingStore:
    @pytest.fixture
    def retriever(self, encoder):
        context = StorageContext.from_defaults(vector_store=FailingStore())
        index = VectorStoreIndex(make_nodes()[:4], storage_context=context, embed_model=KeyTokensEmbedding(encoder))
        return KeyTokensHybridRetriever.from_defaults(index=index, encoder=encoder)

    def test_a_failing_query_is_an_error_and_no_fall_back(self, retriever):
        with pytest.raises(ConnectionError, match="the store went away"):
            retriever.retrieve(QUERY)
        with pytest.raises(ConnectionError, match="the store went away"):
            asyncio.run(retriever.aretrieve(QUERY))

    def test_failing_midway_leaves_ours_as_it_was(self, retriever):
        with pytest.raises(ConnectionError, match="the store went away"):
            retriever.add_nodes(make_nodes()[4:])
        assert len(retriever) == 4
        retriever.add_nodes(make_nodes()[4:])
        assert len(retriever) == len(retriever.vector_index.vector_store.data.embedding_dict) == len(SENTENCES)

    def test_failing_at_deletion_leaves_ours_as_it_was(self, retriever):
        with pytest.raises(ConnectionError, match="the store went away"):
            retriever.delete_nodes(["0"])
        with pytest.raises(ConnectionError, match="the store went away"):
            asyncio.run(retriever.adelete_nodes(["0"]))
        assert len(retriever) == 4

    def test_a_batch_of_queries_is_no_fall_back_either(self, retriever):
        with pytest.raises(ConnectionError, match="the store went away"):
            retriever.retrieve_batch([QUERY, "the immune system"])


class TestOneEmptySide:
    """A hybrid search of one side alone is an error, and never taken for a hybrid one."""

    def test_a_store_that_lost_its_nodes(self, encoder, over_index, tmp_path):
        over_index.persist(tmp_path / "kept")
        lost = KeyTokensHybridRetriever.from_persist_dir(tmp_path / "kept", encoder, dense=make_index(encoder, []))
        with pytest.raises(ValueError, match="got no hit from it beside 8 in the index"):
            lost.retrieve(QUERY)
        with pytest.raises(ValueError, match="got no hit from it beside 8 in the index"):
            asyncio.run(lost.aretrieve(QUERY))

    @pytest.mark.parametrize("filters", [None, below(5)])
    def test_an_index_that_never_got_the_nodes(self, encoder, filters):
        retriever = KeyTokensHybridRetriever(encoder, dense=make_index(encoder))
        with pytest.raises(
            ValueError, match="the index must hold the documents of the vector store, got an empty one"
        ):
            retriever.retrieve(QUERY, filters=filters)

    def test_filters_may_leave_nothing_of_the_store(self, encoder):
        retriever = KeyTokensHybridRetriever(encoder, make_nodes(), dense=make_index(encoder, make_nodes()[:2]))
        above = MetadataFilters(filters=[MetadataFilter(key="number", value=2, operator=">")])
        hits = retriever.retrieve(QUERY, filters=above)
        assert [set(hit.scores) for hit in hits] == [{"sparse"}] * 2


class TestPersisting:
    def test_another_encoder_is_refused(self, encoder, own, model, tmp_path):
        own.persist(tmp_path / "kept")
        with pytest.raises(ValueError, match="fingerprint must be"):
            KeyTokensHybridRetriever.from_persist_dir(tmp_path / "kept", KeyTokenEncoder(model))

    def test_own_index(self, encoder, tmp_path):
        retriever = KeyTokensHybridRetriever(
            encoder, make_nodes(), fusion="rrf", weights={"sparse": 2.0}, depth=5, similarity_top_k=4
        )
        retriever.persist(tmp_path / "kept")
        opened = KeyTokensHybridRetriever.from_persist_dir(tmp_path / "kept", encoder)
        assert (opened.fusion, opened.weights, opened.depth) == ("rrf", {"sparse": 2.0}, 5)
        assert opened.retrieve(QUERY) == retriever.retrieve(QUERY)

    def test_beside_a_vector_store(self, encoder, over_index, tmp_path):
        over_index.persist(tmp_path / "kept")
        opened = KeyTokensHybridRetriever.from_persist_dir(tmp_path / "kept", encoder, dense=over_index.vector_index)
        assert opened.retrieve(QUERY) == over_index.retrieve(QUERY)

    def test_the_vector_store_must_be_given_again(self, encoder, over_index, own, tmp_path):
        over_index.persist(tmp_path / "beside")
        with pytest.raises(ValueError, match="dense must be given again"):
            KeyTokensHybridRetriever.from_persist_dir(tmp_path / "beside", encoder)
        own.persist(tmp_path / "own")
        with pytest.raises(ValueError, match="dense must not be given, as the vectors are in"):
            KeyTokensHybridRetriever.from_persist_dir(tmp_path / "own", encoder, dense=make_index(encoder))

    def test_what_another_class_kept(self, encoder, own, tmp_path):
        own.persist(tmp_path / "kept")
        with pytest.raises(ValueError, match=r"what KeyTokensRetriever\.persist kept, got .* of 'KeyTokensHybridRetr"):
            KeyTokensRetriever.from_persist_dir(tmp_path / "kept", encoder)


class TestValidation:
    def test_dense(self, encoder):
        with pytest.raises(TypeError, match="dense must be a VectorStoreIndex or a vector store, got str"):
            KeyTokensHybridRetriever(encoder, dense="qdrant")
        with pytest.raises(ValueError, match="dense must be a vector store that keeps the text, got Simple"):
            KeyTokensHybridRetriever(encoder, dense=SimpleVectorStore())  # it has no text

    def test_fusion(self, encoder):
        with pytest.raises(ValueError, match="fusion must be one of 'adaptive', 'score', 'rrf', got 'sum'"):
            KeyTokensHybridRetriever(encoder, fusion="sum")

    def test_weights(self, encoder):
        with pytest.raises(ValueError, match="weights must be one of 'dense', 'sparse', got 'bm25'"):
            KeyTokensHybridRetriever(encoder, weights={"bm25": 1.0})
        with pytest.raises(ValueError, match=r"weights\['sparse'\] must be finite and >= 0, got -1"):
            KeyTokensHybridRetriever(encoder, weights={"sparse": -1.0})
