from __future__ import annotations

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from st_keytokens import HybridIndex, SparseEmbeddings

from llama_index.retrievers.keytokens.filters import index_filter, joined_filters, metadata_test

METADATA = (
    {},
    {"a": 1},
    {"a": 2.5},
    {"a": "1"},
    {"a": "star"},
    {"a": True},
    {"a": None},
    {"a": ["star", "gas"]},
    {"a": [1, 2]},
    {"a": []},
    {"a": "", "b": 7},
    {"a": 3, "b": "Dust and Gas"},
)
COMPARISONS = ("EQ", "NE", "GT", "GTE", "LT", "LTE")
SINGLE = (1, 2.5, "1", "star", "")
LISTS = ([1, 2], ["star", "1"], [2.5])


def leaf(operator, value, key="a"):
    return MetadataFilter(key=key, value=value, operator=FilterOperator[operator])


LEAVES = [leaf(operator, value) for operator in COMPARISONS for value in SINGLE]
LEAVES += [leaf(operator, value) for operator in ("IN", "NIN") for value in LISTS]


@pytest.fixture(scope="module")
def index():
    rows = SparseEmbeddings.from_dicts([{1: 1.0}] * len(METADATA), vocab_size=3)
    with HybridIndex(vocab_size=3, kernel="scipy") as index:
        index.add([str(i) for i in range(len(METADATA))], embeddings=rows, metadata=METADATA)
        yield index


def found(index, filters):
    query = SparseEmbeddings.from_dicts([{1: 1.0}], vocab_size=3)
    (hits,) = index.search(query, top_k=99, filter=index_filter(filters))
    return sorted(int(hit.id) for hit in hits)


class TestOneLanguage:
    """A filter means the same in the database and in a function, which other operators need."""

    @pytest.mark.parametrize("part", LEAVES, ids=lambda part: f"{part.operator.name}-{part.value}")
    def test_comparisons(self, index, part):
        filters = MetadataFilters(filters=[part])
        holds = metadata_test(filters)
        assert found(index, filters) == [i for i, metadata in enumerate(METADATA) if holds(metadata)]

    @pytest.mark.parametrize("condition", FilterCondition)
    def test_nested_conditions(self, index, condition):
        inner = MetadataFilters(filters=[leaf("GT", 1), leaf("EQ", 7, "b")], condition=condition)
        for outer in FilterCondition:
            filters = MetadataFilters(filters=[inner, leaf("NE", "star")], condition=outer)
            holds = metadata_test(filters)
            assert found(index, filters) == [i for i, metadata in enumerate(METADATA) if holds(metadata)]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (leaf("EQ", 1), [1]),
        (leaf("NE", 1), [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (leaf("GTE", 2.5), [2, 11]),
        (leaf("LT", "t"), [3, 4, 10]),
        (leaf("IN", ["star", "1"]), [3, 4]),
        (leaf("NIN", ["star", "1"]), [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]),
        (leaf("ANY", ["gas", "dust"]), [7]),
        (leaf("ALL", ["gas", "star"]), [7]),
        (leaf("ALL", ["gas", "dust"]), []),
        (leaf("CONTAINS", "gas"), [7]),
        (leaf("CONTAINS", 2), [8]),
        (leaf("CONTAINS", "ta"), [4]),
        (leaf("TEXT_MATCH", "Gas", "b"), [11]),
        (leaf("TEXT_MATCH", "gas", "b"), []),
        (leaf("TEXT_MATCH_INSENSITIVE", "gas", "b"), [11]),
        (leaf("IS_EMPTY", None), [0, 6, 9, 10]),
        (leaf("EQ", 1, "missing"), []),
        (leaf("NE", 1, "missing"), list(range(12))),
    ],
    ids=lambda value: f"{value.operator.name}-{value.key}-{value.value}" if isinstance(value, MetadataFilter) else "",
)
def test_operators(index, part, expected):
    assert found(index, MetadataFilters(filters=[part])) == expected


def test_conditions_by_hand(index):
    either = MetadataFilters(filters=[leaf("EQ", 1), leaf("EQ", "star")], condition="or")
    assert found(index, either) == [1, 4]
    neither = MetadataFilters(filters=[either, leaf("IS_EMPTY", None)], condition="not")
    assert found(index, neither) == [2, 3, 5, 7, 8, 11]


class TestNothingToFilterBy:
    def test_none(self):
        assert index_filter(None) is None

    def test_empty_filters_let_all_through(self, index):
        empty = MetadataFilters(filters=[])
        assert index_filter(empty) is None
        nested = MetadataFilters(filters=[leaf("EQ", 1), MetadataFilters(filters=[])])
        assert found(index, nested) == [1]


def test_several_filters_hold_together(index):
    query = SparseEmbeddings.from_dicts([{1: 1.0}], vocab_size=3)
    one, two = MetadataFilters(filters=[leaf("GT", 1)]), MetadataFilters(filters=[leaf("LT", 3)])
    both = index_filter(joined_filters(one, None, two))
    assert [hit.id for hit in index.search(query, filter=both)[0]] == ["2"]


class TestValidation:
    def test_type(self):
        with pytest.raises(TypeError, match="filters must be MetadataFilters, got dict"):
            index_filter({"a": 1})

    @pytest.mark.parametrize("operator", ["IN", "NIN", "ANY", "ALL"])
    def test_operators_of_lists(self, operator):
        with pytest.raises(ValueError, match=f"filter {operator} on 'a' must have a list, got 1"):
            index_filter(MetadataFilters(filters=[leaf(operator, 1)]))

    @pytest.mark.parametrize("operator", ["EQ", "GT", "CONTAINS"])
    def test_operators_of_single_values(self, operator):
        with pytest.raises(ValueError, match=f"filter {operator} on 'a' must have a single value"):
            index_filter(MetadataFilters(filters=[leaf(operator, [1])]))

    @pytest.mark.parametrize("operator", ["TEXT_MATCH", "TEXT_MATCH_INSENSITIVE"])
    def test_text(self, operator):
        with pytest.raises(ValueError, match=f"filter {operator} on 'a' must have a string, got 1"):
            index_filter(MetadataFilters(filters=[leaf(operator, 1)]))
