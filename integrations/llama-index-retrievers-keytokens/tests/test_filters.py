from __future__ import annotations

import datetime

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from st_keytokens import HybridIndex, SparseEmbeddings
from st_keytokens.index import Document

from llama_index.retrievers.keytokens.filters import filter_keys, index_filter, joined_filters, metadata_test

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
LOOKED_INTO = (*METADATA, {"a": {"k": 1, "1": None}}, {"a": [True, None, ["star"]]}, {"a": [False, 2.5, 'q"', "$q"]})
COMPARISONS = ("EQ", "NE", "GT", "GTE", "LT", "LTE")
SINGLE = (1, 2.5, "1", "star", "")
LISTS = ([1, 2], ["star", "1"], [2.5])


def leaf(operator, value, key="a"):
    return MetadataFilter(key=key, value=value, operator=FilterOperator[operator])


LEAVES = [leaf(operator, value) for operator in COMPARISONS for value in SINGLE]
INSIDE = [leaf("CONTAINS", value) for value in (*SINGLE, 0, "ta", "k", 'q"', "$q")]
INSIDE += [
    leaf(operator, value) for operator in ("ANY", "ALL") for value in (*LISTS, ["star", "gas"], ["k", "ta"], [])
]
LEAVES += [leaf(operator, value) for operator in ("IN", "NIN") for value in LISTS]


@pytest.fixture(scope="module")
def index():
    yield from opened(METADATA)


@pytest.fixture(scope="module")
def looked_into():
    yield from opened(LOOKED_INTO)


def opened(metadata):
    rows = SparseEmbeddings.from_dicts([{1: 1.0}] * len(metadata), vocab_size=3)
    with HybridIndex(vocab_size=3, kernel="scipy") as index:
        index.add([str(i) for i in range(len(metadata))], embeddings=rows, metadata=metadata)
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

    @pytest.mark.parametrize("part", INSIDE, ids=lambda part: f"{part.operator.name}-{part.value}")
    def test_lists_strings_and_keys(self, looked_into, part):
        filters = MetadataFilters(filters=[part])
        expected = [i for i, metadata in enumerate(LOOKED_INTO) if metadata_test(filters)(metadata)]
        assert found(looked_into, filters) == expected
        inverse = MetadataFilters(filters=[part], condition="not")
        assert found(looked_into, inverse) == sorted(set(range(len(LOOKED_INTO))).difference(expected))
        is_looked_up = not callable(index_filter(filters))
        assert is_looked_up == (part.value not in ('q"', "$q", 'k"'))

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
        (leaf("EQ", 1), [1, 5]),  # true is 1, as in LlamaIndex's own store
        (leaf("NE", 1), [0, 2, 3, 4, 6, 7, 8, 9, 10, 11]),
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
    assert found(index, either) == [1, 4, 5]
    neither = MetadataFilters(filters=[either, leaf("IS_EMPTY", None)], condition="not")
    assert found(index, neither) == [2, 3, 7, 8, 11]


class TestNothingToFilterBy:
    def test_none(self):
        assert index_filter(None) is None

    def test_empty_filters_let_all_through(self, index):
        empty = MetadataFilters(filters=[])
        assert index_filter(empty) is None
        nested = MetadataFilters(filters=[leaf("EQ", 1), MetadataFilters(filters=[])])
        assert found(index, nested) == [1, 5]


class TestAsTheHostCompares:
    """What LlamaIndex's own store finds, ours finds."""

    @pytest.mark.parametrize("name", ["EQ", "NE", "GT", "GTE", "LT", "LTE"])
    @pytest.mark.parametrize("value", [0, 1, 1.0, 0.5, 2])
    @pytest.mark.parametrize("truth", [True, False])
    def test_booleans(self, name, value, truth):
        own = build_metadata_filter_fn(lambda _: {"a": truth}, MetadataFilters(filters=[leaf(name, value)]))
        filters = MetadataFilters(filters=[leaf(name, value)])
        assert metadata_test(filters)({"a": truth}) == own("")
        rows = SparseEmbeddings.from_dicts([{1: 1.0}], vocab_size=3)
        with HybridIndex(vocab_size=3, kernel="scipy") as index:
            index.add(["0"], embeddings=rows, metadata=[{"a": truth}])
            assert found(index, filters) == ([0] if own("") else [])

    @pytest.mark.parametrize("name", ["CONTAINS", "ANY", "ALL"])
    @pytest.mark.parametrize("held", [["x", "y"], ["y"], [], "x and y", {"x": 1, "y": 2}, [1, 2]])
    @pytest.mark.parametrize("value", ["x", "z", 1])
    def test_lists(self, name, held, value):
        if held == "x and y" and value == 1:
            return  # the host raises
        filters = MetadataFilters(filters=[leaf(name, value if name == "CONTAINS" else [value])])
        own = build_metadata_filter_fn(lambda _: {"a": held}, filters)
        assert metadata_test(filters)({"a": held}) == own("")

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("EQ", "2024-05-01T10:00:00+02:00", True),
            ("EQ", "2024-05-01T08:00:00Z", True),
            ("NE", "2024-05-01T08:00:00+00:00", False),
            ("GT", "2024-05-01T09:59:00+02:00", True),
            ("GT", "2024-05-01T08:30:00+00:00", False),
            ("LT", "2024-05-02", True),
            ("IN", ["2024-05-01T03:00:00-05:00"], True),
            ("GT", "nothing like a date", False),
            ("GT", 5, False),
        ],
    )
    def test_dates_are_instants(self, name, value, expected):
        noon = datetime.datetime(2024, 5, 1, 10, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
        filters = MetadataFilters(filters=[leaf(name, value)])
        assert metadata_test(filters)({"a": noon}) is expected
        if callable(index_filter(filters)):
            assert index_filter(filters)(Document("", None, {"a": noon})) is expected
        stored = noon.isoformat()  # as a store keeps it that knows no dates
        assert metadata_test(filters, reads_dates=True)({"a": stored}) is expected

    def test_days_and_lists_of_dates(self):
        day = datetime.date(2024, 5, 1)
        assert metadata_test(MetadataFilters(filters=[leaf("EQ", "2024-05-01")]))({"a": day})
        assert metadata_test(MetadataFilters(filters=[leaf("CONTAINS", "2024-05-01")]))({"a": [day]})
        assert not metadata_test(MetadataFilters(filters=[leaf("GT", "2024-05-01")]))({"a": day})

    def test_nested_keys(self):
        filters = MetadataFilters(filters=[leaf("EQ", "Ada", "author.name")])
        passes = index_filter(filters)
        assert passes(Document("", None, {"author": {"name": "Ada"}}))
        assert passes(Document("", None, {"author.name": "Ada", "author": {"name": "Bob"}}))
        assert not passes(Document("", None, {"author": {"name": "Bob"}}))
        assert not passes(Document("", None, {"author": "Ada"}))

    def test_keys(self):
        inner = MetadataFilters(filters=[leaf("EQ", 1, "b"), leaf("EQ", 1, "a")])
        assert filter_keys(MetadataFilters(filters=[leaf("GT", 0), inner])) == ["a", "b"]
        assert filter_keys(None) == []


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
