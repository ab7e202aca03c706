"""Any ``Embeddings`` in place of an encoder: what is found, how often it is called, how it fails, the next day."""

from __future__ import annotations

import asyncio
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from providers import Asynchronous, Provider
from st_keytokens import KeyTokenEncoder

from langchain_keytokens import (
    KeyTokensEmbeddings,
    KeyTokensHybridRetriever,
    KeyTokensRetriever,
    KeyTokensVectorStore,
)

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"
QUERY = "planets around other stars"
MANY = 1_100


@pytest.fixture(scope="module")
def many():
    """Eleven hundred abstracts, each with its id."""
    with (EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(next(lines)) for _ in range(MANY)]
    return [Document(id=row["_id"], page_content=row["text"]) for row in rows]


def texts_of(documents):
    return {document.page_content for document in documents}


@pytest.fixture
def provider():
    return Provider()


class TestFound:
    @pytest.mark.parametrize("kind", [KeyTokensRetriever, KeyTokensHybridRetriever])
    def test_a_document_by_its_own_words(self, abstracts, provider, kind):
        retriever = kind.from_documents(abstracts, provider, k=1)
        found = [retriever.invoke(document.page_content.split(". ")[0])[0].id for document in abstracts]
        assert np.mean([id == document.id for id, document in zip(found, abstracts, strict=True)]) > 0.9
        assert retriever.retriever.encoder.calibration.document_count == 60

    def test_as_an_encoder_of_the_same_function(self, abstracts, provider):
        encoder = KeyTokenEncoder(Provider())
        encoder.calibrate([document.page_content for document in abstracts], show_progress_bar=False)
        expected = KeyTokensHybridRetriever.from_documents(abstracts, encoder, k=9).search_with_scores(QUERY)
        given = KeyTokensHybridRetriever.from_documents(abstracts, provider, k=9).search_with_scores(QUERY)
        assert [document.id for document, _ in given] == [document.id for document, _ in expected]
        np.testing.assert_allclose([score for _, score in given], [score for _, score in expected], rtol=1e-4)

    @pytest.mark.parametrize("kind", [KeyTokensRetriever, KeyTokensHybridRetriever])
    async def test_asynchronous_ones(self, abstracts, provider, kind):
        expected = kind.from_documents(abstracts, provider, k=9).invoke(QUERY)
        asynchronous = Asynchronous()
        retriever = await kind.afrom_documents(abstracts, asynchronous, k=9)
        assert await retriever.ainvoke(QUERY) == expected
        assert retriever.invoke(QUERY) == expected
        assert asynchronous.most() == 1

    def test_in_a_running_loop(self, abstracts, provider):
        async def run():
            return KeyTokensRetriever.from_documents(abstracts, Asynchronous()).invoke(QUERY)

        assert asyncio.run(run()) == KeyTokensRetriever.from_documents(abstracts, provider).invoke(QUERY)

    def test_length_of_the_vectors_says_nothing(self, abstracts, provider):
        long = KeyTokensHybridRetriever.from_documents(abstracts, Provider(length=7.0), k=9)
        expected = KeyTokensHybridRetriever.from_documents(abstracts, provider, k=9).search_with_scores(QUERY)
        given = long.search_with_scores(QUERY)
        assert [document.id for document, _ in given] == [document.id for document, _ in expected]
        np.testing.assert_allclose([score for _, score in given], [score for _, score in expected], rtol=1e-3)
        kept = long.retriever.index.dense_embeddings([abstracts[0].id])
        np.testing.assert_allclose(np.linalg.norm(kept), 7.0, rtol=1e-5)  # as given

    def test_as_a_vector_store(self, abstracts, provider):
        store = KeyTokensVectorStore.from_documents(abstracts, provider)
        expected = KeyTokensHybridRetriever.from_documents(abstracts, Provider()).invoke(QUERY)
        assert store.similarity_search(QUERY) == expected
        assert store.embeddings.embed_query(QUERY) == pytest.approx(provider.vector(QUERY), rel=1e-6)
        assert provider.most() == 1

    def test_documents_that_come_later(self, abstracts, provider):
        retriever = KeyTokensRetriever.from_documents([], provider, k=1)
        assert (retriever.invoke(QUERY), retriever.batch([QUERY, "galaxies"])) == ([], [[], []])
        assert provider.queries.keys() == {"dimension"}
        retriever.add_documents(abstracts[:50])
        retriever.add_documents(abstracts[50:])
        assert [len(retriever.retriever), retriever.retriever.encoder.calibration.document_count] == [60, 50]
        assert retriever.invoke(abstracts[55].page_content)[0].id == abstracts[55].id
        assert provider.most() == 1

    def test_one_document_is_too_few(self, abstracts, provider):
        retriever = KeyTokensRetriever.from_documents([], provider)
        with pytest.raises(ValueError, match="must be calibrated on two documents at the least, got 1"):
            retriever.add_documents(abstracts[:1])
        retriever.add_documents(abstracts)
        assert len(retriever.retriever) == 60 and provider.most() == 1

    def test_two_retrievers_of_one_encoder(self, abstracts, provider):
        encoder = KeyTokensEmbeddings(provider).encoder
        one, other = (KeyTokensRetriever.from_documents([], encoder, k=1) for _ in range(2))
        one.add_documents(abstracts)
        other.add_documents(abstracts[:10])
        assert other.invoke(abstracts[5].page_content)[0].id == abstracts[5].id and provider.most() == 1


class TestCalls:
    @pytest.mark.parametrize("kind", [KeyTokensRetriever, KeyTokensHybridRetriever])
    def test_a_text_is_sent_once(self, many, provider, kind):
        retriever = kind.from_documents(many, provider)
        assert texts_of(many) <= provider.documents.keys()
        assert len(provider.documents) <= MANY + 300 and len(provider.queries) <= 300 + 1
        assert provider.most() == 1
        sent = provider.documents.total()
        retriever.batch([QUERY, "black holes", QUERY])
        retriever.invoke(QUERY)
        assert provider.documents.total() == sent and provider.most() == 1

    @pytest.mark.parametrize("fails_at", [5, 30, 60, 200])
    def test_a_failure_midway_loses_nothing(self, many, provider, fails_at, tmp_path):
        provider.fails_at = fails_at
        with pytest.raises(ConnectionError, match="429"):
            KeyTokensRetriever.from_documents(many, provider, path=tmp_path / "index")
        assert 0 < provider.documents.total() <= MANY + 300
        provider.fails_at = None
        retriever = KeyTokensRetriever.from_documents(many, provider, path=tmp_path / "index")
        assert len(retriever.retriever) == MANY and texts_of(many) <= provider.documents.keys()
        assert provider.most() == 1

    def test_a_failure_of_later_documents_loses_nothing(self, abstracts, provider):
        retriever = KeyTokensHybridRetriever.from_documents(abstracts[:30], provider)
        provider.fails_at = provider.calls + 1
        with pytest.raises(ConnectionError, match="429"):
            retriever.add_documents(abstracts[30:])
        assert len(retriever.retriever) == 30
        with pytest.raises(ConnectionError, match="429"):
            retriever.invoke(QUERY)
        provider.fails_at = None
        assert len(retriever.add_documents(abstracts[30:])) == 30
        assert retriever.invoke(QUERY) and provider.most() == 1

    def test_vectors_that_are_not_numbers_are_not_remembered(self, abstracts, provider):
        provider.length = float("nan")
        with pytest.raises(ValueError, match=r"finite|NaN"):
            KeyTokensRetriever.from_documents(abstracts, provider)
        provider.length = 1.0
        assert len(KeyTokensRetriever.from_documents(abstracts, provider).retriever) == 60

    def test_other_dimensions_than_before(self, abstracts, provider):
        retriever = KeyTokensHybridRetriever.from_documents(abstracts[:30], provider)
        provider.dimension = 32
        with pytest.raises(ValueError, match="must give vectors of dimension 48, as before, got 32"):
            retriever.add_documents(abstracts[30:])
        with pytest.raises(ValueError, match="must give vectors of dimension 48, as before, got 32"):
            retriever.invoke(QUERY)
        assert len(retriever.retriever) == 30


class TestFilledStores:
    @pytest.fixture
    def store(self, many, provider):
        store = InMemoryVectorStore(provider)
        store.add_documents(many)
        provider.documents.clear()
        provider.queries.clear()
        return store

    def test_no_document_is_sent_again(self, many, store, provider, tmp_path):
        retriever = KeyTokensHybridRetriever.from_vectorstore(store, path=tmp_path / "index")
        assert not texts_of(many) & provider.documents.keys()
        assert len(provider.documents) <= 300 and len(retriever.retriever) == MANY
        alone = KeyTokensHybridRetriever.from_documents(many, Provider())
        assert [d.id for d in retriever.invoke(QUERY)] == [d.id for d in alone.invoke(QUERY)]
        assert retriever.update_from_vectorstore() == {"added": 0, "replaced": 0, "deleted": 0}
        retriever.batch(["black holes", "proteins that fold", QUERY])
        assert asyncio.run(retriever.ainvoke("a quantum computer")) == retriever.invoke("a quantum computer")
        assert provider.most() == 1  # also for the queries of both sides

    def test_a_store_that_is_filled_with_the_index(self, abstracts, provider):
        store = InMemoryVectorStore(provider)
        retriever = KeyTokensHybridRetriever.from_documents(abstracts, provider, vectorstore=store)
        assert retriever.counts() == {"vectorstore": 60, "index": 60}
        retriever.add_documents([Document(id="new", page_content="A note on zebras. It is short.")])
        assert retriever.invoke("zebras")[0].id == "new"
        assert provider.most() == 1

    def test_an_equal_embedder_is_the_same(self, abstracts):
        class Equal(Provider):
            __hash__ = None

            def __eq__(self, other):
                return type(self) is type(other) and self.model == other.model

        store = InMemoryVectorStore(Equal())
        store.add_documents(abstracts)
        store.embedding.documents.clear()
        passed = Equal()
        retriever = KeyTokensHybridRetriever.from_vectorstore(store, passed)
        assert len(retriever.retriever) == 60
        assert not texts_of(abstracts) & (passed.documents.keys() | store.embedding.documents.keys())

    def test_a_store_that_is_asked_by_text_alone(self, abstracts, provider):
        class Plain(InMemoryVectorStore):
            def similarity_search_with_score(self, query, k=4, **kwargs):
                found = self._similarity_search_with_score_by_vector(self.embedding.embed_query(query), k, **kwargs)
                return [(document, score) for document, score, _ in found]

            similarity_search_with_score_by_vector = None

        store = Plain(provider)
        store.add_documents(abstracts)
        retriever = KeyTokensHybridRetriever.from_vectorstore(store)
        assert retriever.batch([QUERY, "black holes"])[0] == retriever.invoke(QUERY)
        assert provider.queries[QUERY] == 2  # one a search, as the store does not remember

    def test_a_store_without_embeddings(self, store):
        class Bare(InMemoryVectorStore):
            embeddings = None

        with pytest.raises(ValueError, match="encoder must be given for a vector store that has no Embeddings"):
            KeyTokensHybridRetriever.from_vectorstore(Bare(Provider()))

    def test_vectors_of_other_dimensions(self, store, provider, tmp_path):
        provider.dimension = 32
        with pytest.raises(ValueError, match=r"must have the encoder's dimension 32, got shape \(1100, 48\)"):
            KeyTokensHybridRetriever.from_vectorstore(store)


NEXT_DAY = """
import sys
sys.path[:0] = {paths!r}
from providers import Provider
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_keytokens import KeyTokensHybridRetriever, KeyTokensRetriever
provider = Provider(**{settings!r})
retriever = {kind}.load_local({folder!r}{argument})
print([document.id for document in retriever.invoke({query!r})])
index, calibration = retriever.retriever, retriever.retriever.encoder.calibration
print(len(index), calibration.document_count, sum(provider.documents.values()))
print(dict(provider.queries))
"""


def next_day(folder, kind, argument=", provider", **settings):
    """What a second process prints, or its last line of error."""
    here = Path(__file__).resolve()
    paths = [str(here.parent), str(here.parents[2]), str(here.parents[4])]
    script = NEXT_DAY.format(
        paths=paths, settings=settings, kind=kind, folder=str(folder), argument=argument, query=QUERY
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    return done.stdout.splitlines() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


class TestTheNextDay:
    @pytest.fixture(scope="class")
    def folder(self, abstracts, tmp_path_factory):
        """An index at ``path=``, and its answer."""
        folder = tmp_path_factory.mktemp("first") / "index"
        made = KeyTokensRetriever.from_documents(abstracts, Provider(), path=folder, k=7)
        return folder, [document.id for document in made.invoke(QUERY)]

    def test_a_second_process(self, folder):
        ids, counts, queries = next_day(folder[0], "KeyTokensRetriever")
        assert (ids, counts) == (str(folder[1]), "60 60 0")
        assert queries == str({"dimension": 1, QUERY: 1})

    def test_what_was_saved(self, abstracts, tmp_path):
        made = KeyTokensHybridRetriever.from_documents(abstracts, Provider(), k=7)
        made.save_local(tmp_path / "saved", with_encoder=True)
        ids, counts, _ = next_day(tmp_path / "saved", "KeyTokensHybridRetriever")
        assert (ids, counts) == (str([document.id for document in made.invoke(QUERY)]), "60 60 0")

    def test_left_out(self, folder):
        said = next_day(folder[0], "KeyTokensRetriever", argument="")
        assert said == (
            f"ValueError: encoder must be given for {folder[0]}, which was saved without one, got None. "
            "Pass the embedder that it was made with, Provider text-embedding-x of dimension 48."
        )

    def test_other_dimensions(self, folder):
        assert next_day(folder[0], "KeyTokensRetriever", dimension=32) == (
            f"ValueError: encoder must give vectors of dimension 48, as the embedder that {folder[0]} was made with, "
            "Provider text-embedding-x of dimension 48, got 32 from Provider text-embedding-x. Pass that embedder, "
            "or make a new index."
        )

    def test_another_model(self, folder):
        said = next_day(folder[0], "KeyTokensRetriever", model="text-embedding-y")
        assert re.search(r"made with, Provider text-embedding-x of .*, got Provider text-embedding-y\. Pass", said)

    def test_a_script_that_runs_twice(self, abstracts, folder):
        provider = Provider()
        again = KeyTokensRetriever.from_documents(abstracts, provider, path=folder[0], k=7)
        assert len(again.retriever) == 60 and not provider.documents
        with pytest.raises(ValueError, match="must give vectors of dimension 48"):
            KeyTokensRetriever.from_documents(abstracts, Provider(dimension=32), path=folder[0])

    def test_an_encoder_that_is_not_calibrated_is_so_then(self, folder):
        encoder = KeyTokenEncoder(Provider())
        loaded = KeyTokensRetriever.load_local(folder[0], encoder)
        assert [document.id for document in loaded.invoke(QUERY)] == folder[1]
        assert encoder.calibration.document_count == 60

    def test_an_index_that_nothing_was_added_to(self, abstracts, tmp_path):
        KeyTokensRetriever.from_documents([], Provider(), path=tmp_path / "index", k=3).close()
        opened = KeyTokensRetriever.load_local(tmp_path / "index", Provider())
        assert len(opened.add_documents(abstracts)) == 60
        assert next_day(tmp_path / "index", "KeyTokensRetriever")[1] == "60 60 0"


class TestWhatWasWanted:
    def test_a_number_of_documents_that_is_none(self, abstracts, encoder):
        wanted = "k must be an integer, got str 'many'"
        with pytest.raises(ValueError, match=wanted):
            KeyTokensRetriever.from_documents(abstracts, encoder, k="many")
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder)
        for call in (lambda: retriever.invoke(QUERY, k="many"), lambda: retriever.batch([QUERY, "a"], k="many")):
            with pytest.raises(TypeError, match=wanted):
                call()


def test_the_example_of_stored_vectors(capsys):
    """On the tiny embedder's vectors, written to a file."""
    main = runpy.run_path(str(EXAMPLES / "langchain_stored_vectors.py"))["main"]
    main([])
    *found, embedded, tomorrow = capsys.readouterr().out.splitlines()
    assert len(found) == 3 and found[0].startswith("To parse images") and found[0].endswith("'neural']")
    assert embedded == "0 of 300 documents were embedded again."
    assert tomorrow.endswith("these texts are sent: ['dimension', 'neural networks that parse images']")
