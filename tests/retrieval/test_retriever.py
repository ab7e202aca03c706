from __future__ import annotations

import asyncio
import datetime
import random
import re
import threading
import uuid
from collections import Counter
from pathlib import Path

import pytest
from retrieval_samples import IDS, METADATA, TEXTS

from st_keytokens import HybridIndex, KeyTokenEncoder
from st_keytokens.retrieval import OutsideHit, Retriever, SearchSettings

QUERY = "the genes of a patient and the light of stars"


def summary(hits):
    return [(hit.id, hit.score, hit.rank, hit.text, hit.metadata, hit.scores) for hit in hits]


@pytest.fixture
def index(encoder):
    with HybridIndex(encoder=encoder) as index:
        index.add(IDS, TEXTS, metadata=METADATA)
        yield index


class TestAdding:
    def test_ids_are_given_where_there_are_none(self, encoder):
        with Retriever(encoder) as retriever:
            names = retriever.add(TEXTS[:3], ids=["mine", None, None])
            assert names[0] == "mine"
            assert [str(uuid.UUID(name)) for name in names[1:]] == names[1:]
            assert len(set(names)) == len(retriever) == 3
            assert len(retriever.add(TEXTS[3:5])) == 2

    def test_texts_and_metadata_are_kept(self, retriever):
        documents = retriever.get(["d3", "d1"])
        assert [(document.id, document.text, document.metadata) for document in documents] == [
            ("d3", TEXTS[3], {"number": 3}),
            ("d1", TEXTS[1], {"number": 1}),
        ]

    def test_other_texts_may_be_embedded(self, encoder):
        with Retriever(encoder) as retriever, Retriever(encoder) as plain:
            retriever.add(["kept"], ids=["x"], embedded_texts=[TEXTS[0]])
            plain.add([TEXTS[0]], ids=["x"])
            (hit,) = retriever.search(TEXTS[0])
            assert (hit.text, hit.score) == ("kept", plain.search(TEXTS[0])[0].score)

    def test_replacing(self, retriever):
        retriever.add([TEXTS[5]], ids=["d0"], on_conflict="replace")
        assert len(retriever) == len(TEXTS)
        assert retriever.get(["d0"])[0].text == TEXTS[5]

    def test_nothing(self, retriever):
        assert retriever.add([]) == []
        assert retriever.add([], ids=[], metadata=[]) == []

    def test_deleting(self, retriever):
        assert retriever.delete(["d0", "unknown"]) == 1
        assert retriever.known_ids(["d0", "d1", "unknown"]) == ["d1"]
        with pytest.raises(KeyError, match="ids must be in the index, got 'd0'"):
            retriever.get(["d0"])


class TestRefusing:
    @pytest.mark.parametrize("method", ["add", "check_addable"])
    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ({"texts": "text"}, TypeError, "texts must be a list of strings, got str"),
            ({"texts": ["a", 1]}, TypeError, "texts must be strings, got int 1"),
            ({"texts": ["a"], "ids": ["x", "y"]}, ValueError, "ids must be as many as there are documents, 1, got 2"),
            ({"texts": ["a"], "ids": []}, ValueError, "ids must be as many as there are documents, 1, got 0"),
            ({"texts": ["a"], "ids": [7]}, TypeError, "ids must be strings, got int 7"),
            ({"texts": ["a", "b"], "ids": ["x", "x"]}, ValueError, "ids must be unique, got 'x' twice"),
            ({"texts": ["a"], "ids": ["d1"]}, ValueError, "ids must be new, got 'd1', which is there"),
            (
                {"texts": ["a"], "metadata": []},
                ValueError,
                "metadata must be as many as there are documents, 1, got 0",
            ),
            ({"texts": ["a"], "metadata": [{"x": {1}}]}, TypeError, "got set for 'x'"),
            ({"texts": ["a"], "on_conflict": "skip"}, ValueError, "on_conflict must be one of 'error', 'replace'"),
        ],
    )
    def test_before_anything_is_embedded_or_written(self, retriever, passes, method, arguments, kind, message):
        with pytest.raises(kind, match=message):
            getattr(retriever, method)(**arguments)
        assert passes.take() == 0
        assert len(retriever) == len(TEXTS)

    def test_embedded_texts(self, retriever):
        with pytest.raises(ValueError, match="embedded_texts must be as many as there are documents, 1, got 2"):
            retriever.add(["a"], embedded_texts=["a", "b"])

    def test_checking_gives_the_ids_and_adds_nothing(self, retriever):
        names = retriever.check_addable(["a", "b"], ids=["d1", None], metadata=[None, {}], on_conflict="replace")
        assert (names[0], len(names[1]), len(retriever)) == ("d1", 36, len(TEXTS))


class TestItsIndex:
    def test_dense_vectors_are_kept_only_where_they_are_wanted(self, encoder, retriever, sparse_retriever):
        assert retriever.index.settings["embedding_dimension"] == 32
        assert sparse_retriever.index.settings["embedding_dimension"] == 0
        sparse = SearchSettings(mode="sparse", top_k=5)
        assert sparse_retriever.search("genes", sparse) == retriever.search("genes", sparse)

    def test_an_index_with_dense_vectors_is_not_one_without(self, encoder, tmp_path):
        with Retriever(encoder, tmp_path / "index") as retriever:
            retriever.add(TEXTS, ids=IDS, metadata=METADATA)
        with pytest.raises(ValueError, match="embedding_dimension must be 32, which the index"):
            Retriever(encoder, tmp_path / "index", has_dense=False)

    def test_a_temporary_one_is_removed(self, encoder):
        retriever = Retriever(encoder)
        path = retriever.index.path
        assert path.is_dir()
        retriever.close()
        assert not path.exists()


class TestSearching:
    @pytest.mark.parametrize("mode", ["sparse", "dense", "hybrid", None])
    @pytest.mark.parametrize("fusion", ["adaptive", "score", "rrf"])
    def test_hits_are_those_of_the_index(self, retriever, index, mode, fusion):
        weights = {"sparse": 2.0}
        settings = SearchSettings(mode=mode, top_k=5, fusion=fusion, weights=weights, filter={"number": {"$lt": 9}})
        expected = index.search(
            QUERY, mode=mode, top_k=5, fusion=fusion, weights=weights, filter={"number": {"$lt": 9}}
        )
        assert summary(retriever.search(QUERY, settings)) == summary(expected)

    @pytest.mark.parametrize("mode", ["sparse", "dense", "hybrid"])
    def test_several_queries(self, retriever, mode):
        queries = [QUERY, "the virus and the vaccine", "  "]
        settings = SearchSettings(mode=mode, top_k=3)
        for hits, query in zip(retriever.search(queries, settings), queries, strict=True):
            alone = retriever.search(query, settings)
            assert [hit.id for hit in hits] == [hit.id for hit in alone]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], rel=1e-5)
        assert retriever.search([], settings) == []

    def test_matches_sum_to_the_sparse_score(self, retriever):
        for hit in retriever.search(QUERY, SearchSettings(has_matches=True)):
            total = sum(match.contribution for match in hit.matches)
            assert total == pytest.approx(hit.scores.get("sparse", 0.0), rel=1e-5)

    def test_no_matches_unless_asked_for(self, retriever):
        assert {hit.matches for hit in retriever.search(QUERY)} == {None}

    @pytest.mark.parametrize("mode", ["sparse", "dense", "hybrid"])
    @pytest.mark.parametrize("query", ["", " \n"])
    def test_a_blank_query_finds_nothing(self, retriever, mode, query):
        assert retriever.search(query, SearchSettings(mode=mode)) == []

    def test_an_empty_index_finds_nothing(self, encoder):
        with Retriever(encoder) as retriever:
            assert retriever.search(QUERY) == []
            assert retriever.search([QUERY, QUERY]) == [[], []]

    def test_more_than_there_are(self, retriever):
        assert len(retriever.search(QUERY, SearchSettings(top_k=99))) == len(TEXTS)

    def test_functions_and_dates_as_filters(self, encoder):
        with Retriever(encoder) as retriever:
            days = [datetime.date(2024, 5, day) for day in range(1, 5)]
            retriever.add(TEXTS[:4], ids=IDS[:4], metadata=[{"day": day, "path": Path("x")} for day in days])
            late = SearchSettings(filter={"day": {"$gt": days[1]}})
            assert {hit.id for hit in retriever.search(QUERY, late)} == {"d2", "d3"}
            by_function = SearchSettings(filter=lambda document: document.metadata["day"].day == 1)
            (hit,) = retriever.search(QUERY, by_function)
            assert hit.metadata == {"day": days[0], "path": Path("x")}


class TestForwardPasses:
    @pytest.mark.parametrize("cache_size", [0, 1024])
    @pytest.mark.parametrize("mode", ["sparse", "dense", "hybrid"])
    def test_one_for_each_text_and_query(self, llama_embedder, calibration, passes, cache_size, mode):
        encoder = KeyTokenEncoder(llama_embedder, calibration=calibration, cache_size=cache_size)
        with Retriever(encoder) as retriever:
            retriever.add(TEXTS)
            assert passes.take() == len(TEXTS)
            retriever.search(QUERY, SearchSettings(mode=mode, has_matches=True))
            assert passes.take() == 1
            retriever.search(["one", "two"], SearchSettings(mode=mode, has_matches=True))
            assert passes.take() == 2

    @pytest.mark.parametrize("cache_size", [0, 1024])
    def test_beside_another_store(self, llama_embedder, calibration, passes, cache_size):
        encoder = KeyTokenEncoder(llama_embedder, calibration=calibration, cache_size=cache_size)
        with Retriever(encoder, has_dense=False) as retriever:
            retriever.pair.dense_documents(TEXTS)
            retriever.add(TEXTS)
            assert passes.take() == len(TEXTS)
            retriever.pair.dense_query(QUERY)
            retriever.search(QUERY, SearchSettings(has_matches=True), outside=[OutsideHit("x", score=0.5)])
            assert passes.take() == 1

    def test_lookup(self, llama_embedder, calibration, passes):
        encoder = KeyTokenEncoder(llama_embedder, calibration=calibration, query="lookup")
        with Retriever(encoder) as retriever, HybridIndex(encoder=encoder) as index:
            retriever.add(TEXTS, ids=IDS)
            passes.take()
            sparse = retriever.search(QUERY, SearchSettings(mode="sparse"))
            assert passes.take() == 0
            index.add(IDS, TEXTS)
            assert [hit.score for hit in sparse] == [hit.score for hit in index.search(QUERY, mode="sparse")]
            passes.take()
            hybrid = retriever.search(QUERY, SearchSettings(mode="hybrid"))
            assert passes.take() == 1
            assert set(hybrid[0].scores) == {"dense", "sparse"}


class TestOutside:
    @pytest.mark.parametrize("weights", [None, {"dense": 0.5}])
    @pytest.mark.parametrize("fusion", ["adaptive", "score", "rrf"])
    def test_another_store_with_our_dense_ranking_gives_our_hits(self, retriever, sparse_retriever, fusion, weights):
        dense = retriever.search(QUERY, SearchSettings(mode="dense", top_k=100))
        outside = [OutsideHit(hit.id, score=hit.score) for hit in dense]
        settings = SearchSettings(top_k=7, fusion=fusion, weights=weights, has_matches=True)
        hits = sparse_retriever.search(QUERY, settings, outside=outside)
        expected = retriever.search(QUERY, settings)
        assert summary(hits) == summary(expected)
        assert [hit.matches for hit in hits] == [hit.matches for hit in expected]
        assert [dense[hit.outside].id for hit in hits] == [hit.id for hit in hits]

    def test_documents_of_the_other_store_only(self, sparse_retriever):
        outside = [OutsideHit("x", "theirs", 0.9, {"number": 3})]
        settings = SearchSettings(top_k=99, has_matches=True)
        (hit,) = [hit for hit in sparse_retriever.search(QUERY, settings, outside=outside) if hit.id == "x"]
        assert (hit.text, hit.metadata, hit.matches, hit.outside) == ("theirs", {"number": 3}, [], 0)

    def test_filters_hold_for_both(self, sparse_retriever):
        outside = [
            OutsideHit("x", "theirs", 0.9, {"number": 3}),
            OutsideHit("d5", score=0.8),
            OutsideHit("d1", score=0.7),
        ]
        settings = SearchSettings(top_k=99, filter={"number": {"$lt": 4}})
        hits = sparse_retriever.search(QUERY, settings, outside=outside)
        assert {hit.id for hit in hits} <= {"x", "d0", "d1", "d2", "d3"}
        assert {"x", "d1"} <= {hit.id for hit in hits}
        assert sparse_retriever.passing(outside, {"number": {"$lt": 4}}) == [outside[0], outside[2]]

    def test_blank_query(self, sparse_retriever):
        assert sparse_retriever.search(" ", outside=[OutsideHit("d1", score=0.5)]) == []

    def test_several_queries_have_no_one_ranking(self, sparse_retriever):
        with pytest.raises(TypeError, match="queries must be one string beside outside, got list"):
            sparse_retriever.search([QUERY], outside=[])

    def test_other_modes(self, sparse_retriever):
        with pytest.raises(ValueError, match="mode must be 'hybrid' beside outside, got 'sparse'"):
            sparse_retriever.search(QUERY, SearchSettings(mode="sparse"), outside=[])


class TestNoFallBack:
    def test_a_store_without_the_documents_of_the_index(self, sparse_retriever):
        with pytest.raises(ValueError, match="got no hit from it beside 12 in the index"):
            sparse_retriever.check_outside([], is_filtered=False)
        sparse_retriever.check_outside([], is_filtered=True)

    @pytest.mark.parametrize("is_filtered", [False, True])
    def test_an_index_without_the_documents_of_the_store(self, encoder, is_filtered):
        with Retriever(encoder, has_dense=False) as empty:
            with pytest.raises(ValueError, match="got an empty one beside 1 hits of the store"):
                empty.check_outside([OutsideHit("x", score=0.5)], is_filtered=is_filtered)
            empty.check_outside([], is_filtered=is_filtered)

    def test_both_with_documents(self, sparse_retriever):
        sparse_retriever.check_outside([OutsideHit("x", score=0.5)], is_filtered=False)

    @pytest.mark.parametrize("mode", ["dense", "hybrid"])
    def test_dense_vectors_that_are_elsewhere(self, sparse_retriever, mode):
        assert not sparse_retriever.has_dense
        with pytest.raises(ValueError, match=f"mode must be 'sparse' in an index without dense vectors, got '{mode}'"):
            sparse_retriever.search(QUERY, SearchSettings(mode=mode))
        assert sparse_retriever.search(QUERY) == sparse_retriever.search(QUERY, SearchSettings(mode="sparse"))

    def test_an_encoder_that_changed(self, retriever, encoder):
        encoder.head.max_active_dims = 2
        with pytest.raises(ValueError, match="the encoder must have the fingerprint"):
            retriever.search(QUERY)
        with pytest.raises(ValueError, match="the encoder must have the fingerprint"):
            retriever.add(["text"])


class TestAsync:
    def test_the_event_loop_goes_on(self, retriever, llama_embedder):
        has_begun, may_end = threading.Event(), threading.Event()

        def wait(module, arguments):
            has_begun.set()
            if not may_end.wait(60):
                raise TimeoutError("the event loop was blocked")

        async def main():
            task = asyncio.create_task(retriever.asearch("unheard of"))
            while not has_begun.is_set():
                await asyncio.sleep(0.001)
            may_end.set()
            return await task

        handle = llama_embedder[0].register_forward_pre_hook(wait)
        try:
            hits = asyncio.run(main())
        finally:
            handle.remove()
        assert hits == retriever.search("unheard of")


class TestPersisting:
    @pytest.mark.parametrize("has_dense", [True, False])
    def test_hits_and_settings_come_back(self, encoder, tmp_path, has_dense):
        with Retriever(encoder, has_dense=has_dense) as retriever:
            retriever.add(TEXTS, ids=IDS, metadata=METADATA)
            retriever.persist(tmp_path / "kept", {"k": 3, "nested": {"a": [None, "b"]}})
            expected = retriever.search(QUERY)
        opened, settings = Retriever.open(tmp_path / "kept", encoder)
        with opened:
            assert settings == {"k": 3, "nested": {"a": [None, "b"]}} == Retriever.read_settings(tmp_path / "kept")
            assert opened.has_dense is has_dense
            assert opened.search(QUERY) == expected

    def test_in_its_own_directory(self, encoder, tmp_path):
        with Retriever(encoder, tmp_path / "here") as retriever:
            retriever.add(TEXTS, ids=IDS)
            retriever.persist(tmp_path / "here", {"k": 1})
            retriever.persist(tmp_path / "here", {"k": 2})
            retriever.delete(["d0"])
        opened, settings = Retriever.open(tmp_path / "here", encoder)
        with opened:
            assert (settings, len(opened)) == ({"k": 2}, len(TEXTS) - 1)

    def test_another_encoder_is_refused(self, retriever, llama_embedder, tmp_path):
        retriever.persist(tmp_path / "kept")
        other = KeyTokenEncoder(llama_embedder)
        expected = (
            f"fingerprint must be '{retriever.encoder.fingerprint}', which the index .* got '{other.fingerprint}'"
        )
        with pytest.raises(ValueError, match=expected):
            Retriever.open(tmp_path / "kept", other)

    def test_nothing_is_written_for_settings_that_are_no_json(self, retriever, tmp_path):
        with pytest.raises(TypeError, match="not JSON serializable"):
            retriever.persist(tmp_path / "kept", {"k": {1}})
        assert not (tmp_path / "kept").exists()

    def test_nothing_there(self, encoder, tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"got {tmp_path} without retriever.json")):
            Retriever.open(tmp_path, encoder)

    def test_damaged_settings(self, retriever, encoder, tmp_path):
        retriever.persist(tmp_path / "kept")
        (tmp_path / "kept" / "retriever.json").write_text("{")
        with pytest.raises(ValueError, match=r"must be JSON, got an error: .* Persist the retriever again"):
            Retriever.open(tmp_path / "kept", encoder)

    def test_settings_of_an_earlier_version(self, retriever, encoder, tmp_path):
        retriever.persist(tmp_path / "kept")
        (tmp_path / "kept" / "retriever.json").write_text('{"k": 2}')
        opened, settings = Retriever.open(tmp_path / "kept", encoder)
        with opened:
            assert settings == {"k": 2}

    @pytest.mark.parametrize("name", ["retriever_format", "checksum"])
    def test_names_of_the_file(self, retriever, tmp_path, name):
        with pytest.raises(ValueError, match=f"settings must have other keys than '{name}', got it"):
            retriever.persist(tmp_path / "kept", {name: 1})
        assert not (tmp_path / "kept").exists()

    def test_every_bit_of_the_settings(self, retriever, tmp_path):
        """One that is flipped is found, or changes nothing."""
        kept = {"k": 2, "names": ["a", None], "weights": {"dense": 0.5}}
        retriever.persist(tmp_path / "kept", kept)
        file = tmp_path / "kept" / "retriever.json"
        content, num_found = file.read_bytes(), 0
        for place in range(8 * len(content)):
            altered = bytearray(content)
            altered[place // 8] ^= 1 << place % 8
            file.write_bytes(altered)
            try:
                assert Retriever.read_settings(tmp_path / "kept") == kept
            except ValueError as err:
                assert str(err).endswith("Persist the retriever again.")
                num_found += 1
        assert num_found > 7 * len(content)

    def test_bytes_of_the_encoder_beside_it(self, encoder, tmp_path):
        """One that is flipped is found, or changes nothing: in the settings, the head, the calibration, statistics."""
        kept = tmp_path / "kept"
        with Retriever(encoder, kept) as retriever:
            retriever.add(TEXTS, ids=IDS)
            wanted = summary(retriever.search(QUERY))
        encoder.save_sidecar(kept / "encoder" / "key_tokens")
        model, chance, outcome = encoder.model, random.Random(0), Counter()
        files = sorted(path for path in (kept / "encoder").rglob("*") if path.is_file())
        assert {path.name for path in files} >= {"encoder.json", "config.json", "calibration.safetensors"}
        for file in files:
            content = file.read_bytes()
            for _ in range(12):
                altered = bytearray(content)
                altered[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
                file.write_bytes(altered)
                try:
                    with Retriever(model, kept) as retriever:
                        outcome["same"] += 1
                        assert summary(retriever.search(QUERY)) == wanted
                except ValueError:
                    outcome["found"] += 1
            file.write_bytes(content)
        with Retriever(model, kept) as retriever:
            assert summary(retriever.search(QUERY)) == wanted
        assert outcome["found"] > 6 * len(files)
