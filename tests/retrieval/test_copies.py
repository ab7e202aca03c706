"""Retrievers that are pickled and copied, ids, vectors that are there already, and batches embedded at once."""

from __future__ import annotations

import copy
import datetime
import pickle

import numpy as np
import pytest

from st_keytokens.retrieval import Retriever, SearchSettings

TEXTS = ["stars and gas", "the zebra eats grass", "electrons in an atom"]
IDS = ["a", "b", "c"]


@pytest.fixture
def retriever(encoder):
    made = Retriever(encoder)
    made.add(TEXTS, ids=IDS)
    return made


def found(retriever, query="zebra"):
    return [(hit.id, round(hit.score, 5)) for hit in retriever.search(query)]


@pytest.mark.parametrize("through", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy, copy.copy])
def test_a_temporary_index_goes_along(retriever, through):
    made = through(retriever)
    assert made.ids() == IDS and found(made) == found(retriever)
    made.delete(["b"])
    assert (len(made), len(retriever)) == (2, 3)
    folder = made.index.path
    made.close()
    assert not folder.exists()


def test_an_index_with_a_path_is_opened_there_by_pickle_and_copied_by_deepcopy(encoder, tmp_path):
    kept = Retriever(encoder, tmp_path / "index")
    kept.add(TEXTS, ids=IDS)
    opened, copied = pickle.loads(pickle.dumps(kept)), copy.deepcopy(kept)
    opened.delete(["a"])
    assert (kept.ids(), copied.ids()) == (["b", "c"], IDS)


@pytest.mark.parametrize("has_dense", [True, False])
def test_vectors_that_are_there_already_take_no_pass(encoder, retriever, has_dense, monkeypatch):
    dense = encoder.encode_document(TEXTS).dense
    made = Retriever(encoder, has_dense=has_dense)
    with monkeypatch.context() as patch:
        patch.setattr(type(encoder), "encode", lambda *a, **k: pytest.fail("a forward pass"))
        made.add(TEXTS, ids=IDS, embeddings=dense)
    settings = SearchSettings(mode="sparse")
    assert [(h.id, pytest.approx(h.score, rel=1e-4)) for h in retriever.search("zebra", settings)] == [
        (h.id, h.score) for h in made.search("zebra", settings)
    ]


def test_vectors_of_another_number_are_refused(encoder):
    with pytest.raises(ValueError, match="texts must be one for each embedding, got 3 for 2"):
        Retriever(encoder).add(TEXTS, embeddings=np.ones((2, encoder.get_embedding_dimension()), np.float32))


@pytest.mark.parametrize("mode", ["hybrid", "sparse", "dense"])
def test_a_batch_embedded_at_once_finds_the_same(retriever, mode):
    settings = SearchSettings(mode=mode)
    vectors = retriever.embed(TEXTS, settings)
    for row, text in enumerate(TEXTS):
        at_once = [(h.id, h.score) for h in retriever.search(text, settings, vectors=vectors[row])]
        assert at_once == [(h.id, pytest.approx(h.score, rel=1e-4)) for h in retriever.search(text, settings)]


def test_datetimes_with_time_zones_compare_as_instants_and_come_back_as_they_were(encoder):
    def at(hour, offset):
        return datetime.datetime(2024, 5, 1, hour, tzinfo=datetime.timezone(datetime.timedelta(hours=offset)))

    made = Retriever(encoder)
    times = [at(12, 5.5), at(12, 0), at(9, -7)]  # 06:30, 12:00, 16:00 in UTC
    made.add(["stars"] * 3, ids=IDS, metadata=[{"at": time} for time in times])
    for bound, expected in ((at(8, 0), ["b", "c"]), (at(14, 2), ["b", "c"]), (at(5, -8), ["c"])):
        hits = made.search("stars", SearchSettings(filter={"at": {"$gte": bound}}))
        assert sorted(hit.id for hit in hits) == expected
    (hit,) = made.search("stars", SearchSettings(filter={"at": at(7, 1 - 0.5)}))
    assert (hit.id, hit.metadata["at"], hit.metadata["at"].utcoffset()) == ("a", times[0], times[0].utcoffset())
