"""More retrievers as sides of a hybrid, and one hit for each source."""

from __future__ import annotations

import pickle

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever, KeyTokensRetriever, KeyTokensVectorStore

QUERY = "electrons in an atom"


class Listed(BaseRetriever):
    """Finds the same documents for every query."""

    documents: list[Document]
    fails: bool = False

    def _get_relevant_documents(self, query, *, run_manager):
        if self.fails:
            raise ConnectionError("no answer")
        return self.documents


class Starts(BaseCallbackHandler):
    def __init__(self):
        self.parents = []

    def on_retriever_start(self, serialized, query, *, run_id, parent_run_id=None, **rest):
        self.parents.append(parent_run_id)


@pytest.fixture(scope="module")
def documents(abstracts):
    return [
        Document(id=d.id, page_content=d.page_content, metadata={"source": n // 3, "n": n})
        for n, d in enumerate(abstracts)
    ]


def numbers(documents):
    return [document.metadata["n"] for document in documents]


@pytest.fixture(params=["own index", "vector store"])
def make(request, documents, encoder):
    def make(**settings):
        if request.param == "vector store":
            settings["vectorstore"] = InMemoryVectorStore(KeyTokensEmbeddings(encoder))
        return KeyTokensHybridRetriever.from_documents(documents, encoder, **{"scores_key": "scores", **settings})

    return make


class TestSides:
    async def test_reciprocal_ranks_of_four_sides_by_hand(self, make, documents):
        nameless = [Document(page_content=documents[n].page_content) for n in (7, 50)]
        sides = {"words": Listed(documents=[documents[50], documents[3]]), "names": Listed(documents=nameless)}
        weights = {"dense": 1.0, "sparse": 2.0, "words": 3.0, "names": 0.5}
        hybrid = make(retrievers=sides, weights=weights, fusion="rrf", k=60, score_key="score")
        plain = make(fusion="rrf", k=60)
        dense = sorted(plain.invoke(QUERY), key=lambda d: -d.metadata["scores"]["dense"])
        sparse = [d for d in plain.invoke(QUERY) if "sparse" in d.metadata["scores"]]
        sparse.sort(key=lambda d: -d.metadata["scores"]["sparse"])
        expected = dict.fromkeys(range(60), 0.0)
        for weight, ranking in ((1, numbers(dense)), (2, numbers(sparse)), (3, [50, 3]), (0.5, [7, 50])):
            for rank, number in enumerate(ranking, 1):
                expected[number] += weight / (60 + rank)
        found = hybrid.invoke(QUERY)
        assert len(found) == 60  # those of the nameless are the index's own
        assert {d.metadata["n"]: d.metadata["score"] for d in found} == pytest.approx(expected)
        assert numbers(found)[0] == max(expected, key=expected.get)
        assert [d.id for d in await hybrid.ainvoke(QUERY)] == [d.id for d in found]
        assert [d.id for d in hybrid.batch([QUERY, "stars"])[0]] == [d.id for d in found]
        assert [d.id for d in KeyTokensVectorStore(hybrid).similarity_search(QUERY, 60)] == [d.id for d in found]

    @pytest.mark.parametrize("fusion", ["adaptive", "score"])
    def test_one_without_scores_counts_by_its_ranks(self, make, documents, fusion):
        weights = {"dense": 0.0, "sparse": 0.0}
        words = Listed(documents=[documents[n] for n in (9, 4, 30)])
        hybrid = make(retrievers={"words": words}, weights=weights, fusion=fusion, k=3, score_key="score")
        found = hybrid.invoke(QUERY)
        assert [(d.metadata["n"], d.metadata["score"]) for d in found][:2] == [(9, 1.0), (4, 0.5)]
        assert "words" not in found[0].metadata["scores"]

    def test_ours_counts_by_its_scores(self, make, documents, encoder):
        side = KeyTokensRetriever.from_documents(documents, encoder, k=5)
        hybrid = make(retrievers={"words": side}, weights={"dense": 0.0, "sparse": 0.0}, k=4)
        ranked = side.search_with_scores(QUERY)[:4]
        found = [(d.id, d.metadata["scores"]["words"]) for d in hybrid.invoke(QUERY)]
        assert found == [(d.id, score) for d, score in ranked]

    def test_a_document_of_another_alone_comes_back_as_it_is(self, make, documents):
        other = Document(id="elsewhere", page_content="An electron", metadata={"n": 99})
        hybrid = make(retrievers={"words": Listed(documents=[other])}, weights={"words": 9.0}, k=1, scores_key=None)
        assert hybrid.invoke(QUERY) == [other]

    @pytest.mark.parametrize(
        "filter", [{"n": {"$lt": 40}}, lambda d: d.metadata.get("n", 99) < 40], ids=["dict", "call"]
    )
    async def test_what_is_filtered_out_comes_back_from_none(self, make, documents, filter):
        other = Document(page_content="An electron", metadata={"n": 99})
        unknown = Document(page_content="Of which nothing is said")
        words = Listed(documents=[documents[50], other, unknown, documents[3]])
        hybrid = make(retrievers={"words": words}, k=60)
        for found in (hybrid.invoke(QUERY, filter=filter), await hybrid.ainvoke(QUERY, filter=filter)):
            assert set(numbers(found)) == set(range(40))

    async def test_every_side_has_to_answer(self, make):
        hybrid = make(retrievers={"words": Listed(documents=[], fails=True)})
        with pytest.raises(ConnectionError, match="no answer"):
            hybrid.invoke(QUERY)
        with pytest.raises(ConnectionError, match="no answer"):
            await hybrid.ainvoke(QUERY)
        assert hybrid.invoke("  ") == []

    async def test_callbacks_see_them_as_children(self, make, documents):
        hybrid, starts = make(retrievers={"words": Listed(documents=documents[:2])}), Starts()
        hybrid.invoke(QUERY, config={"callbacks": [starts]})
        await hybrid.ainvoke(QUERY, config={"callbacks": [starts]})
        assert [parent is None for parent in starts.parents] == [True, False, True, False]

    def test_they_are_given_again(self, documents, encoder, tmp_path):
        sides = {"words": Listed(documents=documents[:2])}
        hybrid = KeyTokensHybridRetriever.from_documents(documents, encoder, retrievers=sides, weights={"words": 2.0})
        hybrid.save_local(tmp_path)
        with pytest.raises(ValueError, match="retrievers must be given to load this retriever"):
            KeyTokensHybridRetriever.load_local(tmp_path, encoder)
        loaded = KeyTokensHybridRetriever.load_local(tmp_path, encoder, retrievers=sides)
        assert loaded.invoke(QUERY) == hybrid.invoke(QUERY) == pickle.loads(pickle.dumps(hybrid)).invoke(QUERY)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"retrievers": [Listed(documents=[])]},
                "retrievers must be a dictionary of retrievers by name, got list",
            ),
            (
                {"retrievers": Listed(documents=[])},
                "retrievers must be a dictionary of retrievers by name, got Listed",
            ),
            ({"retrievers": {"dense": Listed(documents=[])}}, "must have names other than 'dense' and 'sparse'"),
            ({"retrievers": {"words": "bm25"}}, "retrievers must be retrievers, got str for 'words'"),
            ({"weights": {"bm25": 1.0}}, "weights must be one of 'dense', 'sparse', got 'bm25'"),
        ],
    )
    def test_wrong_ones(self, encoder, settings, message):
        with pytest.raises(ValueError, match=message):
            KeyTokensHybridRetriever.from_texts(["a"], encoder, **settings)


class TestGroups:
    @pytest.mark.parametrize("k", [4, 20])
    async def test_one_hit_for_each_source(self, make, k):
        everything = make(k=60).invoke(QUERY)
        firsts = list({d.metadata["source"]: d for d in reversed(everything)}.values())[::-1]
        hybrid = make(k=k, group_by="source")
        found = hybrid.invoke(QUERY)
        assert len(found) == k == len({d.metadata["source"] for d in found})
        assert {d.id for d in found} <= {d.id for d in firsts}
        assert found[0].id == everything[0].id
        assert [d.id for d in await hybrid.ainvoke(QUERY)] == [d.id for d in found]

    def test_as_deep_as_it_takes(self, encoder):
        texts = [f"an atom of kind {n}" for n in range(300)]
        metadatas = [{"source": {"page": 1}} for _ in texts[:-1]] + [{}]
        retriever = KeyTokensRetriever.from_texts(texts, encoder, metadatas, k=2, group_by="source")
        assert sorted(len(d.metadata) for d in retriever.invoke("atom")) == [0, 1]

    def test_a_wrong_key(self, encoder):
        with pytest.raises(ValueError, match="group_by"):
            KeyTokensRetriever.from_texts(["a"], encoder, group_by=["source"])

    def test_it_is_saved(self, documents, encoder, tmp_path):
        KeyTokensRetriever.from_documents(documents, encoder, path=tmp_path / "r", group_by="source")
        assert KeyTokensRetriever.load_local(tmp_path / "r", encoder).group_by == "source"
