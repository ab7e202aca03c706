from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from evaluation_samples import build_collection, build_encoder, count_passes
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.encoded import encode_collection
from st_keytokens.evaluation.methods import COMPARED_METHODS, run_methods
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.terms.weighting import METHODS


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    encoder = build_encoder(llama_embedder)
    encoder.model.append(Normalize())
    return KeyTokenEncoder(encoder.model, max_active_dims=20, query_max_active_dims=6)


@pytest.fixture(scope="module")
def encoded(encoder):
    return encode_collection(build_collection(), encoder)


@pytest.fixture(scope="module")
def runs(encoded):
    return run_methods(encoded, list(COMPARED_METHODS))


class TestEncoding:
    def test_one_pass_gives_what_the_model_gives(self, encoder, encoded):
        model, collection = encoder.model, encoded.collection
        np.testing.assert_allclose(encoded.document_dense[:49], model.encode(collection.documents[:49]), atol=1e-6)
        np.testing.assert_allclose(encoded.query_dense, model.encode(collection.queries), atol=1e-6)
        assert not np.allclose(np.linalg.norm(encoded.document_pooled[:49], axis=1), 1.0)
        assert set(encoded.seconds) == {"encode_documents", "encode_queries", "calibrate"}

    def test_each_text_passes_once_whatever_the_methods(self, llama_embedder):
        encoder = build_encoder(llama_embedder)
        passes = count_passes(encoder.model)
        collection = build_collection()
        run_methods(encode_collection(collection, encoder), list(COMPARED_METHODS))
        non_empty = sum(bool(text) for text in [*collection.documents, *collection.queries])
        assert sum(passes) == non_empty

    def test_prompts_are_the_models(self, llama_embedder):
        encoder = build_encoder(llama_embedder)
        encoder.model.prompts = {"query": "find wolves: ", "document": "about stars: "}
        encoded = encode_collection(build_collection(), encoder)
        expected = encoder.encode_query(encoded.collection.queries).dense
        np.testing.assert_allclose(encoded.query_dense, expected, atol=1e-6)
        np.testing.assert_allclose(
            encoded.document_dense, encoder.encode_document(encoded.collection.documents).dense, atol=1e-6
        )

    def test_modules_behind_the_head_run_in_their_own_precision(self, llama_embedder):
        embedder = copy.deepcopy(llama_embedder)
        head = KeyTokenHead.for_model(embedder)
        torch.manual_seed(0)
        model = SentenceTransformer(modules=[*embedder, head, Dense(32, 8)], device="cpu").bfloat16()
        collection = build_collection()
        encoded = encode_collection(collection, KeyTokenEncoder(model))
        assert encoded.document_dense.shape == (50, 8) and encoded.document_dense.dtype == np.float32
        expected = model.encode(collection.documents[:49], convert_to_numpy=False)
        expected = torch.stack(list(expected)).float().numpy()
        np.testing.assert_allclose(encoded.document_dense[:49], expected, atol=0.02)
        assert np.abs(expected).max() > 0.2

    def test_the_encoder_is_not_modified(self, encoder, encoded, runs):
        assert encoder.calibration is None
        assert encoder.weighting == METHODS["default"].weighting
        assert encoder.head.max_active_dims == 20
        assert encoded.encoder is not encoder and encoded.encoder.head.max_active_dims == 20

    def test_the_calibration_is_that_of_a_fit(self, encoder, encoded):
        fitted = copy.copy(encoder)
        fitted.head = encoder.head.with_settings()
        fitted.calibrate(encoded.collection.documents, show_progress_bar=False)
        ours = encoded.encoder.calibration
        for name in ("ids", "values"):
            own, others = (getattr(each.terms.frequencies, name) for each in (ours, fitted.calibration))
            assert np.array_equal(own, others)
        torch.testing.assert_close(ours.moments.mean, fitted.calibration.moments.mean)

    def test_an_own_calibration_is_kept_unless_another_is_wanted(self, llama_embedder, sentences):
        encoder = build_encoder(llama_embedder)
        own = encoder.calibrate(sentences[:30], show_progress_bar=False)
        assert encode_collection(build_collection(), encoder).encoder.calibration is own
        other = encode_collection(build_collection(), encoder, calibrate=True).encoder.calibration
        assert other.document_count == 50
        assert encoder.calibration is own
