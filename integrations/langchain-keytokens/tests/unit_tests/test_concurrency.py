from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever, KeyTokensRetriever

QUERIES = [
    "electrons in an atom",
    "stars and galaxies",
    "prime numbers",
    "neural networks",
    "superconductors",
    "疫苗",
    "graph colouring",
    "quantum computers",
]


@pytest.fixture(params=["sparse", "hybrid", "hybrid, vector store"])
def retriever(request, abstracts, encoder):
    if request.param == "sparse":
        return KeyTokensRetriever.from_documents(abstracts, encoder)
    store = InMemoryVectorStore(KeyTokensEmbeddings(encoder)) if "store" in request.param else None
    return KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store)


@pytest.fixture
def expected(retriever):
    return [retriever.invoke(query) for query in QUERIES]


def test_sixteen_threads_give_the_answers_of_one(retriever, expected, encoder):
    encoder.cache.clear()
    barrier = threading.Barrier(16)

    def ask(number):
        barrier.wait()
        order = QUERIES[number % 8 :] + QUERIES[: number % 8]
        return {query: retriever.invoke(query) for query in order}

    with ThreadPoolExecutor(16) as threads:
        for answers in threads.map(ask, range(16)):
            assert [answers[query] for query in QUERIES] == expected


async def test_sixty_four_tasks_give_the_answers_of_one(retriever, expected, encoder):
    encoder.cache.clear()
    answers = await asyncio.gather(*(retriever.ainvoke(QUERIES[number % 8]) for number in range(64)))
    assert answers == expected * 8


async def test_searching_does_not_block_the_event_loop(retriever, beside_the_loop):
    assert len(await beside_the_loop(retriever.ainvoke(f"a query that nobody asked before {uuid4()}"))) == 4


async def test_adding_does_not_block_the_event_loop(retriever, beside_the_loop):
    new = Document(page_content=f"a text that nobody added before {uuid4()}")
    assert len(await beside_the_loop(retriever.aadd_documents([new]))) == 1


def test_searching_while_documents_are_added(retriever):
    """Each search sees whole batches."""
    marked = [[Document(page_content=f"zebra {batch}", metadata={"batch": batch})] * 3 for batch in range(5)]
    stop = threading.Event()

    def add():
        for batch in marked:
            retriever.add_documents(batch)
        stop.set()

    with ThreadPoolExecutor(2) as threads:
        adding = threads.submit(add)
        while not stop.is_set():
            found = KeyTokensRetriever(retriever=retriever.retriever, k=100).invoke(
                "zebra", filter={"batch": {"$exists": True}}
            )
            batches = [document.metadata["batch"] for document in found]
            assert all(batches.count(batch) == 3 for batch in set(batches))
        adding.result()
