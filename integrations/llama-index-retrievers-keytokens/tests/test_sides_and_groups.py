"""More retrievers as sides of a hybrid, and one hit for each source document."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

pytest.importorskip("llama_index.core")

from conftest import SENTENCES
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensHybridRetriever, KeyTokensRetriever

QUERY = "how proteins fold in the light of distant stars"


def make_nodes():
    return [
        TextNode(
            text=text,
            id_=str(n),
            metadata={"number": n},
            excluded_embed_metadata_keys=["number"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"source {n // 3}")},
        )
        for n, text in enumerate(SENTENCES)
    ]


class Listed(BaseRetriever):
    """Finds the same nodes for every query, and remembers what it was asked."""

    def __init__(self, hits, error=None):
        self.hits, self.error, self.asked = hits, error, []
        super().__init__()

    def _retrieve(self, query_bundle):
        self.asked.append(query_bundle)
        if self.error:
            raise self.error
        return [NodeWithScore(node=node, score=score) for node, score in self.hits]


def listed(*numbers, scores=None):
    nodes = make_nodes()
    return Listed([(nodes[n], scores and scores[i]) for i, n in enumerate(numbers)])


@pytest.fixture(params=["own index", "other index"])
def make(request, encoder):
    def make(**settings):
        if request.param == "other index":
            settings["dense"] = VectorStoreIndex(make_nodes(), embed_model=KeyTokensEmbedding(encoder))
        return KeyTokensHybridRetriever(encoder, make_nodes(), **{"similarity_top_k": 8, **settings})

    return make


def ids(hits):
    return [hit.node.node_id for hit in hits]


class TestSides:
    def test_reciprocal_ranks_of_four_sides_by_hand(self, make):
        sides = {"words": listed(7, 3), "graph": listed(2, scores=[0.1])}
        weights = {"dense": 1.0, "sparse": 2.0, "words": 3.0, "graph": 0.5}
        hybrid = make(retrievers=sides, weights=weights, fusion="rrf")
        plain = make(fusion="rrf").retrieve(QUERY)
        dense = ids(sorted(plain, key=lambda hit: -hit.scores["dense"]))
        sparse = ids(sorted((hit for hit in plain if "sparse" in hit.scores), key=lambda hit: -hit.scores["sparse"]))
        expected = dict.fromkeys(map(str, range(8)), 0.0)
        for weight, ranking in ((1, dense), (2, sparse), (3, ["7", "3"]), (0.5, ["2"])):
            for rank, id in enumerate(ranking, 1):
                expected[id] += weight / (60 + rank)
        found = hybrid.retrieve(QUERY)
        assert {hit.node.node_id: hit.score for hit in found} == pytest.approx(expected)
        assert next(hit for hit in found if hit.node.node_id == "2").scores["graph"] == 0.1
        assert ids(asyncio.run(hybrid.aretrieve(QUERY))) == ids(found)
        assert ids(hybrid.retrieve_batch([QUERY, "stars"])[0]) == ids(found)
        assert ids(asyncio.run(hybrid.aretrieve_batch([QUERY, "stars"]))[0]) == ids(found)

    @pytest.mark.parametrize(("scores", "second"), [(None, 0.5), ([9.0, 8.0, 1.0], 0.875)])
    def test_scores_or_ranks(self, make, scores, second):
        sides = {"words": listed(6, 4, 1, scores=scores)}
        hybrid = make(retrievers=sides, weights={"dense": 0.0, "sparse": 0.0}, fusion="score", similarity_top_k=2)
        assert [(hit.node.node_id, hit.score) for hit in hybrid.retrieve(QUERY)] == [("6", 1.0), ("4", second)]

    def test_a_node_of_another_alone_comes_back_as_it_is(self, make):
        other = TextNode(text="A protein", id_="elsewhere", metadata={"number": 99})
        hybrid = make(retrievers={"graph": Listed([(other, 1.0)])}, weights={"graph": 9.0}, similarity_top_k=1)
        (hit,) = hybrid.retrieve(QUERY)
        assert hit.node == other and hit.scores == {"graph": 1.0}

    def test_what_is_filtered_out_comes_back_from_none(self, make):
        other = TextNode(text="A protein", id_="elsewhere", metadata={"number": 99})
        words = listed(7, 2)
        words.hits.append((other, 1.0))
        hybrid = make(retrievers={"words": words})
        filters = MetadataFilters(filters=[MetadataFilter(key="number", value=4, operator="<")])
        assert set(ids(hybrid.retrieve(QUERY, filters=filters))) == set("0123")
        assert set(ids(asyncio.run(hybrid.aretrieve(QUERY, filters=filters)))) == set("0123")
        assert set(ids(hybrid.with_filters(filters).retrieve(QUERY))) == set("0123")

    def test_every_side_has_to_answer(self, make):
        hybrid = make(retrievers={"words": Listed([], ConnectionError("no answer"))})
        with pytest.raises(ConnectionError, match="no answer"):
            hybrid.retrieve(QUERY)
        with pytest.raises(ConnectionError, match="no answer"):
            asyncio.run(hybrid.aretrieve(QUERY))
        assert hybrid.retrieve("  ") == []

    def test_another_models_retriever_embeds_its_own_query(self, make):
        other = VectorStoreIndex(make_nodes(), embed_model=MockEmbedding(embed_dim=5)).as_retriever(similarity_top_k=8)
        hybrid = make(retrievers={"other": other})
        for found in (hybrid.retrieve(QUERY), *hybrid.retrieve_batch([QUERY, "stars"])):
            assert len(found) == 8 and all("other" in hit.scores for hit in found)

    def test_a_batch_is_one_batch(self, model, calibration, passes):
        from st_keytokens import KeyTokenEncoder

        encoder = KeyTokenEncoder(model, calibration=calibration)
        hybrid = KeyTokensHybridRetriever(encoder, make_nodes(), retrievers={"words": listed(1)})
        passes.take()
        hybrid.retrieve_batch(["one query", "another query", "a third"])
        assert passes.take() == 3

    def test_they_are_given_again(self, encoder, tmp_path):
        sides = {"words": listed(7, 3)}
        hybrid = KeyTokensHybridRetriever(encoder, make_nodes(), retrievers=sides, weights={"words": 2.0})
        hybrid.persist(tmp_path / "kept")
        with pytest.raises(ValueError, match=r"retrievers must be given again for .* the names \['words'\], got"):
            KeyTokensHybridRetriever.from_persist_dir(tmp_path / "kept", encoder)
        opened = KeyTokensHybridRetriever.from_persist_dir(tmp_path / "kept", encoder, retrievers=sides)
        expected = ids(hybrid.retrieve(QUERY))
        for other in (opened, copy.deepcopy(hybrid), pickle.loads(pickle.dumps(hybrid))):
            assert ids(other.retrieve(QUERY)) == expected

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"retrievers": [Listed([])]}, TypeError, "retrievers must be a dictionary of .* by name, got list"),
            ({"retrievers": {"sparse": Listed([])}}, ValueError, "must have names other than 'dense' and 'sparse'"),
            ({"retrievers": {"words": "bm25"}}, TypeError, "retrievers must be retrievers, got str for 'words'"),
            ({"weights": {"bm25": 1.0}}, ValueError, "weights must be one of 'dense', 'sparse', got 'bm25'"),
            ({"group_by": ["a"]}, TypeError, r"group_by must be a key of the metadata, got list \['a'\]"),
        ],
    )
    def test_wrong_ones(self, encoder, settings, error, message):
        with pytest.raises(error, match=message):
            KeyTokensHybridRetriever(encoder, make_nodes(), **settings)


class TestGroups:
    @pytest.mark.parametrize("top_k", [1, 3, 8])
    def test_one_hit_for_each_source_document(self, make, top_k):
        everything = make().retrieve(QUERY)
        best = list({hit.node.ref_doc_id: hit.node.node_id for hit in reversed(everything)}.values())
        hybrid = make(group_by="ref_doc_id", similarity_top_k=top_k)
        found = hybrid.retrieve(QUERY)
        assert len(found) == min(3, top_k) and set(ids(found)) <= set(best)
        assert found[0].node.node_id == everything[0].node.node_id
        assert ids(asyncio.run(hybrid.aretrieve(QUERY))) == ids(hybrid.retrieve_batch([QUERY])[0]) == ids(found)

    def test_sparse_and_kept(self, encoder, tmp_path):
        retriever = KeyTokensRetriever(
            encoder, make_nodes(), path=tmp_path / "r", group_by="ref_doc_id", similarity_top_k=8
        )
        found = retriever.retrieve("the light of stars in a cell for every neural network")
        assert len({hit.node.ref_doc_id for hit in found}) == len(found) > 1
        retriever.close()
        assert KeyTokensRetriever.from_persist_dir(tmp_path / "r", encoder).group_by == "ref_doc_id"


@pytest.mark.parametrize("query", [["stars"], None, 5])
def test_what_is_no_query_is_refused(encoder, query):
    with pytest.raises(TypeError, match=r"query must be a string or a QueryBundle, got .* go into retrieve_batch"):
        KeyTokensRetriever(encoder, make_nodes()).retrieve(query)
