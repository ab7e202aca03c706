"""Filters on lists, nested keys and times, on both sides and on every route."""

from __future__ import annotations

import logging

import pytest
from langchain_core.documents import Document
from langchain_core.structured_query import Comparator, Comparison, StructuredQuery
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_keytokens import (
    KeyTokensEmbeddings,
    KeyTokensHybridRetriever,
    KeyTokensRetriever,
    KeyTokensTranslator,
    KeyTokensVectorStore,
)

QUERY = "electrons in an atom"
CASES = [
    ({"topics": {"$in": ["3", "9"]}}, lambda n: n % 10 in (3, 9) or n % 7 in (3,)),
    ({"topics": {"$contains": "3"}}, lambda n: n % 10 == 3 or n % 7 == 3),
    ({"topics": {"$all": ["3", "x3"]}}, lambda n: n % 10 == 3),
    ({"topics": {"$nin": ["3", "x3"]}}, lambda n: n % 10 != 3 and n % 7 != 3),
    ({"source.page": {"$lt": 7}}, lambda n: n < 7),
    ({"source.page": 7, "topics": "7"}, lambda n: n == 7),
    ({"at": {"$gte": "2024-05-01T10:50:00Z"}}, lambda n: n >= 50),
]


@pytest.fixture(scope="module")
def documents(abstracts):
    return [
        Document(
            id=str(n),
            page_content=d.page_content,
            metadata={
                "topics": [str(n % 10), f"x{n % 10}", str(n % 7)],
                "source": {"page": n},
                "at": f"2024-05-01T12:{n:02}:00+02:00",
            },
        )
        for n, d in enumerate(abstracts)
    ]


@pytest.fixture(scope="module")
def retrievers(documents, shared_encoder):
    embeddings = KeyTokensEmbeddings(shared_encoder)
    store = InMemoryVectorStore(embeddings)
    return {
        "own": KeyTokensHybridRetriever.from_documents(documents, shared_encoder, k=60),
        "store": KeyTokensHybridRetriever.from_documents(documents, shared_encoder, k=60, vectorstore=store),
        "sparse": KeyTokensRetriever.from_documents(documents, shared_encoder, k=60),
    }


@pytest.mark.parametrize("kind", ["own", "store", "sparse"])
@pytest.mark.parametrize(("filter", "is_passing"), CASES, ids=str)
async def test_both_sides(retrievers, kind, filter, is_passing):
    expected = {str(n) for n in range(60) if is_passing(n)}
    found = [document.id for document in retrievers[kind].invoke(QUERY, filter=filter)]
    assert set(found) <= expected and found
    if kind != "sparse":
        assert set(found) == expected
    assert [document.id for document in await retrievers[kind].ainvoke(QUERY, filter=filter)] == found
    assert [document.id for document in retrievers[kind].batch([QUERY, "x"], filter=filter)[0]] == found


def test_a_self_query_may_ask_for_what_a_list_contains(retrievers):
    store = KeyTokensVectorStore(retrievers["own"])
    asked = StructuredQuery(
        query=QUERY, filter=Comparison(comparator=Comparator.CONTAIN, attribute="topics", value="x3")
    )
    query, arguments = KeyTokensTranslator().visit_structured_query(asked)
    found = store.similarity_search(query, 60, **arguments)
    assert {document.id for document in found} == {"3", "13", "23", "33", "43", "53"}


@pytest.mark.parametrize("filter", [{"topcis": "3"}, {"topcis": {"$ne": "3"}}, {"source.pgae": 7}], ids=str)
async def test_a_key_that_no_document_has_is_said_once(documents, encoder, filter, caplog):
    retriever = KeyTokensHybridRetriever.from_documents(documents[:5], encoder, filter=filter)
    said = f"filter asks for the key {next(iter(filter))!r}, which none of 5 documents has."
    with caplog.at_level(logging.WARNING, "langchain_keytokens"):
        retriever.invoke(QUERY)
        await retriever.ainvoke(QUERY)
        retriever.invoke(QUERY, filter={"topics": "1"})
    assert [record.getMessage() for record in caplog.records] == [said]


def test_a_filter_that_is_wrong_is_refused_when_it_is_given(encoder):
    with pytest.raises(ValueError, match=r"filter operators in a field must be among .* got '\$near'"):
        KeyTokensHybridRetriever.from_texts(["a"], encoder, filter={"year": {"$near": 3}})
    with pytest.raises(TypeError, match=r"filter values must be .* For one of them say"):
        KeyTokensRetriever.from_texts(["a"], encoder).invoke("a", filter={"year": [1, 2]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "stars"}, "texts must be a list with one entry a text, got str 'stars'"),
        ({"texts": ["a"], "metadatas": {"year": 1}}, "metadatas must be a list with one entry a text, got dict"),
        ({"texts": ["a"], "metadatas": ["year"]}, "metadatas must be dictionaries, got str 'year'"),
        ({"texts": ["a"], "ids": "b"}, "ids must be a list with one entry a text, got str 'b'"),
    ],
)
def test_what_is_no_list_is_refused(encoder, arguments, message):
    with pytest.raises(TypeError, match=message):
        KeyTokensRetriever.from_texts(encoder=encoder, **arguments)
