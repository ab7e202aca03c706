from __future__ import annotations

import copy

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from pydantic import ValidationError
from st_keytokens import KeyTokenEncoder, adaptive_fusion, reciprocal_rank_fusion, score_fusion
from st_keytokens.retrieval import Retriever, SearchSettings

from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever

SCORED = {"score_key": "score", "scores_key": "scores"}
QUERY = "electrons in an atom"


def ids(documents):
    return [document.id for document in documents]


def scores(documents):
    return [document.metadata["score"] for document in documents]


@pytest.fixture
def store(encoder):
    return InMemoryVectorStore(KeyTokensEmbeddings(encoder))


@pytest.fixture(params=["own index", "vector store"])
def retriever(request, abstracts, encoder, store):
    vectorstore = None if request.param == "own index" else store
    return KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=vectorstore, **SCORED)


class TestSearch:
    @pytest.mark.parametrize(
        ("fusion", "fuse"), [("adaptive", adaptive_fusion), ("score", score_fusion), ("rrf", reciprocal_rank_fusion)]
    )
    def test_it_is_the_fusion_of_both_rankings(self, retriever, abstracts, encoder, fusion, fuse):
        texts = [document.page_content for document in abstracts]
        documents, query = encoder.encode_document(texts), encoder.encode_query([QUERY], is_hybrid=True)
        unit = documents.dense / np.linalg.norm(documents.dense, axis=1, keepdims=True)
        dense = unit @ query.dense[0] / np.linalg.norm(query.dense[0])
        sparse = (documents.sparse.to_scipy() @ query.sparse.to_scipy().T).toarray().ravel()
        rankings = {
            "dense": [(abstracts[row].id, float(dense[row])) for row in np.argsort(-dense)],
            "sparse": [(abstracts[row].id, float(sparse[row])) for row in np.argsort(-sparse) if sparse[row] > 0],
        }
        expected = fuse(rankings, weights=encoder.fusion_weights)[:10]
        retriever.fusion = fusion
        found = retriever.invoke(QUERY, k=10)
        assert ids(found) == [hit.id for hit in expected]
        assert scores(found) == pytest.approx([hit.score for hit in expected], rel=1e-4)
        for document, hit in zip(found, expected, strict=True):
            assert document.metadata["scores"] == pytest.approx(hit.components, rel=1e-4, abs=1e-6)

    def test_a_query_takes_one_forward_pass(self, retriever, passes):
        passes.texts = 0
        retriever.invoke(QUERY)
        assert passes.texts == 1

    async def test_asynchronously_too(self, retriever, passes):
        passes.texts = 0
        await retriever.ainvoke(QUERY)
        assert passes.texts == 1

    def test_a_document_takes_one_forward_pass(self, passes, retriever, abstracts):
        assert passes.texts == len(abstracts)

    async def test_asynchronous_search_gives_the_same(self, retriever):
        assert await retriever.ainvoke(QUERY, k=3) == retriever.invoke(QUERY, k=3)

    def test_a_store_with_other_embeddings_counts_as_much_as_we_do(self, abstracts, encoder):
        """How far our embedder is trusted says nothing about another one."""
        store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        assert encoder.fusion_weights["dense"] != 1.0
        found = KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, k=60, **SCORED).invoke(
            QUERY
        )
        rankings = {
            side: sorted(
                ((d.id, d.metadata["scores"][side]) for d in found if side in d.metadata["scores"]),
                key=lambda hit: -hit[1],
            )
            for side in ("dense", "sparse")
        }
        expected = {hit.id: hit.score for hit in adaptive_fusion(rankings)}
        assert {d.id: d.metadata["score"] for d in found} == pytest.approx(expected)

    def test_weights(self, retriever, encoder):
        """The query's own words, and less of what its embedding says, which is on the dense side as well."""
        settings = {"retriever": retriever.retriever, "vectorstore": retriever.vectorstore, "k": 5}
        sparse_alone = KeyTokensHybridRetriever(**settings, weights={"dense": 0.0})
        found = sparse_alone.invoke(QUERY)
        query = encoder.encode_query(QUERY, is_hybrid=True)
        (hits,) = retriever.retriever.index.search(query, mode="sparse", top_k=5)
        assert ids(found) == [hit.id for hit in hits]

    def test_matched_tokens(self, retriever):
        retriever.matches_key = "matches"
        for document in retriever.invoke(QUERY):
            total = sum(match["contribution"] for match in document.metadata["matches"])
            assert total == pytest.approx(document.metadata["scores"].get("sparse", 0.0), rel=1e-4)

    def test_the_callers_documents_are_not_changed(self, abstracts, encoder, store):
        before = copy.deepcopy(abstracts)
        KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, **SCORED).invoke(QUERY)
        assert abstracts == before
        assert all(set(entry["metadata"]) == {"archive", "position"} for entry in store.store.values())


class TestFilter:
    def test_filtered_out_documents_are_never_returned(self, retriever, abstracts):
        allowed = {document.id for document in abstracts if document.metadata["archive"] == "astro-ph"}
        assert set(ids(retriever.invoke(QUERY, k=60, filter={"archive": "astro-ph"}))) == allowed

    def test_the_store_is_asked_for_more_until_enough_pass(self, abstracts, encoder, store):
        retriever = KeyTokensHybridRetriever.from_documents(
            abstracts, encoder, vectorstore=store, depth=2, k=2, **SCORED
        )
        dense_last = ids(document for document, _ in store.similarity_search_with_score(QUERY, k=60))[-2:]
        found = retriever.invoke(QUERY, filter=dense_last)
        assert sorted(ids(found)) == sorted(dense_last)
        assert all("dense" in document.metadata["scores"] for document in found)

    async def test_asynchronously_too(self, abstracts, encoder, store):
        retriever = KeyTokensHybridRetriever.from_documents(
            abstracts, encoder, vectorstore=store, depth=2, k=2, **SCORED
        )
        assert len(await retriever.ainvoke(QUERY, filter={"position": {"$gte": 55}})) == 2

    def test_a_missing_key_matches_nothing(self, retriever):
        assert retriever.invoke(QUERY, filter={"no such key": 1}) == []

    def test_the_stores_own_filter(self, abstracts, encoder, store):
        retriever = KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, **SCORED)
        found = retriever.invoke(
            QUERY, k=60, search_kwargs={"filter": lambda document: document.id == abstracts[4].id}
        )
        assert ids(found) == [abstracts[4].id]

    def test_search_kwargs_without_a_store_are_refused(self, abstracts, encoder):
        retriever = KeyTokensHybridRetriever.from_documents(abstracts, encoder, **SCORED)
        with pytest.raises(ValueError, match="search_kwargs must be for a vector store"):
            retriever.invoke(QUERY, search_kwargs={"filter": None})


class TestJoining:
    """A document is known by Document.id first; by the id in its metadata, or its text, where a store sets none."""

    TEXTS = ("stars and gas", "stars and dust", "stars and gas")

    class Anonymous(InMemoryVectorStore):
        """A store that gives no ids, or gives them in the metadata, as langchain-qdrant and langchain-milvus do."""

        key = None

        def similarity_search_with_score(self, query, k=4, **kwargs):
            ranked = super().similarity_search_with_score(query, k, **kwargs)
            return [
                (
                    Document(
                        page_content=d.page_content, metadata={**d.metadata, **({self.key: d.id} if self.key else {})}
                    ),
                    s,
                )
                for d, s in ranked
            ]

    def test_two_documents_of_one_text_stay_two(self, encoder, store):
        retriever = KeyTokensHybridRetriever.from_texts(
            self.TEXTS, encoder, ids=["a", "b", "c"], vectorstore=store, **SCORED
        )
        assert sorted(ids(retriever.invoke("stars"))) == ["a", "b", "c"]

    def test_by_an_id_in_the_metadata(self, encoder):
        store = self.Anonymous(KeyTokensEmbeddings(encoder))
        store.key = "_id"
        retriever = KeyTokensHybridRetriever.from_texts(
            self.TEXTS, encoder, ids=["a", "b", "c"], vectorstore=store, id_key="_id", **SCORED
        )
        found = retriever.invoke("stars")
        assert sorted(ids(found)) == ["a", "b", "c"]
        assert all(set(document.metadata["scores"]) == {"dense", "sparse"} for document in found)

    def test_by_text(self, encoder):
        store = self.Anonymous(KeyTokensEmbeddings(encoder))
        retriever = KeyTokensHybridRetriever.from_texts(
            self.TEXTS[:2], encoder, ids=["a", "b"], vectorstore=store, **SCORED
        )
        found = retriever.invoke("stars")
        assert sorted(ids(found)) == ["a", "b"]
        assert all(set(document.metadata["scores"]) == {"dense", "sparse"} for document in found)

    def test_a_document_that_only_the_store_has(self, encoder, store):
        retriever = KeyTokensHybridRetriever.from_texts(
            ["stars and gas"], encoder, ids=["a"], vectorstore=store, **SCORED
        )
        store.add_documents([Document(id="s", page_content="stars and dust", metadata={"x": 1})])
        found = {document.id: document for document in retriever.invoke("stars")}
        assert found["s"].page_content == "stars and dust"
        assert (found["s"].metadata["x"], set(found["s"].metadata["scores"])) == (1, {"dense"})
        assert set(found["a"].metadata["scores"]) == {"dense", "sparse"}

    def test_documents_that_the_store_holds_already(self, abstracts, encoder, store, passes):
        store.add_documents(abstracts)
        retriever = KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store, **SCORED)
        retriever.add_documents(abstracts, is_in_vectorstore=True)
        assert passes.texts == len(abstracts)
        assert len(store.store) == len(abstracts)
        assert all(
            set(document.metadata["scores"]) == {"dense", "sparse"} for document in retriever.invoke(QUERY, k=2)
        )


class TestStores:
    """Stores of other kinds than similarity with scores."""

    class Distances(InMemoryVectorStore):
        def similarity_search_with_score(self, query, k=4, **kwargs):
            return [(found, 1 - score) for found, score in super().similarity_search_with_score(query, k, **kwargs)]

    class WithoutScores(InMemoryVectorStore):
        similarity_search_with_score = VectorStore.similarity_search_with_score
        asimilarity_search_with_score = VectorStore.asimilarity_search_with_score

        def similarity_search(self, query, k=4, **kwargs):
            return self.similarity_search_by_vector(self.embedding.embed_query(query), k, **kwargs)

        async def asimilarity_search(self, query, k=4, **kwargs):
            return self.similarity_search(query, k, **kwargs)

    @pytest.mark.parametrize("fusion", ["rrf", "score", "adaptive"])
    def test_distances_are_not_taken_for_similarities(self, abstracts, encoder, store, fusion):
        distances = self.Distances(KeyTokensEmbeddings(encoder))
        found = [
            ids(
                KeyTokensHybridRetriever.from_documents(
                    abstracts, encoder, vectorstore=each, fusion=fusion, **SCORED
                ).invoke(QUERY)
            )
            for each in (store, distances)
        ]
        assert found[0] == found[1]

    async def test_a_store_without_scores_is_ranked_by(self, abstracts, encoder, store):
        found = []
        for each in (self.WithoutScores(KeyTokensEmbeddings(encoder)), store):
            retriever = KeyTokensHybridRetriever.from_documents(
                abstracts, encoder, vectorstore=each, fusion="rrf", **SCORED
            )
            found.append(retriever.invoke(QUERY))
            assert ids(await retriever.ainvoke(QUERY)) == ids(found[-1])
        assert ids(found[0]) == ids(found[1])
        assert [set(document.metadata["scores"]) for document in found[0]] == [{"sparse"}] * 4

    def test_but_its_scores_cannot_be_fused(self, abstracts, encoder):
        silent = self.WithoutScores(KeyTokensEmbeddings(encoder))
        retriever = KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=silent, **SCORED)
        with pytest.raises(ValueError, match="must have scores for fusion='adaptive', got None"):
            retriever.invoke(QUERY)

    def test_a_store_that_names_its_documents_itself(self, encoder):
        class Numbering(InMemoryVectorStore):
            def add_documents(self, documents, ids=None, **kwargs):
                return super().add_documents(documents, [str(100 + i) for i in range(len(documents))])

        retriever = KeyTokensHybridRetriever.from_texts(
            ["stars", "gas"], encoder, vectorstore=Numbering(KeyTokensEmbeddings(encoder)), **SCORED
        )
        assert sorted(ids(retriever.invoke("stars"))) == ["100", "101"]


class TestChanges:
    def test_added_and_deleted_on_both_sides(self, retriever, abstracts):
        (new,) = retriever.add_texts(["The zebra eats grass."])
        (found,) = retriever.invoke("zebra", k=1)
        assert (found.id, set(found.metadata["scores"])) == (new, {"dense", "sparse"})
        assert retriever.delete([new]) == 1
        assert new not in ids(retriever.invoke("zebra", k=61))

    async def test_asynchronously(self, retriever):
        (new,) = await retriever.aadd_documents([Document(page_content="The zebra eats grass.")])
        assert (await retriever.ainvoke("zebra", k=1))[0].id == new
        assert await retriever.adelete([new]) == 1
        assert new not in ids(await retriever.ainvoke("zebra", k=61))

    def test_replaced_on_both_sides(self, retriever, abstracts):
        retriever.add_texts(["The zebra eats grass."], ids=[abstracts[0].id])
        found = retriever.invoke("zebra", k=60)
        assert found[0].id == abstracts[0].id and set(found[0].metadata["scores"]) == {"dense", "sparse"}
        assert len(set(ids(found))) == len(found) == 60

    def test_what_the_index_refuses_never_reaches_the_store(self, abstracts, encoder, store):
        retriever = KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, **SCORED)
        before = copy.deepcopy(store.store)
        with pytest.raises(ValueError, match="ids must be new"):
            retriever.add_texts(["new", "new"], ids=["n", abstracts[0].id], on_conflict="error")
        with pytest.raises(ValueError, match="ids must be unique"):
            retriever.add_texts(["new", "new"], ids=["n", "n"])
        with pytest.raises(TypeError, match="for 'model'"):
            retriever.add_texts(["new"], [{"model": object()}])
        assert store.store == before


class TestFailingStore:
    """A store that fails fails the call, and never leaves the two sides silently apart."""

    class Failing(InMemoryVectorStore):
        fails_at = frozenset()

        def similarity_search_with_score(self, query, k=4, **kwargs):
            self.check("search")
            return super().similarity_search_with_score(query, k, **kwargs)

        async def asimilarity_search_with_score(self, query, k=4, **kwargs):
            self.check("search")
            return await super().asimilarity_search_with_score(query, k, **kwargs)

        def add_documents(self, documents, ids=None, **kwargs):
            super().add_documents(documents[:1], ids[:1])
            self.check("add")
            try:
                return super().add_documents(documents, ids)
            finally:
                self.after_adding()

        def after_adding(self):
            pass

        async def aadd_documents(self, documents, ids=None, **kwargs):
            return self.add_documents(documents, ids)

        def delete(self, ids=None, **kwargs):
            self.check("delete")
            return super().delete(ids)

        def check(self, step):
            if step in self.fails_at:
                raise ConnectionError(f"the store is gone at {step}")

    @pytest.fixture
    def failing(self, encoder):
        return self.Failing(KeyTokensEmbeddings(encoder))

    @pytest.fixture
    def retriever(self, abstracts, encoder, failing):
        return KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=failing, **SCORED)

    async def test_at_a_search(self, retriever, failing):
        failing.fails_at = {"search"}
        with pytest.raises(ConnectionError, match="gone at search"):
            retriever.invoke(QUERY)
        with pytest.raises(ConnectionError, match="gone at search"):
            await retriever.ainvoke(QUERY)

    async def test_midway_through_adding(self, retriever, failing, abstracts):
        failing.fails_at = {"add"}
        new = [Document(id="x", page_content="zebra"), Document(id="y", page_content="zebras")]
        with pytest.raises(ConnectionError, match="gone at add"):
            retriever.add_documents(new)
        with pytest.raises(ConnectionError, match="gone at add"):
            await retriever.aadd_documents(new)
        assert len(retriever.retriever) == len(abstracts)
        failing.fails_at = frozenset()
        retriever.add_documents(new)
        assert set(ids(retriever.invoke("zebra", k=2))) == {"x", "y"}

    def test_at_deleting(self, retriever, failing, abstracts):
        failing.fails_at = {"delete"}
        with pytest.raises(ConnectionError, match="gone at delete"):
            retriever.delete([abstracts[0].id])
        assert abstracts[0].id in retriever.retriever.index

    def test_a_store_that_says_no_to_deleting(self, abstracts, encoder):
        class Stubborn(InMemoryVectorStore):
            def delete(self, ids=None, **kwargs):
                return False

        store = Stubborn(KeyTokensEmbeddings(encoder))
        retriever = KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, **SCORED)
        with pytest.raises(RuntimeError, match="must delete what it is asked to, got False"):
            retriever.delete([abstracts[0].id])
        assert abstracts[0].id in retriever.retriever.index

    async def test_an_index_that_fails_takes_the_documents_out_of_the_store(self, retriever, failing):
        retriever.add_texts(["zebra"], ids=["w"])
        failing.after_adding = retriever.retriever.index.close
        with pytest.raises(Exception, match="closed"):
            retriever.add_texts(["zebra"], ids=["x"])
        assert "x" not in failing.store and "w" in failing.store


class TestOneEmptySide:
    """A hybrid search of one side alone is an error, and never taken for a hybrid one."""

    async def test_a_store_that_lost_its_documents(self, abstracts, encoder, store, tmp_path):
        KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, **SCORED).save_local(tmp_path)
        lost = InMemoryVectorStore(KeyTokensEmbeddings(encoder))
        loaded = KeyTokensHybridRetriever.load_local(tmp_path, encoder, vectorstore=lost)
        with pytest.raises(ValueError, match="got no hit from it beside 60 in the index"):
            loaded.invoke(QUERY)
        with pytest.raises(ValueError, match="got no hit from it beside 60 in the index"):
            await loaded.ainvoke(QUERY)

    async def test_an_index_that_never_got_the_documents(self, abstracts, encoder, store):
        store.add_documents(abstracts)
        retriever = KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store, **SCORED)
        for filter in (None, {"position": 3}):
            with pytest.raises(
                ValueError, match="the index must hold the documents of the vector store, got an empty"
            ):
                retriever.invoke(QUERY, filter=filter)
            with pytest.raises(
                ValueError, match="the index must hold the documents of the vector store, got an empty"
            ):
                await retriever.ainvoke(QUERY, filter=filter)

    def test_filters_may_leave_nothing_of_the_store(self, abstracts, encoder, store):
        retriever = KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, **SCORED)
        found = retriever.invoke(QUERY, search_kwargs={"filter": lambda document: False})
        assert found == []


class TestSettings:
    def test_an_index_without_dense_vectors_needs_a_store(self, encoder):
        with pytest.raises(ValidationError, match="vectorstore must be given for an index without dense vectors"):
            KeyTokensHybridRetriever(retriever=Retriever(encoder, has_dense=False))

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"fusion": "max"}, "Input should be 'adaptive', 'score' or 'rrf'"),
            ({"weights": {"bm25": 1.0}}, "weights"),
            ({"weights": {"dense": -1.0}}, "weights"),
            ({"depth": 0}, "greater than or equal to 1"),
        ],
    )
    def test_a_setting_out_of_its_range_is_refused(self, encoder, setting, message):
        with pytest.raises(ValidationError, match=message):
            KeyTokensHybridRetriever(retriever=Retriever(encoder), **setting)

    def test_scores_are_fused_by_default(self, retriever):
        assert retriever.fusion == SearchSettings().fusion == "adaptive"

    def test_another_encoder_is_refused(self, retriever, encoder, tmp_path):
        retriever.save_local(tmp_path)
        other = KeyTokenEncoder(encoder.model, max_active_dims=7)
        with pytest.raises(ValueError, match="fingerprint must be"):
            KeyTokensHybridRetriever.load_local(tmp_path, other, vectorstore=retriever.vectorstore)

    def test_saved_and_loaded(self, retriever, encoder, tmp_path):
        retriever.fusion, retriever.weights = "score", {"dense": 0.3}
        retriever.save_local(tmp_path)
        loaded = KeyTokensHybridRetriever.load_local(tmp_path, encoder, vectorstore=retriever.vectorstore)
        assert (loaded.fusion, loaded.weights) == ("score", {"dense": 0.3})
        assert loaded.invoke(QUERY) == retriever.invoke(QUERY)

    def test_loading_without_the_store_is_refused(self, abstracts, encoder, store, tmp_path):
        KeyTokensHybridRetriever.from_documents(abstracts, encoder, vectorstore=store, **SCORED).save_local(tmp_path)
        with pytest.raises(ValidationError, match="Pass the vector store that it was made with"):
            KeyTokensHybridRetriever.load_local(tmp_path, encoder)


class TestOddInput:
    def test_an_empty_store_gives_nothing(self, encoder, store):
        assert KeyTokensHybridRetriever.from_texts([], encoder, **SCORED).invoke(QUERY) == []
        assert KeyTokensHybridRetriever.from_texts([], encoder, vectorstore=store, **SCORED).invoke(QUERY) == []

    def test_more_than_there_are_documents(self, retriever, abstracts):
        assert len(retriever.invoke(QUERY, k=1000)) == len(abstracts)

    @pytest.mark.parametrize("query", ["", " \n"])
    async def test_a_query_of_white_space_gives_nothing(self, retriever, query):
        assert retriever.invoke(query) == await retriever.ainvoke(query) == []

    def test_a_query_that_shares_no_term_says_so_in_the_scores(self, encoder, store, monkeypatch):
        monkeypatch.setattr(encoder, "query", "lookup")
        for vectorstore in (None, store):
            retriever = KeyTokensHybridRetriever.from_texts(["---", "..."], encoder, vectorstore=vectorstore, **SCORED)
            found = retriever.invoke("zebra")
            assert len(found) == 2
            assert all(set(document.metadata["scores"]) == {"dense"} for document in found)

    def test_chinese_and_mixed_scripts(self, encoder, store):
        """The sparse side tells them apart, whatever the dense one of a small English model says."""
        texts = ["行星围绕恒星运行。", "mRNA疫苗 stops COVID-19", "电子带有负电荷。", "Ёжик в тумане, a film"]
        for vectorstore in (None, store):
            retriever = KeyTokensHybridRetriever.from_texts(
                texts, encoder, vectorstore=vectorstore, k=1, weights={"sparse": 3.0}, **SCORED
            )
            for query, text in zip(["恒星", "mRNA 疫苗", "电子", "Ёжик film"], texts, strict=True):
                (found,) = retriever.invoke(query)
                assert found.page_content == text
                assert set(found.metadata["scores"]) == {"dense", "sparse"}

    def test_an_id_twice_is_refused_and_nothing_added(self, retriever, abstracts):
        with pytest.raises(ValueError, match="ids must be unique, got 'a' twice"):
            retriever.add_texts(["one", "two"], ids=["a", "a"])
        assert len(retriever.retriever) == len(abstracts)
