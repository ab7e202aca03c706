from __future__ import annotations

import pickle
from uuid import uuid4

import numpy as np
import pytest
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_keytokens import KeyTokensEmbeddings

TEXTS = ["Stars form in clouds of gas.", "行星围绕恒星运行。", ""]


class TestStandard(EmbeddingsUnitTests):
    @pytest.fixture(autouse=True)
    def _encoder(self, encoder):
        self.encoder = encoder

    @property
    def embeddings_class(self):
        return KeyTokensEmbeddings

    @property
    def embedding_model_params(self):
        return {"encoder": self.encoder}


class TestVectors:
    def test_documents_are_the_models_own(self, encoder):
        expected = encoder.model.encode_document(TEXTS[:2])
        np.testing.assert_allclose(KeyTokensEmbeddings(encoder).embed_documents(TEXTS[:2]), expected, atol=1e-5)

    def test_a_query_is_the_models_own(self, encoder):
        expected = encoder.model.encode_query(TEXTS[0])
        np.testing.assert_allclose(KeyTokensEmbeddings(encoder).embed_query(TEXTS[0]), expected, atol=1e-5)

    def test_a_query_is_embedded_though_the_encoder_looks_queries_up(self, encoder, monkeypatch):
        expected = KeyTokensEmbeddings(encoder).embed_query(TEXTS[0])
        monkeypatch.setattr(encoder, "query", "lookup")
        assert KeyTokensEmbeddings(encoder).embed_query(TEXTS[0]) == expected

    def test_no_text_gives_no_vector(self, encoder):
        assert KeyTokensEmbeddings(encoder).embed_documents([]) == []

    def test_a_text_without_a_token_has_a_vector_of_the_same_length(self, encoder):
        first, _, empty = KeyTokensEmbeddings(encoder).embed_documents(TEXTS)
        assert len(empty) == len(first) == encoder.get_embedding_dimension()

    def test_it_survives_pickling(self, encoder):
        embeddings = KeyTokensEmbeddings(encoder)
        copy = pickle.loads(pickle.dumps(embeddings))
        np.testing.assert_allclose(copy.embed_query(TEXTS[0]), embeddings.embed_query(TEXTS[0]), atol=1e-6)


async def test_embedding_does_not_block_the_event_loop(encoder, beside_the_loop):
    vector = await beside_the_loop(KeyTokensEmbeddings(encoder).aembed_query(f"asked never before {uuid4()}"))
    assert len(vector) == encoder.get_embedding_dimension()


class TestValidation:
    def test_something_else_than_an_encoder_is_refused(self):
        with pytest.raises(TypeError, match="encoder must be a KeyTokenEncoder, got str"):
            KeyTokensEmbeddings("examples/tiny-embedder/embedder")

    def test_a_single_string_is_no_list_of_documents(self, encoder):
        with pytest.raises(TypeError, match="texts must be a list of strings, got str"):
            KeyTokensEmbeddings(encoder).embed_documents("one text")
