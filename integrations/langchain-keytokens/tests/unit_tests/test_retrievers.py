from __future__ import annotations

import copy
import datetime
import json
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from pydantic import ValidationError
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import Retriever

from langchain_keytokens import KeyTokensHybridRetriever, KeyTokensRetriever

QUERY = "electrons in an atom"


@pytest.fixture
def retriever(abstracts, encoder):
    return KeyTokensRetriever.from_documents(abstracts, encoder)


def ids(documents):
    return [document.id for document in documents]


class TestSearch:
    def test_documents_come_back_as_they_were_with_their_score(self, retriever, abstracts, encoder):
        retriever.score_key = "score"
        by_id = {document.id: document for document in abstracts}
        found = retriever.invoke(QUERY, k=5)
        query = encoder.encode_query([QUERY]).sparse.to_dicts()[0]
        for document in found:
            assert document.page_content == by_id[document.id].page_content
            score = document.metadata.pop("score")
            assert document.metadata == by_id[document.id].metadata
            terms = encoder.encode_document([document.page_content]).sparse.to_dicts()[0]
            assert score == pytest.approx(sum(weight * terms.get(id, 0) for id, weight in query.items()), rel=1e-5)

    def test_the_ranking_is_that_of_the_index(self, retriever):
        expected = retriever.retriever.index.search(QUERY, mode="sparse", top_k=10)
        assert ids(retriever.invoke(QUERY, k=10)) == [hit.id for hit in expected]

    def test_matched_tokens_sum_to_the_score(self, abstracts, encoder):
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder, matches_key="why", score_key="score")
        for document in retriever.invoke(QUERY):
            contributions = [match["contribution"] for match in document.metadata["why"]]
            assert sum(contributions) == pytest.approx(document.metadata["score"], rel=1e-4)
            assert contributions == sorted(contributions, reverse=True)
        tokens = [match["token"] for match in retriever.invoke(QUERY)[0].metadata["why"]]
        assert "atom" in tokens or "electron" in tokens

    def test_no_key_means_no_key(self, abstracts, encoder):
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder)
        assert set(retriever.invoke(QUERY)[0].metadata) == {"archive", "position"}

    def test_a_query_takes_one_forward_pass(self, retriever, passes):
        retriever.invoke(QUERY, k=3)
        assert passes.texts == 1

    def test_a_document_takes_one_forward_pass(self, abstracts, encoder, passes):
        KeyTokensRetriever.from_documents(abstracts, encoder)
        assert passes.texts == len(abstracts)

    def test_looked_up_queries_take_none(self, abstracts, encoder, passes, monkeypatch):
        monkeypatch.setattr(encoder, "query", "lookup")
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder)
        passes.texts = 0
        assert len(retriever.invoke(QUERY)) == 4
        assert passes.texts == 0


class TestNumberOfResults:
    def test_default_is_four(self, retriever):
        assert len(retriever.invoke(QUERY)) == 4

    def test_at_call_time_and_in_the_constructor(self, abstracts, encoder, retriever):
        assert len(KeyTokensRetriever.from_documents(abstracts, encoder, k=7).invoke(QUERY)) == 7
        assert len(retriever.invoke(QUERY, k=2)) == 2

    async def test_at_call_time_asynchronously(self, retriever):
        assert ids(await retriever.ainvoke(QUERY, k=2)) == ids(retriever.invoke(QUERY, k=2))

    def test_more_than_there_are_documents_gives_those_that_share_a_term(self, encoder):
        retriever = KeyTokensRetriever.from_texts(["atoms", "electrons and atoms"], encoder)
        assert sorted(document.page_content for document in retriever.invoke("atoms", k=1000)) == [
            "atoms",
            "electrons and atoms",
        ]

    @pytest.mark.parametrize("k", [0, -1])
    def test_less_than_one_is_refused(self, abstracts, encoder, retriever, k):
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            KeyTokensRetriever.from_documents(abstracts, encoder, k=k)
        with pytest.raises(ValueError, match=f"k must be >= 1, got {k}"):
            retriever.invoke(QUERY, k=k)


class TestFilter:
    def test_filtered_out_documents_are_never_returned(self, retriever, abstracts):
        allowed = {document.id for document in abstracts if document.metadata["archive"] == "astro-ph"}
        found = retriever.invoke(QUERY, k=60, filter={"archive": "astro-ph"})
        assert set(ids(found)) <= allowed
        assert len(found) == len(allowed)

    def test_in_the_constructor_and_over_it_at_call_time(self, abstracts, encoder):
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder, filter={"position": {"$lt": 10}}, k=60)
        assert {d.metadata["position"] for d in retriever.invoke(QUERY)} <= set(range(10))
        assert {d.metadata["position"] for d in retriever.invoke(QUERY, filter={"position": 11})} == {11}

    def test_a_function_sees_langchain_documents(self, retriever):
        seen = []

        def is_early(document):
            seen.append(document)
            return document.metadata["position"] < 5

        assert {d.metadata["position"] for d in retriever.invoke(QUERY, k=60, filter=is_early)} <= set(range(5))
        assert all(isinstance(document, Document) for document in seen) and len(seen) == 60

    def test_ids(self, retriever, abstracts):
        chosen = [abstracts[7].id, abstracts[3].id, "unknown"]
        assert set(ids(retriever.invoke(QUERY, k=60, filter=chosen))) == set(chosen[:2])

    def test_a_missing_key_matches_nothing(self, retriever):
        assert retriever.invoke(QUERY, filter={"no such key": 1}) == []

    async def test_asynchronously(self, retriever):
        found = await retriever.ainvoke(QUERY, k=60, filter={"position": {"$gte": 50}})
        assert {document.metadata["position"] for document in found} <= set(range(50, 60))

    def test_an_unknown_operator_is_refused(self, retriever):
        with pytest.raises(ValueError, match=r"filter operators .* got '\$near'"):
            retriever.invoke(QUERY, filter={"position": {"$near": 3}})


class TestMetadata:
    def test_a_mix_without_a_schema_survives(self, encoder):
        metadatas = [
            {"source": Path("a/b.pdf"), "page": 3},
            None,
            {"page": "three", "authors": ["Ann", "Bo"], "nested": {"a": [1, None]}},
            {"date": datetime.date(2024, 5, 1), "score": 0.5, "number": np.float32(0.5), "pair": (1, 2)},
        ]
        texts = ["stars and gas", "stars and dust", "stars and planets", "stars and light"]
        retriever = KeyTokensRetriever.from_texts(texts, encoder, metadatas, score_key=None)
        found = {document.page_content: document.metadata for document in retriever.invoke("stars")}
        assert found == {text: entry or {} for text, entry in zip(texts, metadatas, strict=True)}

    def test_what_cannot_be_kept_is_refused_by_name_and_nothing_is_added(self, retriever, abstracts):
        new = [Document(page_content="fine"), Document(page_content="stars", metadata={"a": {"model": object()}})]
        with pytest.raises(TypeError, match=r"got object for 'a\.model'"):
            retriever.add_documents(new)
        assert len(retriever.retriever) == len(abstracts)

    def test_the_callers_documents_are_not_changed(self, abstracts, encoder):
        before = copy.deepcopy(abstracts)
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder, matches_key="matches")
        retriever.invoke(QUERY)[0].metadata["archive"] = "changed by the user"
        assert abstracts == before
        assert retriever.invoke(QUERY)[0].metadata["archive"] != "changed by the user"

    def test_the_score_takes_the_place_of_a_key_of_that_name_in_the_copy_only(self, encoder):
        retriever = KeyTokensRetriever.from_texts(["stars"], encoder, [{"score": "A+"}], score_key="score")
        assert isinstance(retriever.invoke("stars")[0].metadata["score"], float)
        assert retriever.invoke("stars", filter={"score": "A+"})[0].page_content == "stars"


class TestChanges:
    def test_added_documents_are_found(self, retriever):
        (new,) = retriever.add_documents([Document(page_content="The zebra eats grass.", metadata={"new": True})])
        (found,) = retriever.invoke("zebra", k=1)
        assert (found.id, found.metadata["new"]) == (new, True)

    async def test_asynchronously(self, retriever):
        (new,) = await retriever.aadd_documents([Document(page_content="The zebra eats grass.")])
        assert (await retriever.ainvoke("zebra", k=1))[0].id == new
        assert await retriever.adelete([new]) == 1
        assert new not in ids(await retriever.ainvoke("zebra", k=60))

    def test_deleted_documents_are_not_found(self, retriever):
        first = retriever.invoke(QUERY)[0].id
        assert retriever.delete([first, "unknown"]) == 1
        assert first not in ids(retriever.invoke(QUERY, k=60))

    def test_an_id_that_is_there_is_refused_or_replaced(self, retriever, abstracts):
        new = Document(id=abstracts[0].id, page_content="The zebra eats grass.")
        with pytest.raises(ValueError, match=f"ids must be new, got '{abstracts[0].id}'"):
            retriever.add_documents([new], on_conflict="error")
        retriever.add_documents([new])
        assert retriever.invoke("zebra", k=1)[0].id == abstracts[0].id
        assert len(retriever.retriever) == len(abstracts)

    def test_an_id_twice_is_refused_and_nothing_added(self, retriever, abstracts):
        with pytest.raises(ValueError, match="ids must be unique, got 'a' twice"):
            retriever.add_texts(["one", "two"], ids=["a", "a"])
        assert len(retriever.retriever) == len(abstracts)

    def test_texts_without_ids_get_new_ones(self, encoder):
        retriever = KeyTokensRetriever.from_texts(["same", "same"], encoder)
        assert len(set(ids(retriever.invoke("same")))) == 2

    def test_lengths_must_agree(self, encoder):
        with pytest.raises(ValueError, match="metadatas must be as many as texts, 1, got 2"):
            KeyTokensRetriever.from_texts(["one"], encoder, [{}, {}])
        with pytest.raises(ValueError, match="ids must be as many as texts, 1, got 0"):
            KeyTokensRetriever.from_texts(["one"], encoder, ids=[])


class TestOddQueries:
    def test_an_empty_store_gives_nothing(self, encoder):
        assert KeyTokensRetriever.from_texts([], encoder).invoke(QUERY) == []

    def test_documents_can_be_added_to_an_empty_store(self, encoder):
        retriever = KeyTokensRetriever.from_texts([], encoder)
        retriever.add_texts(["stars"])
        assert [document.page_content for document in retriever.invoke("stars")] == ["stars"]

    @pytest.mark.parametrize("query", ["", "   ", "\n"])
    def test_a_query_without_a_term_gives_nothing(self, retriever, query):
        assert retriever.invoke(query) == []

    def test_a_query_that_shares_no_term_gives_nothing(self, encoder, monkeypatch):
        monkeypatch.setattr(encoder, "query", "lookup")
        retriever = KeyTokensRetriever.from_texts(["stars", ""], encoder)
        assert retriever.invoke("蛋") == []
        assert len(retriever.invoke("stars")) == 1

    def test_chinese(self, encoder):
        texts = ["行星围绕恒星运行。", "疫苗保护人们免受疾病侵害。", "电子带有负电荷。", "河流把沙子带到大海。"]
        retriever = KeyTokensRetriever.from_texts(texts, encoder, k=1)
        for query, text in zip(["恒星", "疫苗", "电子", "河流"], texts, strict=True):
            assert retriever.invoke(query)[0].page_content == text

    def test_mixed_scripts(self, encoder):
        texts = ["mRNA疫苗 stops COVID-19", "Ёжик в тумане, a film", "naïve café ☕ 中文", "plain English words"]
        retriever = KeyTokensRetriever.from_texts(texts, encoder, k=1)
        for query, text in zip(["mRNA 疫苗", "Ёжик film", "café 中文", "English words"], texts, strict=True):
            assert retriever.invoke(query)[0].page_content == text

    def test_a_query_that_is_no_string_is_refused(self, retriever):
        with pytest.raises(TypeError, match=r"query must be a string, got dict .*put itemgetter"):
            retriever.invoke({"question": QUERY})

    def test_an_unknown_argument_is_refused_rather_than_ignored(self, retriever):
        with pytest.raises(TypeError, match="unexpected keyword argument 'top_k'"):
            retriever.invoke(QUERY, top_k=2)

    def test_an_encoder_that_was_changed_is_refused(self, abstracts, encoder, monkeypatch):
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder)
        monkeypatch.setattr(encoder.head, "max_active_dims", 5)
        with pytest.raises(ValueError, match="encoder must have the fingerprint"):
            retriever.invoke(QUERY)


class TestSaveAndLoad:
    def test_index_and_settings_come_back(self, abstracts, encoder, tmp_path):
        settings = {"k": 7, "filter": {"position": {"$lt": 40}}, "score_key": "s", "matches_key": "m", "tags": ["a"]}
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder, **settings)
        retriever.save_local(tmp_path / "saved")
        loaded = KeyTokensRetriever.load_local(tmp_path / "saved", encoder)
        assert loaded.model_dump() == retriever.model_dump()
        assert loaded.invoke(QUERY) == retriever.invoke(QUERY)

    def test_settings_can_be_given_over_the_saved_ones(self, retriever, encoder, tmp_path):
        retriever.save_local(tmp_path)
        assert len(KeyTokensRetriever.load_local(tmp_path, encoder, k=2).invoke(QUERY)) == 2

    def test_what_is_added_after_loading_stays(self, retriever, encoder, tmp_path):
        retriever.save_local(tmp_path)
        KeyTokensRetriever.load_local(tmp_path, encoder).add_texts(["The zebra eats grass."], ids=["z"])
        assert KeyTokensRetriever.load_local(tmp_path, encoder).invoke("zebra", k=1)[0].id == "z"
        assert "z" not in ids(retriever.invoke("zebra", k=60))

    def test_an_index_with_a_path_is_kept_without_saving(self, abstracts, encoder, tmp_path):
        KeyTokensRetriever.from_documents(abstracts, encoder, path=tmp_path / "index")
        again = KeyTokensRetriever.from_texts([], encoder, path=tmp_path / "index")
        assert len(again.invoke(QUERY)) == 4

    def test_nothing_is_pickled(self, retriever, tmp_path):
        retriever.save_local(tmp_path)
        assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pickle", ".joblib")]
        assert json.loads((tmp_path / "retriever.json").read_text())["class"] == "KeyTokensRetriever"

    def test_another_encoder_is_refused(self, retriever, encoder, tmp_path):
        retriever.save_local(tmp_path)
        other = KeyTokenEncoder(encoder.model, max_active_dims=7)
        with pytest.raises(ValueError, match="fingerprint must be"):
            KeyTokensRetriever.load_local(tmp_path, other)

    def test_another_class_is_refused(self, retriever, encoder, tmp_path):
        retriever.save_local(tmp_path)
        with pytest.raises(ValueError, match="a saved KeyTokensHybridRetriever, got KeyTokensRetriever"):
            KeyTokensHybridRetriever.load_local(tmp_path, encoder)

    def test_a_folder_without_one_is_refused(self, encoder, tmp_path):
        with pytest.raises(FileNotFoundError, match="path must hold a persisted retriever"):
            KeyTokensRetriever.load_local(tmp_path, encoder)

    def test_a_folder_with_other_files_is_refused(self, retriever, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(ValueError, match="with other files"):
            retriever.save_local(tmp_path)
        assert (tmp_path / "thesis.txt").read_text() == "mine"


class TestConfiguration:
    def test_it_is_json_without_the_heavy_parts(self, abstracts, encoder):
        retriever = KeyTokensRetriever.from_documents(abstracts, encoder, k=3)
        assert json.loads(retriever.model_dump_json()) == {
            "name": None,
            "tags": None,
            "metadata": None,
            "k": 3,
            "filter": None,
            "group_by": None,
            "needs_known_word": True,
            "score_key": None,
            "matches_key": None,
        }
        assert "Retriever object" not in repr(retriever)

    def test_an_unknown_setting_is_refused(self, encoder):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            KeyTokensRetriever(retriever=Retriever(encoder, has_dense=False), top_k=3)
