"""A retriever as a vector store and as a document index: what LangChain keeps in step, and builds retrievers on."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.stores import InMemoryStore
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery
from langchain_core.vectorstores import InMemoryVectorStore
from st_keytokens import KeyTokenEncoder

from langchain_keytokens import (
    KeyTokensDocumentIndex,
    KeyTokensEmbeddings,
    KeyTokensHybridRetriever,
    KeyTokensRetriever,
    KeyTokensTranslator,
    KeyTokensVectorStore,
)

QUERY = "electrons in an atom"


def ids(documents):
    return [document.id for document in documents]


@pytest.fixture(params=["sparse", "hybrid", "hybrid over a store"])
def retriever(request, encoder):
    if request.param == "sparse":
        return KeyTokensRetriever.from_documents([], encoder)
    store = InMemoryVectorStore(KeyTokensEmbeddings(encoder)) if "store" in request.param else None
    return KeyTokensHybridRetriever.from_documents([], encoder, vectorstore=store)


def sources(version):
    """Three sources in two versions: the second one is changed, the third goes, a fourth comes."""
    first = {"a": ["stars and gas", "stars and dust"], "b": ["the zebra eats grass"], "c": ["electrons in an atom"]}
    second = {"a": first["a"], "b": ["the zebra drinks water"], "d": ["prime numbers"]}
    return [
        Document(page_content=text, metadata={"source": source})
        for source, texts in (first, second)[version].items()
        for text in texts
    ]


def texts(retriever):
    held = {document.page_content for document in retriever.get_by_ids(retriever.retriever.ids())}
    store = getattr(retriever, "vectorstore", None)
    if store is not None:
        assert {row["text"] for row in store.store.values()} == held
        assert retriever.counts() == {"vectorstore": len(held), "index": len(held)}
    return held


class TestIndexing:
    @pytest.mark.parametrize("kind", [KeyTokensVectorStore, lambda r: KeyTokensDocumentIndex(retriever=r)])
    @pytest.mark.parametrize(
        ("cleanup", "left", "counts"),
        [
            ("full", {"a", "b2", "d"}, (2, 2)),
            ("incremental", {"a", "b2", "c", "d"}, (2, 1)),
            ("scoped_full", {"a", "b2", "c", "d"}, (2, 1)),
            (None, {"a", "b1", "b2", "c", "d"}, (2, 0)),
        ],
    )
    async def test_every_cleanup_mode_leaves_what_it_says_on_both_sides(self, retriever, kind, cleanup, left, counts):
        records = InMemoryRecordManager("n")
        records.create_schema()
        options = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "sha256"}
        destination = kind(retriever)
        result = index(sources(0), records, destination, **options)
        assert (result["num_added"], result["num_deleted"]) == (4, 0)
        again = await aindex(sources(0), records, destination, **options)
        assert (again["num_added"], again["num_skipped"], again["num_deleted"]) == (0, 4, 0)
        result = await aindex(sources(1), records, destination, **options)
        assert (result["num_added"], result["num_deleted"]) == counts
        expected = {
            "a": ["stars and gas", "stars and dust"],
            "b1": ["the zebra eats grass"],
            "b2": ["the zebra drinks water"],
            "c": ["electrons in an atom"],
            "d": ["prime numbers"],
        }
        assert texts(retriever) == {text for name in left for text in expected[name]}
        assert retriever.invoke("zebra", k=1)[0].page_content in {t for n in left & {"b1", "b2"} for t in expected[n]}

    def test_a_document_index_says_what_it_did(self, retriever):
        documents = KeyTokensDocumentIndex(retriever=retriever)
        assert documents.upsert([Document(id="x", page_content="zebra")]) == {"succeeded": ["x"], "failed": []}
        assert documents.get(["x", "y"]) == [Document(id="x", page_content="zebra")]
        assert ids(documents.invoke("zebra")) == ["x"]
        with pytest.raises(ValueError, match="ids must be given, got None"):
            documents.delete()
        assert documents.delete(["x", "y"])["num_deleted"] == 1


class TestStore:
    @pytest.fixture
    def store(self, abstracts, encoder):
        return KeyTokensVectorStore.from_documents(abstracts, KeyTokensEmbeddings(encoder))

    def test_it_finds_what_its_retriever_finds(self, store, abstracts):
        found = store.similarity_search(QUERY, k=3, filter={"position": {"$lt": 30}})
        assert found == store.retriever.invoke(QUERY, k=3, filter={"position": {"$lt": 30}})
        assert all(document in abstracts for document in found)
        pairs = store.similarity_search_with_score(QUERY, k=3)
        assert [score for _, score in pairs] == sorted((score for _, score in pairs), reverse=True)
        assert store.as_retriever(search_kwargs={"k": 3}).invoke(QUERY) == [document for document, _ in pairs]

    def test_by_a_vector(self, store, abstracts, encoder):
        vector = KeyTokensEmbeddings(encoder).embed_documents([abstracts[5].page_content])[0]
        assert store.similarity_search_by_vector(vector, k=1) == [abstracts[5]]
        assert store.similarity_search_by_vector(vector, k=1, filter={"position": 6}) == [abstracts[6]]

    def test_relevance_scores_are_cosines(self, store, encoder):
        found = store.similarity_search_with_relevance_scores(QUERY, k=60)
        assert all(0 <= score <= 1 for _, score in found)
        limited = store.as_retriever(
            search_type="similarity_score_threshold", search_kwargs={"k": 60, "score_threshold": 0.2}
        )
        assert len(limited.invoke(QUERY)) == sum(score >= 0.2 for _, score in found)

    def test_what_is_no_embedding_of_ours_is_refused(self, store):
        with pytest.raises(TypeError, match="embedding must be a KeyTokenEncoder, got str"):
            KeyTokensVectorStore.from_texts(["a"], "all-MiniLM-L6-v2")
        with pytest.raises(TypeError, match=r"retriever must be a KeyTokensRetriever .* got KeyTokenEncoder"):
            KeyTokensVectorStore(store.embeddings.encoder)

    def test_the_next_day(self, store, abstracts, encoder, tmp_path):
        KeyTokensVectorStore.from_documents(abstracts, encoder, path=tmp_path / "index", k=7)
        opened = KeyTokensVectorStore(KeyTokensHybridRetriever.load_local(tmp_path / "index", encoder))
        assert opened.retriever.k == 7
        assert opened.similarity_search(QUERY) == store.similarity_search(QUERY)


class TestRetrieversOnIt:
    @pytest.fixture(autouse=True)
    def _classic(self):
        pytest.importorskip("langchain_classic")

    def test_parent_documents(self, abstracts, encoder):
        from langchain_classic.retrievers import ParentDocumentRetriever
        from langchain_text_splitters import RecursiveCharacterTextSplitter

        store = KeyTokensVectorStore.from_documents([], KeyTokensEmbeddings(encoder))
        splitter = RecursiveCharacterTextSplitter(chunk_size=300, chunk_overlap=0)
        parents = ParentDocumentRetriever(vectorstore=store, docstore=InMemoryStore(), child_splitter=splitter)
        parents.add_documents(abstracts[:20], ids=ids(abstracts[:20]))
        assert len(store.retriever.retriever) > 40
        sentence = abstracts[11].page_content[50:200]
        assert parents.invoke(sentence)[0].page_content == abstracts[11].page_content

    def test_several_vectors_a_document(self, abstracts, encoder):
        from langchain_classic.retrievers import MultiVectorRetriever

        store = KeyTokensVectorStore.from_documents([], KeyTokensEmbeddings(encoder))
        several = MultiVectorRetriever(vectorstore=store, docstore=InMemoryStore(), id_key="whole")
        store.add_documents([Document(page_content="a zebra", metadata={"whole": "w"})])
        several.docstore.mset([("w", abstracts[0])])
        assert several.invoke("zebra") == [abstracts[0]]

    def test_self_query(self, abstracts, encoder):
        from langchain_classic.retrievers import SelfQueryRetriever
        from langchain_core.runnables import RunnableLambda

        store = KeyTokensVectorStore.from_documents(abstracts, KeyTokensEmbeddings(encoder))
        early = Comparison(comparator=Comparator.LT, attribute="position", value=30)
        physics = Comparison(comparator=Comparator.IN, attribute="archive", value=["astro-ph", "hep-ph"])
        both = Operation(operator=Operator.AND, arguments=[early, physics])
        model = RunnableLambda(lambda _: StructuredQuery(query=QUERY, filter=both, limit=50))
        asked = SelfQueryRetriever(
            query_constructor=model,
            vectorstore=store,
            structured_query_translator=KeyTokensTranslator(),
            use_original_query=False,
        )
        wanted = {d.id for d in abstracts[:30] if d.metadata["archive"] in ("astro-ph", "hep-ph")}
        assert wanted and set(ids(asked.invoke("early papers on particles", k=50))) <= wanted

    def test_a_filter_that_is_not_so(self):
        old = Comparison(comparator=Comparator.LT, attribute="at", value={"type": "date", "date": "2020-01-01"})
        query = StructuredQuery(query="q", filter=Operation(operator=Operator.NOT, arguments=[old]), limit=None)
        assert KeyTokensTranslator().visit_structured_query(query) == (
            "q",
            {"filter": {"$not": {"at": {"$lt": "2020-01-01"}}}},
        )


def test_queries_that_find_the_same_document_find_one(abstracts, encoder):
    retrievers = pytest.importorskip("langchain_classic.retrievers")
    from langchain_core.runnables import RunnableLambda

    hybrid = KeyTokensHybridRetriever.from_documents(abstracts, encoder, k=10)
    asked = RunnableLambda(lambda _: [QUERY, "atoms and electrons", "an electron"])
    found = retrievers.MultiQueryRetriever(retriever=hybrid, llm_chain=asked).invoke(QUERY)
    assert len(set(ids(found))) == len(found) > 10


def test_an_encoder_may_stand_for_its_embeddings(encoder):
    assert isinstance(encoder, KeyTokenEncoder)
    store = KeyTokensVectorStore.from_texts(["zebra"], encoder, ids=["z"])
    assert ids(store.similarity_search("zebra")) == ["z"]


class TestDiversity:
    @pytest.fixture
    def store(self, abstracts, encoder):
        return KeyTokensVectorStore.from_documents(abstracts, KeyTokensEmbeddings(encoder))

    def test_as_the_hosts_own_store_chooses(self, store, abstracts, encoder):
        own = InMemoryVectorStore(KeyTokensEmbeddings(encoder))
        own.add_documents(abstracts)
        vector = KeyTokensEmbeddings(encoder).embed_query(QUERY)
        for lambda_mult in (0.0, 0.3, 0.5, 1.0):
            options = {"k": 5, "fetch_k": 12, "lambda_mult": lambda_mult}
            expected = [d.id for d in own.max_marginal_relevance_search_by_vector(vector, **options)]
            assert [d.id for d in store.max_marginal_relevance_search_by_vector(vector, **options)] == expected

    async def test_of_the_best_of_both_sides(self, store, passes, encoder, abstracts):
        best = [d.id for d in store.similarity_search(QUERY, 8)]
        found = store.max_marginal_relevance_search(QUERY, k=8, fetch_k=8)
        assert sorted(d.id for d in found) == sorted(best) and [d.id for d in found] != best
        retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 3, "fetch_k": 8, "lambda_mult": 0.2})
        passes.texts = 0
        three = retriever.invoke("light of distant stars")
        assert passes.texts <= 1 and len(three) == 3
        assert await retriever.ainvoke("light of distant stars") == three

    def test_what_is_filtered_out_stays_out(self, store):
        found = store.max_marginal_relevance_search(QUERY, k=4, filter={"position": {"$lt": 6}})
        assert len(found) == 4 and all(d.metadata["position"] < 6 for d in found)
        assert store.max_marginal_relevance_search(QUERY, filter={"position": -1}) == []

    def test_wrong_ones(self, store, abstracts, encoder):
        with pytest.raises(ValueError, match="lambda_mult must be from 0 to 1, got 2"):
            store.max_marginal_relevance_search(QUERY, lambda_mult=2)
        with pytest.raises(ValueError, match="fetch_k must be >= 1, got 0"):
            store.max_marginal_relevance_search(QUERY, fetch_k=0)
        sparse = KeyTokensVectorStore(KeyTokensRetriever.from_documents(abstracts, encoder))
        with pytest.raises(ValueError, match="maximal marginal relevance must have dense vectors in the index"):
            sparse.max_marginal_relevance_search(QUERY)
