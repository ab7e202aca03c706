from __future__ import annotations

import datetime

import pytest

from st_keytokens.index import Document
from st_keytokens.retrieval import Retriever, SearchSettings, host_filter, host_filter_keys

NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
METADATA = [
    {"tags": ["star", "gas"], "author": {"name": "Ada", "of": {"year": 7}}, "at": NOON},
    {"tags": "star", "author.name": "Ada", "author": {"name": "Bob"}, "at": "2024-05-01T03:00:00-07:00"},
    {"tags": [], "author": {"name": ["Ada", "Eve"]}, "at": "2024-05-01T10:00:00.5Z"},
    {"tags": [1, True, None], "author": "Ada", "at": "2024-05-01"},
    {"tags": [["star"]], "at": [NOON, "2025-01-01T00:00:00Z"]},
    {},
]

CASES = [
    ({"tags": "star"}, [0, 1]),
    ({"tags": {"$ne": "star"}}, [2, 3, 4, 5]),
    ({"tags": {"$in": ["gas", "dust"]}}, [0]),
    ({"tags": {"$nin": ["gas", 1]}}, [1, 2, 4, 5]),
    ({"tags": {"$contains": "gas"}}, [0]),
    ({"tags": {"$contains": "ta"}}, [1]),
    ({"tags": {"$any": ["gas", True]}}, [0, 3]),
    ({"tags": {"$all": ["gas", "star"]}}, [0]),
    ({"tags": 1}, [3]),
    ({"tags": None}, [3]),
    ({"tags": {"$exists": False}}, [5]),
    ({"author.name": "Ada"}, [0, 1, 2]),
    ({"author.name": {"$ne": "Ada"}}, [3, 4, 5]),
    ({"author.of.year": {"$gt": 6}}, [0]),
    ({"author.name": {"$exists": True}}, [0, 1, 2]),
    ({"$not": {"author.name": {"$in": ["Bob", "Eve"]}}}, [0, 1, 3, 4, 5]),
    ({"author": {"$within": {"of.year": 7}}}, [0]),
    ({"at": "2024-05-01T10:00:00Z"}, [0, 1, 4]),
    ({"at": {"$gt": "2024-05-01T12:00:00+02:00"}}, [2]),
    ({"at": {"$gte": "2024-05-01T06:00:00-04:00"}}, [0, 1, 2]),
    ({"at": {"$lt": "2024-05-01T10:00:01+00:00"}}, [0, 1, 2, 3]),
    ({"at": {"$any": ["2024-12-31T23:00:00-01:00"]}}, [4]),
    ({"at": NOON}, [0, 4]),  # texts that are no dates where they are stored stay texts
]


@pytest.fixture
def retriever(encoder):
    with Retriever(encoder) as retriever:
        retriever.add([f"stars {n}" for n in range(6)], ids=list("012345"), metadata=METADATA)
        yield retriever


@pytest.mark.parametrize(("filter", "expected"), CASES, ids=str)
def test_as_stores_compare(retriever, filter, expected):
    settings = SearchSettings(mode="sparse", top_k=9, filter=host_filter(filter))
    assert sorted(int(hit.id) for hit in retriever.search("stars", settings)) == expected
    assert [int(document.id) for document in retriever.documents(host_filter(filter))] == expected


def test_what_is_looked_up_in_the_database_and_what_is_not():
    assert not callable(host_filter({"author.name": "Ada", "tags": {"$in": ["a"]}, "at": {"$gt": "2024-05-01"}}))
    passes = host_filter({"at": {"$lt": "2024-05-01T10:00:01Z"}})
    assert passes(Document("a", None, {"at": NOON}))


def test_keys_that_no_document_has_are_told_once(retriever, encoder):
    filter = {"tags": 1, "$or": [{"author.name": "x"}, {"author.nmae": "x"}, {"nope": {"$exists": True}}]}
    assert host_filter_keys(filter) == ["tags", "author.name", "author.nmae", "nope"]
    assert retriever.newly_missing([*host_filter_keys(filter), 'q"']) == ["author.nmae", "nope", 'q"']
    assert retriever.newly_missing(host_filter_keys(filter)) == []
    with Retriever(encoder) as empty:
        assert empty.newly_missing(["nope"]) == []


@pytest.mark.parametrize(
    ("filter", "error", "message"),
    [
        ({"a": {"$near": 1}}, ValueError, r"filter operators in a field must be among .* got '\$near'"),
        ({"a": ["x"]}, TypeError, r"filter values must be .* For one of them say \{\"\$in\""),
        ({"a": object()}, TypeError, "got object for 'a'"),
    ],
)
def test_errors(filter, error, message):
    with pytest.raises(error, match=message):
        host_filter(filter)
