from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_keytokens import HybridIndex, SparseEmbeddings
from st_keytokens.index import Document
from st_keytokens.index.filters import is_passing, parse_filter
from st_keytokens.retrieval import OutsideHit
from st_keytokens.retrieval.outside_ranking import joined

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


@settings(max_examples=50, deadline=None)
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
