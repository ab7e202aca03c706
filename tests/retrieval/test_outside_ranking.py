from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_keytokens import HybridIndex, SparseEmbeddings
from st_keytokens.index import Document, Hit
from st_keytokens.index.filters import is_passing, parse_filter
from st_keytokens.retrieval import OutsideHit, SearchSettings
from st_keytokens.retrieval.outside_ranking import fuse_outside, joined, similarities

OURS = {name: Document(name, f"text {name}", {"name": name}) for name in "abc"}


def keys(outside, found=(), filter=None):
    parsed = None if filter is None else parse_filter(filter)
    return list(joined(outside, [OURS[name] for name in found], OURS.get, parsed))


class TestJoining:
    def test_by_id_first(self):
        assert keys([OutsideHit("b", text="text a")], found="ab") == [("id", "b")]
        assert keys([OutsideHit("b", text="text a")], found="a") == [("id", "b")]

    def test_by_text_where_there_is_no_id_or_an_unknown_one(self):
        assert keys([OutsideHit(None, text="text a")], found="ab") == [("id", "a")]
        assert keys([OutsideHit("0f3c", text="text b")], found="ab") == [("id", "b")]

    def test_what_we_do_not_know(self):
        hits = [OutsideHit("0f3c", text="new"), OutsideHit(None, text="newer"), OutsideHit("77aa")]
        assert keys(hits, found="ab") == [("id", "0f3c"), ("text", "newer"), ("id", "77aa")]

    def test_the_first_of_several_counts(self):
        hits = joined([OutsideHit("a"), OutsideHit(None, "text a"), OutsideHit("a")], [OURS["a"]], OURS.get, None)
        assert [(key, hit.outside) for key, hit in hits.items()] == [(("id", "a"), 0)]

    def test_of_equal_texts_the_better_is_meant(self):
        twins = [Document("first", "same", {}), Document("second", "same", {})]
        (hit,) = joined([OutsideHit(None, "same")], twins, OURS.get, None).values()
        assert hit.id == "first"

    def test_our_fields_come_first(self):
        hits = joined([OutsideHit("a", "changed", 0.5, {"name": "x"})], [], OURS.get, None)
        (hit,) = hits.values()
        assert (hit.id, hit.text, hit.metadata) == ("a", "text a", {"name": "a"})
        (hit,) = joined([OutsideHit("z", "theirs", 0.5, {"name": "x"})], [], OURS.get, None).values()
        assert (hit.id, hit.text, hit.metadata) == ("z", "theirs", {"name": "x"})


class TestFilters:
    def test_our_metadata_count_where_we_know_the_document(self):
        hits = [OutsideHit("a", metadata={"name": "b"}), OutsideHit("b", metadata={"name": "a"})]
        assert keys(hits, filter={"name": "a"}) == [("id", "a")]

    def test_theirs_where_we_do_not(self):
        hits = [OutsideHit("x", metadata={"name": "a"}), OutsideHit("y", metadata={"name": "b"})]
        assert keys(hits, filter={"name": "a"}) == [("id", "x")]

    def test_of_what_is_unknown_nothing_passes(self):
        assert keys([OutsideHit("x"), OutsideHit(None, text="y")], filter={"name": {"$exists": False}}) == []
        assert keys([OutsideHit("x", metadata={})], filter={"name": {"$exists": False}}) == [("id", "x")]

    def test_ids_and_functions(self):
        hits = [OutsideHit("a"), OutsideHit("b"), OutsideHit("x", metadata={"name": "x"})]
        assert keys(hits, filter=["b", "x"]) == [("id", "b"), ("id", "x")]
        assert keys(hits, filter=lambda document: document.metadata["name"] > "a") == [("id", "b"), ("id", "x")]


VALUES = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.5, "", "a", "b"])
METADATA = st.dictionaries(st.sampled_from("xy"), VALUES | st.lists(VALUES, max_size=2))
COMPARED = st.sampled_from([-1, 0.5, "a"])
CONDITIONS = (
    VALUES
    | st.fixed_dictionaries({"$in": st.lists(VALUES, max_size=3)})
    | st.sampled_from(["$gt", "$gte", "$lt", "$lte"]).flatmap(lambda name: st.fixed_dictionaries({name: COMPARED}))
    | st.fixed_dictionaries({"$exists": st.booleans()})
    | st.fixed_dictionaries({"$ne": VALUES})
)
FILTERS = st.dictionaries(st.sampled_from("xy"), CONDITIONS, min_size=1, max_size=2)


@settings(max_examples=50)
@given(st.lists(METADATA, min_size=1, max_size=5), FILTERS, st.booleans())
def test_a_filter_means_what_it_means_in_the_index(metadata, filter, is_negated):
    filter = {"$not": filter} if is_negated else filter
    rows = SparseEmbeddings.from_dicts([{1: 1.0}] * len(metadata), vocab_size=3)
    with HybridIndex(vocab_size=3, kernel="scipy") as index:
        index.add([str(i) for i in range(len(metadata))], embeddings=rows, metadata=metadata)
        (hits,) = index.search(rows[:1], top_k=9, filter=filter)
        documents = index.get([str(i) for i in range(len(metadata))])
    assert {hit.id for hit in hits} == {
        document.id for document in documents if is_passing(parse_filter(filter), document)
    }


def test_errors_of_filters():
    with pytest.raises(ValueError, match="filter operators in a field must be among"):
        keys([OutsideHit("a")], filter={"name": {"$like": "a"}})


FOUND = [
    Hit("a", 6.0, 1, "text a", {"n": 1}, {"sparse": 6.0}),
    Hit("b", 2.0, 2, "text b", {"n": 2}, {"sparse": 2.0}),
]
OUTSIDE = [OutsideHit("c", "text c", 0.9), OutsideHit("a", "text a", 0.7), OutsideHit("x", "theirs", 0.4, {"n": 9})]


def fused(outside=OUTSIDE, **settings):
    documents = {"c": Document("c", "text c", {"n": 3})}
    chosen = SearchSettings(**settings)
    plan = chosen.plan(mode="hybrid", weights=chosen.weights, filter=None)
    return fuse_outside(outside, FOUND, documents.get, plan)


class TestByHand:
    def test_scores(self):
        hits = fused(fusion="score", weights={"dense": 2.0})
        assert [(hit.id, hit.rank) for hit in hits] == [("a", 1), ("c", 2), ("x", 3), ("b", 4)]
        assert [hit.score for hit in hits] == pytest.approx([2 * 0.6 + 1, 2.0, 0.0, 0.0])

    def test_a_sparse_side_by_its_lead(self):
        hits = fused(weights={"dense": 2.0})
        assert [hit.id for hit in hits] == ["a", "c", "x", "b"]
        assert [hit.score for hit in hits] == pytest.approx([2 * 0.6 + 1 / 0.3, 2.0, 0.0, 0.0])

    def test_reciprocal_ranks(self):
        hits = fused(fusion="rrf")
        assert [hit.id for hit in hits] == ["a", "c", "b", "x"]
        assert [hit.score for hit in hits] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])

    def test_components_and_positions(self):
        hits = {hit.id: (hit.scores, hit.outside) for hit in fused()}
        assert hits == {
            "a": ({"dense": 0.7, "sparse": 6.0}, 1),
            "b": ({"sparse": 2.0}, None),
            "c": ({"dense": 0.9}, 0),
            "x": ({"dense": 0.4}, 2),
        }

    def test_texts_and_metadata(self):
        hits = {hit.id: (hit.text, hit.metadata) for hit in fused()}
        assert hits == {
            "a": ("text a", {"n": 1}),
            "b": ("text b", {"n": 2}),
            "c": ("text c", {"n": 3}),
            "x": ("theirs", {"n": 9}),
        }

    def test_top_k(self):
        assert [hit.id for hit in fused(top_k=1)] == ["a"]

    def test_an_empty_side(self):
        assert [hit.id for hit in fused([])] == ["a", "b"]


class TestDistances:
    def test_rising_scores_are_not_turned_round(self):
        hits = fused(
            [OutsideHit("c", score=0.1), OutsideHit("x", score=0.3), OutsideHit("b", score=0.5)], fusion="score"
        )
        assert [(hit.id, hit.score) for hit in hits] == [("c", 1.0), ("a", 1.0), ("x", 0.5), ("b", 0.0)]
        assert {hit.id: hit.scores.get("dense") for hit in hits} == {"a": None, "c": 0.1, "x": 0.3, "b": 0.5}

    @pytest.mark.parametrize("scores", [[0.9, 0.5], [0.5, 0.5], [0.5], [], [0.4, 0.9, 0.1]])
    def test_others_stay(self, scores):
        assert similarities([OutsideHit("a", score=score) for score in scores], fusion="score") == scores


class TestMissingScores:
    def test_ranks_need_none(self):
        hits = fused([OutsideHit("c"), OutsideHit("a")], fusion="rrf")
        assert [(hit.id, hit.scores, hit.outside) for hit in hits] == [
            ("a", {"sparse": 6.0}, 1),
            ("c", {}, 0),
            ("b", {"sparse": 2.0}, None),
        ]

    @pytest.mark.parametrize("fusion", ["score", "adaptive"])
    def test_scores_are_not_made_up(self, fusion):
        with pytest.raises(ValueError, match=f"outside hits must have scores for fusion='{fusion}', got None"):
            fused([OutsideHit("c", score=0.5), OutsideHit("a")], fusion=fusion)
