from __future__ import annotations

import math
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_keytokens.index import Document, HybridIndex
from st_keytokens.index.documents import packed_metadata
from st_keytokens.index.filters import FilterMasks, filter_operands, filter_sql, is_passing, parse_filter
from st_keytokens.index.search import SearchPlan
from st_keytokens.sparse_embeddings import SparseEmbeddings

METADATA = [
    {"year": 1999, "topic": "cs", "draft": True, "score": 0.5},
    {"year": 2005, "topic": "math", "draft": False, "tags": ["a"]},
    {"year": 2020.5, "topic": "bio", "note": None},
    {"year": "2020", "topic": "Ünïcode 😀", "a.b": 1, "a b": "x"},
    {"topic": "", "draft": 1, "nested": {"year": 1999}},
    {},
    None,
]


ALL_IDS = [str(row) for row in range(len(METADATA))]


def make(metadata, **options):
    index = HybridIndex(**options)
    rows = SparseEmbeddings.from_dicts([{0: 1.0}] * len(metadata), 3)
    index.add(embeddings=rows, metadata=metadata, texts=[f"text {row}" for row in range(len(metadata))])
    return index


def found(index, filter):
    (hits,) = index.search(SparseEmbeddings.from_dicts([{0: 1.0}], 3), filter=filter, top_k=100)
    return [int(hit.id) for hit in hits]


@pytest.fixture(scope="module")
def index():
    with make(METADATA) as index:
        yield index


class TestMeaning:
    @pytest.mark.parametrize(
        ("filter", "expected"),
        [
            ({}, [0, 1, 2, 3, 4, 5, 6]),
            ({"year": 1999}, [0]),
            ({"year": {"$eq": 1999.0}}, [0]),
            ({"year": "2020"}, [3]),
            ({"topic": "Ünïcode 😀"}, [3]),
            ({"topic": ""}, [4]),
            ({"topic": "CS"}, []),
            ({"draft": True}, [0]),
            ({"draft": False}, [1]),
            ({"draft": 1}, [4]),
            ({"note": None}, [2]),
            ({"missing": None}, []),
            ({"a.b": 1}, [3]),
            ({"a b": "x"}, [3]),
            ({"nested.year": 1999}, []),
            ({"year": {"$ne": 1999}}, [1, 2, 3, 4, 5, 6]),
            ({"year": {"$gt": 1999}}, [1, 2]),
            ({"year": {"$gte": 1999}}, [0, 1, 2]),
            ({"year": {"$lt": 2005}}, [0]),
            ({"year": {"$lte": 2020.5, "$gt": 2000}}, [1, 2]),
            ({"year": {"$gte": "2"}}, [3]),
            ({"topic": {"$gt": "cs"}}, [1, 3]),
            ({"draft": {"$gte": 0}}, [4]),
            ({"year": {"$in": [1999, "2020", None]}}, [0, 3]),
            ({"note": {"$in": [None, "x"]}}, [2]),
            ({"draft": {"$in": [True, 1]}}, [0, 4]),
            ({"year": {"$in": []}}, []),
            ({"year": {"$nin": [1999, 2005]}}, [2, 3, 4, 5, 6]),
            ({"year": {"$nin": []}}, [0, 1, 2, 3, 4, 5, 6]),
            ({"year": {"$exists": True}}, [0, 1, 2, 3]),
            ({"note": {"$exists": True}}, [2]),
            ({"year": {"$exists": False}}, [4, 5, 6]),
            ({"topic": {"$in": ["cs", "math"]}, "year": {"$lt": 2000}}, [0]),
            ({"$or": [{"topic": "bio"}, {"draft": True}]}, [0, 2]),
            ({"$and": [{"year": {"$gte": 1999}}, {"$or": [{"topic": "bio"}, {"topic": "cs"}]}]}, [0, 2]),
            ({"$not": {"year": {"$gte": 1999}}}, [3, 4, 5, 6]),
            ({"$not": {"$not": {"topic": "cs"}}}, [0]),
            ({"tags": {"$exists": True}}, [1]),
            ({"year": {"$in": list(range(100_000))}}, [0, 1]),
        ],
    )
    def test_dictionary(self, index, filter, expected):
        assert found(index, filter) == expected
        parsed = parse_filter(filter)
        assert [int(document.id) for document in index.get(ALL_IDS) if is_passing(parsed, document)] == expected

    @pytest.mark.parametrize("whole", [2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**70 + 1, 10**310])
    def test_one_document_has_the_numbers_that_sql_has(self, whole):
        filters = [
            {"n": whole},
            {"n": float(2**53)},
            {"n": {"$gt": 2**53}},
            {"n": {"$lt": 2.0**63}},
            {"n": {"$gt": 1e308}},
        ]
        with make([{"n": whole}]) as index:
            (document,) = index.get(["0"])
            for filter in filters if whole < 10**300 else filters[1:]:
                assert is_passing(parse_filter(filter), document) == (found(index, filter) == [0])

    def test_function(self, index):
        assert found(index, lambda document: document.metadata.get("draft") == 1) == [0, 4]
        assert found(index, lambda document: document.text == "text 5" or document.id == "6") == [5, 6]

    @pytest.mark.parametrize("kind", [list, set, tuple, frozenset])
    def test_ids(self, index, kind):
        assert found(index, kind(["5", "0", "unknown"])) == [0, 5]
        assert found(index, kind([])) == []

    def test_deleted_documents_never_match(self):
        with make(METADATA) as index:
            index.delete(["0", "5"])
            assert found(index, {}) == [1, 2, 3, 4, 6]
            assert found(index, ["0", "1"]) == [1]
            assert found(index, lambda document: True) == [1, 2, 3, 4, 6]

    def test_input_is_not_modified(self, index):
        filter = {"$or": [{"year": {"$in": [1999]}}, {"topic": "bio"}]}
        found(index, filter)
        assert filter == {"$or": [{"year": {"$in": [1999]}}, {"topic": "bio"}]}


LISTED = [
    {"tags": ["star", "gas"], "n": [1, 2.5, None], "author": {"name": "Ada", "of": {"x": [7]}}},
    {"tags": "starlight", "n": 1, "author": {"name": "Bob"}},
    {"tags": [], "n": [True, "1"], "author": "Ada"},
    {"tags": [["star"], {"a": "star"}], "n": {"a": 1}, "author": [{"name": "Ada"}]},
    {"tags": {"star": "star"}, "n": [2**70, "é😀"]},
    {},
]


class TestListsAndDictionaries:
    @pytest.mark.parametrize(
        ("filter", "expected"),
        [
            ({"tags": {"$contains": "star"}}, [0, 1]),
            ({"tags": {"$contains": "sta"}}, [1]),
            ({"tags": {"$contains": ""}}, [1]),
            ({"tags": {"$any": ["gas", "light"]}}, [0, 1]),
            ({"tags": {"$any": []}}, []),
            ({"tags": {"$all": ["gas", "star"]}}, [0]),
            ({"tags": {"$all": ["light", "star"]}}, [1]),
            ({"tags": {"$all": ["gas", "dust"]}}, []),
            ({"tags": {"$all": []}}, [0, 1, 2, 3, 4]),
            ({"$not": {"tags": {"$contains": "star"}}}, [2, 3, 4, 5]),
            ({"n": {"$contains": 1}}, [0]),
            ({"n": {"$contains": True}}, [2]),
            ({"n": {"$contains": "1"}}, [2]),
            ({"n": {"$contains": 1.0}}, [0]),
            ({"n": {"$contains": None}}, [0]),
            ({"n": {"$any": [2.5, "é😀"]}}, [0, 4]),
            ({"n": {"$contains": 2.0**70}}, [4]),
            ({"tags": {"$in": ["star"]}}, []),
            ({"author": {"$within": {"name": "Ada"}}}, [0]),
            ({"author": {"$within": {"name": {"$ne": "Ada"}}}}, [1]),
            ({"author": {"$within": {"of": {"$within": {"x": {"$contains": 7}}}}}}, [0]),
            ({"author": {"$within": {"$or": [{"name": "Bob"}, {"of": {"$exists": True}}]}}}, [0, 1]),
            ({"author": {"$within": {}}}, [0, 1]),
            ({"author": {"$within": {"$not": {}}}}, []),
        ],
    )
    def test_meaning(self, filter, expected):
        with make(LISTED) as index:
            assert found(index, filter) == expected
            parsed = parse_filter(filter)
            ids = [str(row) for row in range(len(LISTED))]
            assert [int(document.id) for document in index.get(ids) if is_passing(parsed, document)] == expected
            assert found(index, parsed) == expected  # a tree is a filter as well

    def test_what_is_asked_for(self):
        filter = {"a": {"$contains": "x"}, "b": {"$all": [1]}, "c": {"$within": {"d": 1}}}
        assert filter_operands(parse_filter(filter)) == {"a": {"list", "string"}, "b": {"list"}, "c": {"dictionary"}}

    @pytest.mark.parametrize(
        ("filter", "name"),
        [
            ({"$not": {"tags": {"$any": ["a"]}}}, r"\$contains, \$any or \$all"),
            ({"$or": [{"a": 1}, {"b": {"$within": {"c": 1}}}]}, r"\$within"),
        ],
    )
    def test_engines_refuse_them(self, filter, name):
        with pytest.raises(ValueError, match=f"filter must compare values alone in an engine, got {name}"):
            SearchPlan.checked(filter=filter).condition  # noqa: B018


class TestKeptMasks:
    def test_a_change_is_seen_by_a_filter_that_was_asked_before(self):
        with make(METADATA) as index:
            assert found(index, {"year": {"$gte": 1999}}) == [0, 1, 2]
            row = SparseEmbeddings.from_dicts([{0: 1.0}], 3)
            index.add(["7"], embeddings=row, metadata=[{"year": 2001}])
            assert found(index, {"year": {"$gte": 1999}}) == [0, 1, 2, 7]
            index.delete(["1"])
            assert found(index, {"year": {"$gte": 1999}}) == [0, 2, 7]
            index.add(["0"], embeddings=row, metadata=[{"year": 1}], on_conflict="replace")
            assert found(index, {"year": {"$gte": 1999}}) == [2, 7]
            index.compact()
            assert found(index, {"year": {"$gte": 1999}}) == [2, 7]

    def test_a_change_by_another_is_seen(self, tmp_path):
        with make(METADATA, path=tmp_path / "index") as index, HybridIndex(tmp_path / "index") as other:
            assert found(index, {"topic": "cs"}) == [0]
            other.delete(["0"])
            assert found(index, {"topic": "cs"}) == []

    def test_filters_that_differ_in_type_alone(self, index):
        filters = [{"draft": 1}, {"draft": True}, {"draft": "1"}, {"draft": {"$ne": 1}}, {"draft": 1.0}]
        expected = [[4], [0], [], [0, 1, 2, 3, 5, 6], [4]]
        for _ in range(2):
            assert [found(index, filter) for filter in filters] == expected

    @pytest.mark.parametrize(("most_bytes", "is_kept"), [(1 << 20, True), (0, False)])
    def test_what_is_kept_is_bounded(self, index, most_bytes, is_kept):
        masks = FilterMasks(index._store, most_bytes=most_bytes)
        with index._store.read() as connection:
            snapshot = index._current(connection)
            first = masks.mask(connection, snapshot, parse_filter({"year": 1999}))
            assert masks.mask(connection, snapshot, parse_filter({"year": 1999})) is first
            assert masks.mask(connection, snapshot, parse_filter({"topic": "bio"}))[:7].tolist() == [
                row == 2 for row in range(7)
            ]
            again = masks.mask(connection, snapshot, parse_filter({"year": 1999}))
        assert (again is first) == is_kept
        assert again[:7].tolist() == [row == 0 for row in range(7)]


class TestValidation:
    @pytest.mark.parametrize(
        ("filter", "error", "message"),
        [
            ("0", TypeError, r"filter must be a list of strings, got str '0'"),
            (5, TypeError, r"filter must be a list of strings, got int 5"),
            ([1], TypeError, r"filter must be strings, got int 1"),
            ({"year": {"$near": 3}}, ValueError, r"operators in a field must be among .*got '\$near'"),
            ({"year": {"lower": 3}}, ValueError, r"operators in a field must be among .*got 'lower'"),
            ({"$nor": []}, ValueError, r"operators must be \$and, \$or, \$not or, inside a field, .*got \$nor"),
            ({"$and": []}, TypeError, r"filter \$and must be a list of at least one filter, got \[\]"),
            ({"$or": {"a": 1}}, TypeError, r"filter \$or must be a list of at least one filter, got \{'a': 1\}"),
            ({"$not": [1]}, TypeError, r"filter must be a dictionary here, got list"),
            ({"year": {}}, ValueError, r"filter on 'year' must have an operator or a value"),
            ({"year": [1999]}, TypeError, r"filter values must be .*got list \[1999\].*For one of them say"),
            ({"year": {1999}}, TypeError, r"filter values must be .*got set \{1999\}.*For one of them say"),
            ({"year": {"$all": "abc"}}, TypeError, r"filter \$all must have a list, got str 'abc'"),
            ({"year": {"$any": [[1]]}}, TypeError, r"filter values must be .*got list \[1\]"),
            ({"year": {"$contains": ["a"]}}, TypeError, r"filter values must be .*got list \['a'\]"),
            ({"year": {"$within": "a"}}, TypeError, r"filter must be a dictionary here, got str 'a'"),
            ({"year": {"$in": "abc"}}, TypeError, r"filter \$in must have a list, got str 'abc'"),
            ({"year": {"$gt": True}}, TypeError, r"filter \$gt must have a number or a string, got bool"),
            ({"year": {"$lt": None}}, TypeError, r"filter \$lt must have a number or a string, got NoneType"),
            ({"year": {"$exists": 1}}, TypeError, r"filter \$exists must be True or False, got 1"),
            ({"year": math.nan}, ValueError, r"filter values must be finite, got nan"),
            ({"year": {"$gt": math.inf}}, ValueError, r"filter values must be finite, got inf"),
            ({"year": 10**310}, ValueError, r"filter values must be finite, got 1000"),
            ({"year": "a\0b"}, ValueError, r"filter values must be valid Unicode without NUL"),
            ({"year": "\ud800"}, ValueError, r"filter values must be valid Unicode without NUL"),
            ({'a"b': 1}, ValueError, r"filter keys must have no quotes.*Use a function"),
            ({5: 1}, TypeError, r"filter keys must be strings, got int 5"),
        ],
    )
    def test_bad_filters(self, index, filter, error, message):
        with pytest.raises(error, match=message):
            found(index, filter)

    def test_an_error_in_a_function_reaches_the_caller(self, index):
        with pytest.raises(ZeroDivisionError, match="division"):
            found(index, lambda document: 1 / 0)
        assert found(index, {"year": 1999}) == [0]


def matches(filter, metadata):
    """The documented meaning, in Python."""

    def kind(value):
        return {type(None): "null", bool: "bool", int: "number", float: "number", str: "string"}.get(type(value))

    def same(one, other):
        return kind(one) == kind(other) is not None and one == other

    def field(key, condition):
        has = key in metadata
        value = metadata.get(key)
        if not isinstance(condition, dict):
            condition = {"$eq": condition}
        checks = {
            "$eq": lambda x: has and same(value, x),
            "$ne": lambda x: not (has and same(value, x)),
            "$in": lambda x: has and any(same(value, y) for y in x),
            "$nin": lambda x: not (has and any(same(value, y) for y in x)),
            "$exists": lambda x: has == x,
            "$gt": lambda x: has and kind(value) == kind(x) and value > x,
            "$gte": lambda x: has and kind(value) == kind(x) and value >= x,
            "$lt": lambda x: has and kind(value) == kind(x) and value < x,
            "$lte": lambda x: has and kind(value) == kind(x) and value <= x,
        }
        return all(checks[name](operand) for name, operand in condition.items())

    combined = {
        "$and": lambda parts: all(matches(part, metadata) for part in parts),
        "$or": lambda parts: any(matches(part, metadata) for part in parts),
        "$not": lambda part: not matches(part, metadata),
    }
    return all(combined[key](value) if key in combined else field(key, value) for key, value in filter.items())


keys = st.sampled_from(["a", "b", "é.c", "d e"])
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
numbers = st.integers(-(2**70), 2**70).map(lambda value: value if abs(value) < 2**53 else float(value)) | st.floats(
    allow_nan=False, allow_infinity=False
)
numbers = st.sampled_from([0, 1, -1, 0.5, 1e300, 2**53]) | numbers
scalars = st.none() | st.booleans() | numbers | st.sampled_from(["", "a", "b", "1"]) | text
held = (
    scalars | st.integers(-(2**70), 2**70) | st.lists(scalars, max_size=2) | st.dictionaries(keys, scalars, max_size=2)
)
comparable = numbers | text | st.sampled_from([2**63, 2**63 - 1, -(2**63), 2**70])
conditions = scalars | st.one_of(
    st.fixed_dictionaries({}, optional={"$eq": scalars, "$ne": scalars, "$exists": st.booleans()}).filter(bool),
    st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), comparable, min_size=1),
    st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=4), min_size=1),
)
looking = st.one_of(
    conditions,
    st.fixed_dictionaries({"$contains": scalars}),
    st.dictionaries(st.sampled_from(["$any", "$all"]), st.lists(scalars, max_size=3), min_size=1),
    st.fixed_dictionaries({"$within": st.dictionaries(keys, conditions, max_size=2)}),
)
looking_filters = st.dictionaries(keys, looking, max_size=2)
filters = st.recursive(
    st.dictionaries(keys, conditions, max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=5,
)


class TestAgainstPython:
    @settings(max_examples=300)
    @given(st.lists(st.dictionaries(keys, scalars, max_size=4), min_size=1, max_size=5), st.lists(filters, max_size=5))
    def test_sql_and_python_agree(self, metadata, filters):
        connection = sqlite3.connect(":memory:")
        connection.execute("CREATE TABLE documents (metadata TEXT)")
        packed = packed_metadata(metadata, len(metadata))
        connection.executemany("INSERT INTO documents VALUES (?)", [(text,) for text in packed])
        for filter in filters:
            condition, parameters = filter_sql(parse_filter(filter))
            rows = connection.execute(f"SELECT rowid - 1 FROM documents WHERE {condition} ORDER BY rowid", parameters)
            assert [row for (row,) in rows] == [row for row, entry in enumerate(metadata) if matches(filter, entry)]
        connection.close()

    @settings(max_examples=300)
    @given(
        st.lists(st.dictionaries(keys, held, max_size=4), min_size=1, max_size=5),
        st.lists(filters | looking_filters, max_size=5),
    )
    def test_sql_and_the_test_of_one_document_agree(self, metadata, filters):
        connection = sqlite3.connect(":memory:")
        connection.execute("CREATE TABLE documents (metadata TEXT)")
        packed = packed_metadata(metadata, len(metadata))
        connection.executemany("INSERT INTO documents VALUES (?)", [(text,) for text in packed])
        documents = [Document(str(row), None, entry) for row, entry in enumerate(metadata)]
        for filter in map(parse_filter, filters):
            condition, parameters = filter_sql(filter)
            rows = connection.execute(f"SELECT rowid - 1 FROM documents WHERE {condition} ORDER BY rowid", parameters)
            expected = [row for row, document in enumerate(documents) if is_passing(filter, document)]
            assert [row for (row,) in rows] == expected
        connection.close()


class TestWhatAFilterAsksFor:
    def test_operands(self):
        parsed = parse_filter({"a": {"$in": [1, "x", None]}, "$or": [{"b": True}, {"$not": {"a": {"$lt": 2.5}}}]})
        assert filter_operands(parsed) == {"a": {"number", "string", "null"}, "b": {"boolean"}}
        assert filter_operands(parse_filter(["id"])) == {} == filter_operands(lambda document: True)

    def test_metadata_types(self):
        rows = SparseEmbeddings.from_dicts([{0: 1.0}] * 5, vocab_size=2)
        metadata = [{"a": 1, "b": [1]}, {"a": 2.5, "c d": None}, {"a": "x"}, None, {"b": {"a": 1}, "d": False}]
        with HybridIndex(vocab_size=2) as index:
            assert index.metadata_types() == {}
            index.add(["0", "1", "2", "3", "4"], embeddings=rows, metadata=metadata)
            expected = {
                "a": {"number": 2, "string": 1},
                "b": {"list": 1, "dictionary": 1},
                "c d": {"null": 1},
                "d": {"boolean": 1},
            }
            assert index.metadata_types() == expected
            assert index.metadata_types(["c d", "nope", "a"]) == {key: expected[key] for key in ("c d", "a")}
            index.delete(["2"])
            assert index.metadata_types(["a"]) == {"a": {"number": 2}}
            with pytest.raises(ValueError, match="filter keys must have no quotes"):
                index.metadata_types(['"'])

    def test_document_frequencies(self):
        weights = [{0: 1.0, 2: 0.5}, {2: 1.0}, {1: 1.0, 2: 2.0}]
        with HybridIndex(vocab_size=9) as index:
            assert index.document_frequencies([2]) == [0]
            index.add(["a", "b", "c"], embeddings=SparseEmbeddings.from_dicts(weights, vocab_size=9))
            assert index.document_frequencies([2, 0, 8, 1]) == [3, 1, 0, 1]
            index.delete(["c"])
            assert index.document_frequencies([2, 0, 8, 1]) == [2, 1, 0, 0]
