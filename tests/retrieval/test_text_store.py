from __future__ import annotations

import uuid

import pytest
from retrieval_samples import IDS, METADATA, TEXTS

from st_keytokens.retrieval import Retriever, SearchSettings


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


class TestIndex:
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
