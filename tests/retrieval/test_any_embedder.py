"""What an application embeds with as a retriever's encoder: what is taken, calibrated, and kept beside the index."""

from __future__ import annotations

import copy
import hashlib
import pickle
import threading

import numpy as np
import pytest

from st_keytokens import KeyTokenEncoder
from st_keytokens.embedders import FunctionEmbedder
from st_keytokens.retrieval import Retriever, as_encoder, checked_sides, is_embedder_of

TEXTS = [f"A text of number {number} says something about {word}." for number, word in enumerate("abcdefghij" * 5)]


class Embedder:
    """Sums of random vectors of words; can be pickled."""

    model = "x"

    def __init__(self, dimension=24):
        self.dimension, self.sent = dimension, []

    def embed_documents(self, texts):
        self.sent += texts
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        seeds = [int.from_bytes(hashlib.sha1(word.encode()).digest()[:4], "big") for word in text.lower().split()]
        return np.sum([np.random.default_rng(seed).normal(size=self.dimension) for seed in seeds], axis=0).tolist()


class TestWhatIsTaken:
    def test_an_encoder_is_given_back(self, encoder):
        class Adapter:
            pass

        adapter = Adapter()
        adapter.encoder = encoder
        assert as_encoder(encoder) is as_encoder(adapter) is encoder
        assert is_embedder_of(adapter, encoder) and not is_embedder_of(Embedder(), encoder)

    @pytest.mark.parametrize("wrong", ["a/path", 7, [1.0], Embedder, (Embedder(), None)])
    def test_what_embeds_nothing(self, wrong):
        with pytest.raises(TypeError, match=f"embedding must be a KeyTokenEncoder, got {type(wrong).__name__}"):
            as_encoder(wrong, name="embedding")

    def test_nothing(self):
        with pytest.raises(ValueError, match="encoder must be given, got None"):
            as_encoder(None)

    def test_an_error_of_the_embedder_is_its_own(self):
        def embed(texts):
            raise TypeError("the key must be a string")

        with pytest.raises(TypeError, match="the key must be a string"):
            as_encoder(embed)


class TestCalibration:
    def test_texts_are_embedded_once_and_found(self):
        embedder = Embedder()
        with Retriever(embedder) as retriever:
            retriever.add(TEXTS, ids=[str(n) for n in range(50)])
            assert [retriever.search(text)[0].text for text in TEXTS[:9]] == TEXTS[:9]
        assert sorted(embedder.sent) == sorted(TEXTS)

    def test_vectors_of_other_dimensions_are_refused(self):
        with Retriever(Embedder()) as retriever:
            retriever.add(TEXTS)
            with pytest.raises(ValueError, match=r"must have the encoder's dimension 24, got shape \(2, 8\)"):
                retriever.add(["a", "b"], embeddings=np.ones((2, 8), np.float32))
            assert len(retriever) == 50

    def test_threads_that_add_first(self):
        embedder = Embedder()
        with Retriever(embedder, has_dense=True) as retriever:
            parts = [TEXTS[start : start + 10] for start in range(0, 50, 10)]
            threads = [threading.Thread(target=retriever.add, args=(part,)) for part in parts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(retriever) == 50 and retriever.encoder.calibration.document_count == 10
        assert sorted(embedder.sent) == sorted(TEXTS)

    def test_an_index_of_a_calibrated_encoder_is_not_opened_without(self, tmp_path):
        encoder = KeyTokenEncoder(Embedder())
        encoder.calibrate(TEXTS, show_progress_bar=False)
        with Retriever(encoder, tmp_path / "index") as retriever:
            retriever.add(TEXTS)
        for file in (tmp_path / "index" / "encoder").rglob("*.json"):
            file.unlink()
        with pytest.raises(ValueError, match="fingerprint must be"):
            Retriever(Embedder(), tmp_path / "index")


class TestKept:
    @pytest.fixture
    def folder(self, tmp_path):
        with Retriever(Embedder(), tmp_path / "index") as retriever:
            retriever.add(TEXTS)
            retriever.persist(tmp_path / "index", {})
        return tmp_path / "index"

    def test_opens_with_the_embedder(self, folder):
        embedder = Embedder()
        with Retriever(embedder, folder) as retriever:
            assert len(retriever) == 50 and retriever.search(TEXTS[7])[0].text == TEXTS[7]
        assert embedder.sent == []

    def test_a_copy_opens_too(self, folder, tmp_path):
        with Retriever(Embedder(), folder) as retriever:
            for number, one in enumerate([retriever, copy.deepcopy(retriever), pickle.loads(pickle.dumps(retriever))]):
                one.persist(tmp_path / str(number))
                with Retriever(Embedder(), tmp_path / str(number)) as opened:
                    assert len(opened) == 50

    def test_what_an_older_index_left_is_replaced(self, folder):
        encoder = KeyTokenEncoder(Embedder())
        encoder.calibrate(TEXTS[:20], show_progress_bar=False)
        with Retriever(encoder) as other:
            other.add(TEXTS[:5])
            other.persist(folder)
        with Retriever(Embedder(), folder) as opened:
            assert (len(opened), opened.encoder.calibration.document_count) == (5, 20)

    def test_a_function_of_another_name(self, folder):
        embedder = Embedder()
        with pytest.raises(ValueError, match=r"made with, Embedder x of dimension 24, got functions\. Pass that one"):
            Retriever(FunctionEmbedder(embedder.embed_documents), folder)
        named = FunctionEmbedder(embedder.embed_documents, name="Embedder x")
        with Retriever(named, folder) as opened:
            assert len(opened) == 50

    def test_a_damaged_calibration_is_refused(self, folder):
        file = next((folder / "encoder").rglob("encoder.json"))
        file.write_text(file.read_text().replace('"encode"', '"lookup"'))
        with pytest.raises(ValueError, match="got a damaged one"):
            Retriever(Embedder(), folder)


def test_sides_are_a_dictionary_of_retrievers():
    assert checked_sides(None, int, "") == {} and checked_sides({"a": 1}, int, "") == {"a": 1}
    for wrong, error, message in (
        ([1], TypeError, r"must be a dictionary of retrievers by name, got list\. For example"),
        ({"dense": 1}, ValueError, "must have names other than 'dense' and 'sparse', got 'dense'"),
        ({"": 1}, ValueError, "must have names other than"),
        ({3: 1}, ValueError, "must have names other than"),
        ({"a": "b"}, TypeError, r"must be retrievers, got str for 'a'\. Give an int\."),
    ):
        with pytest.raises(error, match=message):
            checked_sides(wrong, int, "Give an int.")
