from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("llama_index.core")

from conftest import SENTENCES
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensHybridRetriever, KeyTokensRetriever

QUERIES = [f"{word} {other}" for word in ("stars", "proteins", "vectors", "virus") for other in "abcdefghijklmnop"]


def make_nodes():
    return [TextNode(text=text, id_=str(i)) for i, text in enumerate(SENTENCES)]


def make_sparse(encoder):
    return KeyTokensRetriever(encoder, make_nodes(), similarity_top_k=4)


def make_hybrid(encoder):
    return KeyTokensHybridRetriever(encoder, make_nodes(), similarity_top_k=4)


def make_hybrid_over_a_vector_store(encoder):
    index = VectorStoreIndex(make_nodes(), embed_model=KeyTokensEmbedding(encoder))
    return KeyTokensHybridRetriever.from_defaults(index=index, encoder=encoder, similarity_top_k=4)


@pytest.fixture(params=[make_sparse, make_hybrid, make_hybrid_over_a_vector_store])
def retriever(request, fresh_encoder):
    retriever = request.param(fresh_encoder)
    yield retriever
    retriever.close()


def answers(results):
    return [[(hit.node.node_id, pytest.approx(hit.score, rel=1e-5)) for hit in hits] for hits in results]


def test_sixteen_threads_and_sixty_four_tasks_answer_as_one(retriever):
    async def all_at_once():
        return await asyncio.gather(*map(retriever.aretrieve, QUERIES))

    retriever.encoder.cache.clear()
    with ThreadPoolExecutor(16) as pool:
        in_threads = list(pool.map(retriever.retrieve, QUERIES))
    retriever.encoder.cache.clear()
    in_tasks = asyncio.run(all_at_once())
    retriever.encoder.cache.clear()
    expected = answers([retriever.retrieve(query) for query in QUERIES])
    assert all(expected)
    assert [[(hit.node.node_id, hit.score) for hit in hits] for hits in in_threads] == expected
    assert [[(hit.node.node_id, hit.score) for hit in hits] for hits in in_tasks] == expected


def test_the_event_loop_goes_on_while_the_model_runs(retriever, model):
    """The model waits for the event loop: a call that blocked it would never end."""
    has_begun, may_end = threading.Event(), threading.Event()

    def wait(module, arguments):
        has_begun.set()
        if not may_end.wait(60):
            raise TimeoutError("the event loop was blocked")

    async def main():
        task = asyncio.create_task(retriever.aretrieve("an unheard-of query"))
        while not has_begun.is_set():
            await asyncio.sleep(0.001)
        may_end.set()
        return await task

    handle = model[0].register_forward_pre_hook(wait)
    try:
        hits = asyncio.run(main())
    finally:
        handle.remove()
    assert hits == retriever.retrieve("an unheard-of query")


def test_asynchronous_changes_and_batches(fresh_encoder):
    async def main():
        retriever = make_sparse(fresh_encoder)
        await retriever.aadd_nodes([TextNode(text="Wolves hunt deer.", id_="wolf")])
        found = await retriever.aretrieve_batch(["wolves", "proteins"])
        deleted = await retriever.adelete_nodes(["wolf", "unknown"])
        return found, deleted, len(retriever)

    found, deleted, length = asyncio.run(main())
    assert [hits[0].node.node_id for hits in found] == ["wolf", "2"]
    assert (deleted, length) == (1, len(SENTENCES))


def test_adding_and_deleting_while_others_retrieve(encoder):
    retriever = make_sparse(encoder)
    extra = [TextNode(text=f"Star number {i} shines.", id_=f"star-{i}") for i in range(8)]

    def change(node):
        retriever.add_nodes([node])
        return retriever.delete_nodes([node.node_id])

    with ThreadPoolExecutor(8) as pool:
        reading = [pool.submit(retriever.retrieve, query) for query in QUERIES]
        assert list(pool.map(change, extra)) == [1] * len(extra)
        assert all(future.result() for future in reading)
    assert len(retriever) == len(SENTENCES)
