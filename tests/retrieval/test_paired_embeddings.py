from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from retrieval_samples import TEXTS

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import PairedEmbeddings, paired_embeddings


@pytest.fixture(params=[0, 3, 1024], ids=lambda size: f"cache-{size}")
def uncached(request, llama_embedder, calibration):
    return KeyTokenEncoder(llama_embedder, calibration=calibration, cache_size=request.param)


class TestVectors:
    def test_are_the_encoders(self, encoder):
        pair = PairedEmbeddings(encoder)
        expected = encoder.encode_document(TEXTS)
        np.testing.assert_array_equal(pair.dense(TEXTS, "document"), expected.dense)
        assert pair.sparse(TEXTS, "document") == expected.sparse
        query = encoder.encode_query("a query")
        np.testing.assert_array_equal(pair.dense(["a query"], "query"), query.dense)
        assert pair.sparse(["a query"], "query") == query.sparse

    def test_plain_forms(self, encoder):
        pair = PairedEmbeddings(encoder)
        expected = encoder.encode_document(TEXTS)
        assert pair.dense_documents(TEXTS) == expected.dense.tolist()
        assert [dict(zip(*row, strict=True)) for row in pair.sparse_documents(TEXTS)] == expected.sparse.to_dicts()
        query = encoder.encode_query("a query")
        assert pair.dense_query("a query") == query.dense[0].tolist()
        assert dict(zip(*pair.sparse_query("a query"), strict=True)) == query.sparse.to_dicts()[0]

    def test_no_text_and_no_term(self, encoder):
        pair = PairedEmbeddings(encoder)
        assert pair.dense([], "document").shape == (0, 32)
        assert pair.sparse([], "document").to_dicts() == []
        assert pair.sparse_documents(["", "a"])[0] == ([], [])
        assert pair.sparse_query("") == ([], [])

    def test_order_and_repetition(self, uncached):
        pair = PairedEmbeddings(uncached)
        texts = [TEXTS[1], TEXTS[0], TEXTS[1]]
        pair.sparse(TEXTS[:1], "document")  # one half of one text waits
        dense = pair.dense(texts, "document")
        np.testing.assert_allclose(dense, uncached.encode_document(texts).dense, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(dense[0], dense[2])


class TestForwardPasses:
    def test_dense_then_sparse_takes_one(self, uncached, passes):
        pair = PairedEmbeddings(uncached)
        pair.dense_documents(TEXTS)
        pair.sparse_documents(TEXTS)
        assert passes.take() == len(TEXTS)

    def test_sparse_then_dense_takes_one_even_text_by_text(self, uncached, passes):
        pair = PairedEmbeddings(uncached)
        for text in TEXTS:
            pair.sparse_documents([text])
        pair.dense_documents(TEXTS)
        assert passes.take() == len(TEXTS)

    def test_all_pairs_of_an_encoder_share_it(self, uncached, passes):
        PairedEmbeddings(uncached).dense_query("a query")
        PairedEmbeddings(uncached).sparse_query("a query")
        assert passes.take() == 1

    def test_a_text_twice_takes_one(self, uncached, passes):
        PairedEmbeddings(uncached).dense_documents(["same", "same", "same"])
        assert passes.take() == 1

    def test_roles_are_not_mixed_up(self, encoder, passes):
        pair = PairedEmbeddings(encoder)
        pair.dense_documents(["text"])
        assert pair.sparse(["text"], "query") == encoder.encode_query("text").sparse
        assert passes.take() == 2

    def test_halves_of_earlier_settings_are_not_used(self, encoder):
        pair = PairedEmbeddings(encoder)
        pair.dense_documents(TEXTS)
        encoder.head.max_active_dims = 2
        assert pair.sparse(TEXTS, "document") == encoder.encode_document(TEXTS).sparse

    def test_lookup_takes_none(self, llama_embedder, calibration, passes):
        encoder = KeyTokenEncoder(llama_embedder, calibration=calibration, query="lookup")
        pair = PairedEmbeddings(encoder)
        assert pair.sparse(["a gene"], "query") == encoder.encode_query("a gene", query="lookup").sparse
        assert passes.take() == 0
        assert any(pair.dense_query("a gene"))
        assert passes.take() == 1

    def test_threads_that_ask_for_the_same_text_share_one(self, encoder, passes):
        pair, start = PairedEmbeddings(encoder), threading.Barrier(16)

        def ask(number):
            start.wait()
            return pair.dense_query("the same") if number % 2 else pair.sparse_query("the same")

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(ask, range(16)))
        assert passes.take() == 1
        assert all(result == results[number % 2] for number, result in enumerate(results))


class TestMemory:
    def test_what_waits_is_bounded(self, llama_embedder, calibration, passes, monkeypatch):
        monkeypatch.setattr(paired_embeddings, "WAITING_BYTES", 4 * 32 * 4)  # four dense vectors
        pair = PairedEmbeddings(KeyTokenEncoder(llama_embedder, calibration=calibration, cache_size=0))
        pair.sparse_documents(TEXTS)
        passes.take()
        pair.dense_documents(TEXTS[-4:])
        assert passes.take() == 0
        pair.dense_documents(TEXTS[:4])
        assert passes.take() == 4

    def test_a_half_waits_once(self, llama_embedder, calibration, passes):
        pair = PairedEmbeddings(KeyTokenEncoder(llama_embedder, calibration=calibration, cache_size=0))
        pair.dense_documents(["text"])
        pair.sparse_documents(["text"])
        assert passes.take() == 1
        pair.sparse_documents(["text"])
        assert passes.take() == 1


def test_pickle(encoder):
    pair = pickle.loads(pickle.dumps(PairedEmbeddings(encoder)))
    assert pair.sparse_query("a gene") == PairedEmbeddings(encoder).sparse_query("a gene")


class TestValidation:
    def test_encoder(self):
        with pytest.raises(TypeError, match="encoder must be a KeyTokenEncoder, got str"):
            PairedEmbeddings("model")

    def test_texts(self, encoder):
        with pytest.raises(TypeError, match="texts must be a list of strings, got str"):
            PairedEmbeddings(encoder).dense_documents("text")
        with pytest.raises(TypeError, match="texts must be strings, got int 1"):
            PairedEmbeddings(encoder).sparse_documents(["text", 1])
