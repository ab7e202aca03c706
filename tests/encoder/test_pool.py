from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Normalize

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import ForwardPass
from st_keytokens.encoder.pool import PackOutputs, check_pool, encode_with_pool
from st_keytokens.key_token_head import KeyTokenHead


@pytest.fixture
def embedder(llama_embedder):
    return copy.deepcopy(llama_embedder)


class InProcess:
    """A pool's chain of modules that runs here instead of in workers."""

    def __init__(self, forward_pass: ForwardPass) -> None:
        self.chain = forward_pass.chain([*forward_pass.before, forward_pass.head, *forward_pass.after, PackOutputs()])

    def encode(self, texts, pool, **arguments):
        return self.chain.encode(texts, **arguments)


class TestPackOutputs:
    def test_one_row_holds_everything(self):
        features = {
            "sentence_embedding": torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16),
            "key_token_ids": torch.tensor([[7, 2**29 - 1]]),
            "key_token_weights": torch.tensor([[0.25, 3.0]]),
        }
        row = PackOutputs()(features)["sentence_embedding"]
        assert row.dtype == torch.float32
        assert row.tolist() == [[0.5, -1.0, 0, 2**13 - 1, 7, 2**16 - 1, 0.25, 3.0]]


class TestEncodeWithPool:
    @pytest.mark.parametrize("role", ["document", "query"])
    def test_equals_the_forward_pass(self, embedder, sentences, role):
        embedder.append(Normalize())
        embedder.truncate_dim = 16
        forward_pass = ForwardPass(embedder, KeyTokenHead.for_model(embedder, query_max_active_dims=5).eval())
        texts = ["", *sentences[:9], "..."]
        pool = {"chain": InProcess(forward_pass)}
        dense, decoded = encode_with_pool(pool, forward_pass, texts, role, None, 4, False)
        with torch.inference_mode():
            expected, terms = forward_pass.both(texts, role, None)
        assert dense.shape == (11, 16)
        np.testing.assert_allclose(dense, expected, rtol=1e-4, atol=1e-5)
        assert np.array_equal(decoded.indptr, terms.indptr)
        assert np.array_equal(decoded.indices, terms.indices)
        np.testing.assert_allclose(decoded.values, terms.values, rtol=1e-4, atol=1e-6)

    def test_texts_without_tokens_do_not_reach_a_worker(self, embedder):
        forward_pass = ForwardPass(embedder, KeyTokenHead.for_model(embedder, max_active_dims=900).eval())
        dense, decoded = encode_with_pool({"chain": None}, forward_pass, ["", ""], "document", None, 4, False)
        assert not dense.any()
        assert decoded.shape == (2, 640)
        assert decoded.nnz == 0


class TestCheckPool:
    def test_of_something_else(self):
        with pytest.raises(ValueError, match=r"pool must come from KeyTokenEncoder\.start_multi_process_pool"):
            check_pool({"input": None}, "a")

    def test_of_an_older_encoder(self):
        check_pool({"chain": None, "fingerprint": "a"}, "a")
        with pytest.raises(ValueError, match=r"pool must have been started with the encoder as it is now"):
            check_pool({"chain": None, "fingerprint": "a"}, "b")


@pytest.mark.slow
class TestWorkers:
    def test_two_give_what_one_process_gives(self, embedder, sentences):
        embedder.truncate_dim = 16
        encoder = KeyTokenEncoder(embedder, max_active_dims=20, cache_size=0)
        encoder.calibrate(sentences, show_progress_bar=False)
        texts = ["", " ", *sentences, "\ud800"]
        pool = encoder.start_multi_process_pool(["cpu", "cpu"])
        try:
            for role in ("document", "query"):
                ours, theirs = encoder.encode(texts, role=role), encoder.encode(texts, role=role, pool=pool)
                np.testing.assert_allclose(theirs.dense, ours.dense, rtol=1e-4, atol=1e-5)
                for row, expected in zip(theirs.sparse.to_dicts(), ours.sparse.to_dicts(), strict=True):
                    assert sorted(row.values()) == pytest.approx(sorted(expected.values()), rel=1e-4)
                    weakest = min(expected.values(), default=0)  # words that always stand together weigh the same
                    for term in row.keys() | expected.keys():
                        assert row.get(term, weakest) == pytest.approx(expected.get(term, weakest), rel=1e-4)
            encoder.calibrate(sentences[:30], show_progress_bar=False)
            with pytest.raises(ValueError, match=r"pool must have been started with the encoder as it is now"):
                encoder.encode(texts, pool=pool)
        finally:
            encoder.stop_multi_process_pool(pool)
