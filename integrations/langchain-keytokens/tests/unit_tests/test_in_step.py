"""Filters that hold for both sides, stores that are filled, drift, the next day, and passes counted."""

from __future__ import annotations

import copy
import datetime
import json
import logging
import pickle
import subprocess
import sys
import warnings

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import Retriever

from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever, KeyTokensRetriever, hybrid_retrievers

QUERY = "electrons in an atom"


def ids(documents):
    return [document.id for document in documents]


def tenants(documents):
    return {document.metadata["tenant"] for document in documents}


@pytest.fixture
def documents(abstracts):
    """Two tenants that both have every text."""
    return [
        Document(id=f"{tenant}{i}", page_content=d.page_content, metadata={"tenant": tenant, "position": i})
        for i, d in enumerate(abstracts[:30])
        for tenant in "ab"
    ]


@pytest.fixture
def store(encoder):
    return InMemoryVectorStore(KeyTokensEmbeddings(encoder))


class Counting:
    """Calls of the model's first module, and the texts that went through it."""

    def __init__(self, encoder):
        self.calls = self.texts = 0
        self.handle = encoder.model[0].register_forward_pre_hook(self)

    def __call__(self, module, arguments):
        self.calls += 1
        self.texts += len(arguments[0]["input_ids"])


@pytest.fixture
def uncached(shared_encoder):
    return KeyTokenEncoder(shared_encoder.model, calibration=shared_encoder.calibration, cache_size=0)


@pytest.fixture
def counting(uncached):
    found = Counting(uncached)
    yield found
    found.handle.remove()


class WithoutIds(InMemoryVectorStore):
    """Gives no ids, as langchain-qdrant does."""

    def similarity_search_with_score(self, query, k=4, **kwargs):
        ranked = super().similarity_search_with_score(query, k, **kwargs)
        return [(Document(page_content=d.page_content, metadata=d.metadata), score) for d, score in ranked]


def of_a(document):
    return document.metadata["tenant"] == "a"


class TestFiltersHoldForBothSides:
    @pytest.mark.parametrize("kind", [InMemoryVectorStore, WithoutIds])
    async def test_one_of_the_store_given_in_any_way(self, documents, encoder, kind):
        options = {"vectorstore": kind(KeyTokensEmbeddings(encoder)), "k": 60, "scores_key": "scores"}
        own = {"search_kwargs": {"filter": of_a}}
        for retriever, call in (
            (KeyTokensHybridRetriever.from_documents(documents, encoder, **options, **own), {}),
            (KeyTokensHybridRetriever.from_documents(documents, encoder, **options), own),
            (KeyTokensHybridRetriever.from_documents(documents, encoder, **options).bind(**own), {}),
        ):
            for found in (
                retriever.invoke(QUERY, **call),
                await retriever.ainvoke(QUERY, **call),
                *retriever.batch([QUERY, "an electron"], **call),
                *await retriever.abatch([QUERY, "an electron"], **call),
            ):
                assert tenants(found) == {"a"} and len(found) == 30
                assert any(set(d.metadata["scores"]) == {"dense", "sparse"} for d in found)

    def test_beside_one_of_ours(self, documents, encoder, store):
        retriever = KeyTokensHybridRetriever.from_documents(
            documents, encoder, vectorstore=store, k=60, search_kwargs={"filter": of_a}
        )
        found = retriever.invoke(QUERY, filter={"position": {"$lt": 5}})
        assert sorted(ids(found)) == [f"a{i}" for i in range(5)]

    def test_other_arguments_of_a_call_leave_that_of_the_constructor(self, documents, encoder, store):
        retriever = KeyTokensHybridRetriever.from_documents(
            documents, encoder, vectorstore=store, k=60, search_kwargs={"filter": of_a}
        )
        assert tenants(retriever.invoke(QUERY, search_kwargs={"fetch_k": 100})) == {"a"}

    def test_it_ranks_as_one_of_ours_does(self, documents, encoder, store):
        retriever = KeyTokensHybridRetriever.from_documents(
            documents, encoder, vectorstore=store, k=60, score_key="score"
        )
        theirs, ours = retriever.invoke(QUERY, search_kwargs={"filter": of_a}), retriever.invoke(QUERY, filter=of_a)
        assert [(d.id, pytest.approx(d.metadata["score"])) for d in theirs] == [
            (d.id, d.metadata["score"]) for d in ours
        ]

    def test_a_store_with_more_than_it_is_asked_for_loses_hits_and_lets_none_through(
        self, documents, encoder, store, monkeypatch, caplog
    ):
        monkeypatch.setattr(hybrid_retrievers, "MOST_FILTERED", 10)
        retriever = KeyTokensHybridRetriever.from_documents(documents, encoder, vectorstore=store, k=5, depth=5)
        with caplog.at_level(logging.WARNING):
            found = retriever.invoke(QUERY, search_kwargs={"filter": of_a})
        assert tenants(found) == {"a"}
        assert "more than 10 documents through" in caplog.text and "index of 60" in caplog.text

    def test_one_that_cannot_be_kept_has_to_be_given_again(self, documents, encoder, store, tmp_path):
        options = {"vectorstore": store, "k": 60}
        KeyTokensHybridRetriever.from_documents(
            documents, encoder, search_kwargs={"filter": of_a}, **options
        ).save_local(tmp_path)
        with pytest.raises(ValueError, match="search_kwargs must be given to load this retriever, got none"):
            KeyTokensHybridRetriever.load_local(tmp_path, encoder, vectorstore=store)
        loaded = KeyTokensHybridRetriever.load_local(
            tmp_path, encoder, vectorstore=store, search_kwargs={"filter": of_a}
        )
        assert tenants(loaded.invoke(QUERY)) == {"a"}

    def test_instants(self, encoder):
        def at(hour, offset):
            return datetime.datetime(2024, 5, 1, hour, tzinfo=datetime.timezone(datetime.timedelta(hours=offset)))

        retriever = KeyTokensRetriever.from_texts(
            ["stars"] * 2, encoder, [{"at": at(12, 5)}, {"at": at(12, 0)}], ids=["early", "late"]
        )
        assert ids(retriever.invoke("stars", filter={"at": {"$gte": at(10, -1)}})) == ["late"]
        assert retriever.invoke("stars", filter=["early"])[0].metadata["at"].isoformat() == "2024-05-01T12:00:00+05:00"


class TestFilledStores:
    def test_nothing_to_add_is_nothing_to_do(self, encoder):
        class Picky(InMemoryVectorStore):
            def add_documents(self, documents, ids=None, **kwargs):
                assert documents, "not enough values to unpack"
                return super().add_documents(documents, ids, **kwargs)

        picky = Picky(KeyTokensEmbeddings(encoder))
        retriever = KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=picky)
        assert retriever.add_documents([]) == [] and len(retriever.retriever) == 0

    def test_drift_is_said_with_both_numbers_and_mended(self, abstracts, encoder, store):
        store.add_documents(abstracts)
        with pytest.warns(UserWarning, match=r"holds 60 documents and the index 1: .*update_from_vectorstore\(\)"):
            retriever = KeyTokensHybridRetriever.from_documents(
                abstracts[:1], encoder, vectorstore=store, scores_key="scores"
            )
        assert retriever.counts() == {"vectorstore": 60, "index": 1}
        assert retriever.update_from_vectorstore() == {"added": 59, "replaced": 0, "deleted": 0}
        assert all(set(d.metadata["scores"]) == {"dense", "sparse"} for d in retriever.invoke(QUERY, k=2))
        store.delete(ids(abstracts[:5]))
        store.add_documents([Document(id=abstracts[9].id, page_content="zebra", metadata={"new": 1})])
        assert retriever.update_from_vectorstore() == {"added": 0, "replaced": 1, "deleted": 5}
        assert retriever.get_by_ids([abstracts[9].id, abstracts[0].id]) == [
            Document(id=abstracts[9].id, page_content="zebra", metadata={"new": 1})
        ]
        assert retriever.update_from_vectorstore() == {"added": 0, "replaced": 0, "deleted": 0}

    def test_a_store_that_is_opened_with_an_index_of_more(self, abstracts, encoder, store, tmp_path):
        KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, path=tmp_path / "index")
        store.delete(ids(abstracts[1:]))
        with pytest.warns(UserWarning, match="holds 1 documents and the index 60"):
            KeyTokensHybridRetriever.load_local(tmp_path / "index", encoder, vectorstore=store)

    def test_no_warning_where_both_agree(self, abstracts, encoder, store):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store)
            KeyTokensHybridRetriever.from_vectorstore(store, encoder)

    async def test_its_vectors_are_used(self, abstracts, shared_encoder, uncached, counting):
        store = InMemoryVectorStore(KeyTokensEmbeddings(uncached))
        for number in range(1100):
            document = abstracts[number % 60]
            store.store[str(number)] = {
                "id": str(number),
                "vector": shared_encoder.encode_document([document.page_content]).dense[0].tolist(),
                "text": document.page_content,
                "metadata": {},
            }
        counting.texts = 0
        made = KeyTokensHybridRetriever.from_vectorstore(store, uncached)
        assert counting.texts == 1 and len(made.retriever) == 1100  # to see that they are the encoder's
        again = await KeyTokensHybridRetriever.afrom_vectorstore(store, uncached)
        assert counting.texts == 2
        assert ids(made.invoke(QUERY)) == ids(again.invoke(QUERY))

    def test_vectors_of_others_are_not(self, abstracts, encoder, caplog):
        other = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        other.add_documents(abstracts)
        assert KeyTokensHybridRetriever.from_vectorstore(other, encoder).counts() == {"vectorstore": 60, "index": 60}
        stale = InMemoryVectorStore(KeyTokensEmbeddings(encoder))
        stale.add_documents(abstracts)
        for row in stale.store.values():
            row["vector"] = row["vector"][::-1]
        with caplog.at_level(logging.WARNING):
            made = KeyTokensHybridRetriever.from_vectorstore(stale, encoder)
        assert "not those of the encoder" in caplog.text
        fresh = KeyTokensRetriever.from_documents(abstracts, encoder)
        assert made.retriever.index.search("atom", mode="sparse") == fresh.retriever.index.search(
            "atom", mode="sparse"
        )

    def test_ids_are_the_stores(self, abstracts, encoder, store):
        given = store.add_texts([d.page_content for d in abstracts], [d.metadata for d in abstracts])
        nameless = [Document(page_content=d.page_content, metadata=d.metadata) for d in abstracts]
        retriever = KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store)
        assert retriever.add_documents(nameless, is_in_vectorstore=True) == given
        assert retriever.delete(given[:1]) == 1 and given[0] not in store.store
        with pytest.raises(ValueError, match="must be in the vector store, got 1 of 1 that are not among its 59"):
            retriever.add_documents(nameless[:1], is_in_vectorstore=True)
        with pytest.raises(ValueError, match="the first with id 'invented'"):
            retriever.add_documents([Document(id="invented", page_content="zebra")], is_in_vectorstore=True)

    def test_equal_texts_get_one_id_each(self, encoder, store):
        given = store.add_texts(["stars", "stars"], [{"n": 1}, {"n": 2}])
        retriever = KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store)
        nameless = [Document(page_content="stars", metadata={"n": n}) for n in (2, 1)]
        assert retriever.add_documents(nameless, is_in_vectorstore=True) == given[::-1]


class TestTheNextDay:
    PROBE = """
import sys
from langchain_keytokens import KeyTokensHybridRetriever
opened = KeyTokensHybridRetriever.load_local(sys.argv[1])
print([d.id for d in opened.invoke(sys.argv[2])], opened.model_dump_json(), opened.retriever.encoder.fingerprint)
"""

    def test_another_process_opens_it_in_one_line(self, abstracts, encoder, tmp_path):
        settings = {
            "k": 7,
            "weights": {"dense": 0.5},
            "filter": {"position": {"$lt": 50}},
            "depth": 33,
            "fusion": "rrf",
        }
        first = KeyTokensHybridRetriever.from_documents(abstracts, encoder, **settings, tags=["t"], score_key="s")
        first.save_local(tmp_path / "saved", with_encoder=True)
        done = subprocess.run(
            [sys.executable, "-c", self.PROBE, str(tmp_path / "saved"), QUERY], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        expected = (ids(first.invoke(QUERY)), first.model_dump_json(), encoder.fingerprint)
        assert done.stdout.strip() == " ".join(map(str, expected))

    def test_a_folder_of_path_is_one_of_save_local(self, abstracts, encoder, tmp_path):
        made = KeyTokensRetriever.from_documents(abstracts, encoder, path=tmp_path / "index", k=7, matches_key="m")
        loaded = KeyTokensRetriever.load_local(tmp_path / "index", encoder)
        assert (loaded.model_dump(), loaded.invoke(QUERY)) == (made.model_dump(), made.invoke(QUERY))
        with pytest.raises(ValueError, match=r"encoder must be given .* which was saved without one"):
            KeyTokensRetriever.load_local(tmp_path / "index")

    def test_settings_keep_their_types(self, abstracts, encoder, store, tmp_path):
        when = datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
        settings = {"filter": {"at": {"$lt": when}}, "search_kwargs": {"score_threshold": 0.1}}
        KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, **settings).save_local(tmp_path)
        loaded = KeyTokensHybridRetriever.load_local(tmp_path, encoder, vectorstore=store)
        assert (loaded.filter, loaded.search_kwargs) == tuple(settings.values())

    @pytest.mark.parametrize("with_store", [False, True])
    def test_a_script_that_runs_twice(self, abstracts, encoder, store, tmp_path, with_store):
        nameless = [Document(page_content=d.page_content, metadata=d.metadata) for d in abstracts]
        options = {"vectorstore": store} if with_store else {}
        for _ in range(2):
            made = KeyTokensHybridRetriever.from_documents(nameless, encoder, path=tmp_path / "index", **options)
            assert len(made.retriever) == 60
            assert not with_store or len(store.store) == 60

    def test_its_second_run_embeds_nothing(self, abstracts, uncached, counting, tmp_path):
        KeyTokensHybridRetriever.from_documents(abstracts, uncached, path=tmp_path / "index")
        counting.texts = 0
        again = KeyTokensHybridRetriever.from_documents(abstracts, uncached, path=tmp_path / "index")
        again.add_documents([Document(id=abstracts[0].id, page_content="zebra"), *abstracts[1:]])
        assert counting.texts == 1

    @pytest.mark.parametrize(
        "through", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy, lambda r: r.model_copy()]
    )
    @pytest.mark.parametrize("kind", [KeyTokensRetriever, KeyTokensHybridRetriever])
    def test_copies_find_the_same(self, abstracts, encoder, kind, through):
        retriever = kind.from_documents(abstracts, encoder, k=3, filter={"position": {"$lt": 40}})
        made = through(retriever)
        assert (made.model_dump(), made.invoke(QUERY)) == (retriever.model_dump(), retriever.invoke(QUERY))

    def test_it_closes(self, abstracts, encoder):
        with KeyTokensRetriever.from_documents(abstracts, encoder) as retriever:
            folder = retriever.retriever.index.path
        assert not folder.exists()


class TestBatches:
    @pytest.mark.parametrize("kind", ["sparse", "hybrid", "store"])
    async def test_a_batch_is_one(self, abstracts, uncached, counting, kind):
        options = {"vectorstore": InMemoryVectorStore(KeyTokensEmbeddings(uncached))} if kind == "store" else {}
        made = KeyTokensRetriever if kind == "sparse" else KeyTokensHybridRetriever
        retriever = made.from_documents(abstracts, uncached, **options)
        queries = [f"atoms and {word}" for word in "stars gas dust light heat ions quarks rays spin mass time".split()]
        queries.append(QUERY)
        singles = [retriever.invoke(query) for query in queries]
        counting.calls = counting.texts = 0
        assert retriever.batch(queries) == singles
        assert (counting.calls, counting.texts) == (1, 12)
        assert await retriever.abatch(queries) == singles
        assert (counting.calls, counting.texts) == (2, 24)

    def test_eleven_hundred(self, uncached, counting, abstracts):
        texts = [f"{number} {abstracts[number % 60].page_content[:40]}" for number in range(1100)]
        store = InMemoryVectorStore(KeyTokensEmbeddings(uncached))
        retriever = KeyTokensHybridRetriever.from_texts(texts, uncached, vectorstore=store)
        assert counting.texts == 1100
        retriever.batch(texts)
        assert (counting.texts, len(store.store)) == (2200, 1100)

    def test_errors_stay_with_their_query(self, abstracts, encoder):
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder)
        found = retriever.batch([QUERY, {"question": QUERY}, "stars"], return_exceptions=True)
        assert [type(entry) for entry in found] == [list, TypeError, list]
        assert retriever.batch([]) == [] and retriever.batch(["", " "]) == [[], []]


class TestClearErrors:
    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"weights": 0.5}, r"weights must be a dictionary of 'dense' and 'sparse', got 0\.5"),
            ({"weights": [0.5, 0.5]}, r"weights must be a dictionary of 'dense' and 'sparse', got \[0\.5, 0\.5\]"),
            ({"vectorstore": "index"}, "vectorstore must be a VectorStore, got str"),
        ],
    )
    def test_settings(self, encoder, setting, message):
        with pytest.raises(ValidationError, match=message):
            KeyTokensHybridRetriever(retriever=Retriever(encoder), **setting)

    def test_a_retriever_in_place_of_its_store(self, encoder, store):
        with pytest.raises(ValidationError, match="vectorstore must be a VectorStore, got VectorStoreRetriever"):
            KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store.as_retriever())

    @pytest.mark.parametrize(
        ("documents", "got"), [("a text", "str"), (Document(page_content="a"), "Document"), (["a"], "str 'a'")]
    )
    def test_documents(self, encoder, documents, got):
        with pytest.raises(TypeError, match=f"documents must be .*Documents, got {got}"):
            KeyTokensRetriever.from_documents(documents, encoder)

    def test_an_encoder(self, encoder, abstracts):
        with pytest.raises(TypeError, match="encoder must be a KeyTokenEncoder, got str"):
            KeyTokensRetriever.from_documents(abstracts, "examples/tiny-embedder/embedder")
        made = KeyTokensRetriever.from_documents(abstracts, KeyTokensEmbeddings(encoder))
        assert made.retriever.encoder is encoder

    def test_a_generator_is_fine(self, encoder, abstracts):
        assert len(KeyTokensRetriever.from_documents(iter(abstracts), encoder).retriever) == 60


def test_scores_beside_documents_that_stay_as_they_were(abstracts, encoder):
    retriever = KeyTokensHybridRetriever.from_documents(abstracts, encoder)
    pairs = retriever.search_with_scores(QUERY, k=3)
    assert [document for document, _ in pairs] == retriever.invoke(QUERY, k=3)
    assert all(document in abstracts for document, _ in pairs)
    assert [s for _, s in pairs] == sorted((s for _, s in pairs), reverse=True)
    assert json.loads(retriever.model_dump_json())["score_key"] is None
