from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from st_keytokens import KeyTokenEncoder
from st_keytokens.encoder.pooled_vectors import dense_vectors, hybrid_embeddings, pooled_vectors, vectors_key


@pytest.fixture
def encoder(llama_embedder):
    return KeyTokenEncoder(copy.deepcopy(llama_embedder), max_active_dims=20)


@pytest.fixture
def passes(encoder):
    """Grows by the batch size of every forward pass of the language model."""
    batches: list[int] = []
    embeddings = encoder.model[0].auto_model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    return batches


@pytest.fixture
def with_dense(llama_embedder):
    """An encoder of a model with a projection behind pooling."""
    torch.manual_seed(0)
    modules = [*copy.deepcopy(llama_embedder), Dense(32, 8), Normalize()]
    return KeyTokenEncoder(SentenceTransformer(modules=modules, device="cpu"), max_active_dims=20)


class TestPooledVectors:
    def test_are_what_the_head_decodes(self, encoder, sentences):
        vectors, seconds = pooled_vectors(encoder, sentences, batch_size=8)
        np.testing.assert_allclose(encoder.prepare_embeddings(vectors), encoder.embed(sentences), rtol=1e-4, atol=1e-6)
        assert vectors.dtype == np.float32 and seconds > 0

    def test_no_texts(self, encoder, tmp_path):
        for path in (None, tmp_path / "vectors"):
            vectors, seconds = pooled_vectors(encoder, [], path=path)
            assert (vectors.shape, vectors.dtype, seconds) == ((0, 32), np.float32, 0.0)

    def test_unusual_texts(self, encoder, tmp_path):
        texts = ["", "  ", "a\x00b", "\ud800", "🧬"]
        for path in (tmp_path / "vectors", tmp_path / "vectors", None):
            vectors, _ = pooled_vectors(encoder, texts, path=path)
            np.testing.assert_allclose(encoder.prepare_embeddings(vectors), encoder.embed(texts), rtol=1e-4, atol=1e-6)

    def test_role_decides_the_prompt(self, encoder, sentences):
        encoder.model.prompts = {"query": "Question: ", "document": ""}
        vectors, _ = pooled_vectors(encoder, sentences[:3], role="query")
        np.testing.assert_allclose(
            encoder.prepare_embeddings(vectors), encoder.embed(sentences[:3], role="query"), rtol=1e-4, atol=1e-6
        )
        assert vectors_key(encoder, "query") != vectors_key(encoder, "document")


class TestStored:
    def test_nothing_is_embedded_twice(self, encoder, passes, sentences, tmp_path):
        first, seconds = pooled_vectors(encoder, sentences, path=tmp_path / "vectors")
        assert sum(passes) == 50
        again, same = pooled_vectors(encoder, sentences, path=tmp_path / "vectors")
        assert (sum(passes), same) == (50, seconds)
        assert isinstance(again, np.memmap) and np.array_equal(first, again)

    def test_goes_on_where_it_stopped(self, encoder, passes, sentences, tmp_path):
        pooled_vectors(encoder, sentences[:20], path=tmp_path)
        vectors, _ = pooled_vectors(encoder, sentences, path=tmp_path)
        assert sum(passes) == 50
        np.testing.assert_allclose(vectors, pooled_vectors(encoder, sentences)[0], rtol=1e-4, atol=1e-6)

    def test_is_cut_where_the_texts_differ(self, encoder, passes, sentences, tmp_path):
        pooled_vectors(encoder, sentences, path=tmp_path)
        changed = [*sentences[:30], "Another text.", *sentences[31:40]]
        vectors, _ = pooled_vectors(encoder, changed, path=tmp_path)
        assert sum(passes) == 60
        np.testing.assert_allclose(vectors, pooled_vectors(encoder, changed)[0], rtol=1e-4, atol=1e-6)
        assert pooled_vectors(encoder, sentences[:5], path=tmp_path)[0].shape == (5, 32)

    @pytest.mark.parametrize(("name", "size"), [("vectors.f32", 4 * 32 * 9 + 7), ("texts.digests", 16 * 9 + 5)])
    def test_torn_write(self, encoder, passes, sentences, tmp_path, name, size):
        whole, _ = pooled_vectors(encoder, sentences, path=tmp_path)
        whole = whole.copy()
        with (tmp_path / name).open("r+b") as file:
            file.truncate(size)
        vectors, _ = pooled_vectors(encoder, sentences, path=tmp_path)
        assert sum(passes) == 50 + 41
        np.testing.assert_allclose(vectors, whole, rtol=1e-4, atol=1e-6)

    def test_changes_stay_in_memory(self, encoder, sentences, tmp_path):
        vectors, _ = pooled_vectors(encoder, sentences[:3], path=tmp_path)
        before = vectors.copy()
        vectors[:] = 0
        assert np.array_equal(pooled_vectors(encoder, sentences[:3], path=tmp_path)[0], before)

    def test_another_model(self, encoder, sentences, tmp_path):
        pooled_vectors(encoder, sentences[:3], path=tmp_path / "v")
        encoder.model.max_seq_length = 4
        with pytest.raises(
            ValueError, match=r"v must hold vectors of this model, its settings and prompts, got those"
        ):
            pooled_vectors(encoder, sentences[:3], path=tmp_path / "v")

    def test_something_else(self, encoder, sentences, tmp_path):
        for content in ("", "{}", "[]", '{"key": "a", "seconds": "b"}'):
            (tmp_path / "about.json").write_text(content)
            with pytest.raises(ValueError, match="must hold stored vectors, got something else"):
                pooled_vectors(encoder, sentences[:3], path=tmp_path)

    def test_second_writer(self, encoder, sentences, tmp_path):
        class Interfering(list):
            """Lets another process append while its first texts are embedded."""

            def __iter__(self):
                for position, text in enumerate(super().__iter__()):
                    if position == 16:
                        with (tmp_path / "vectors.f32").open("ab") as file:
                            file.write(b"\0" * 128)
                    yield text

        with pytest.raises(ValueError, match="must be written by one process at a time, got another"):
            pooled_vectors(encoder, Interfering(sentences), path=tmp_path, batch_size=1)
        assert pooled_vectors(encoder, sentences, path=tmp_path)[0].shape == (50, 32)

    def test_format_is_as_documented(self, encoder, sentences, tmp_path):
        vectors, seconds = pooled_vectors(encoder, sentences[:4], path=tmp_path)
        about = json.loads((tmp_path / "about.json").read_text())
        assert about == {"key": vectors_key(encoder, "document"), "seconds": seconds}
        rows = np.fromfile(tmp_path / "vectors.f32", dtype=np.float32).reshape(4, 32)
        assert np.array_equal(rows, vectors)
        assert (tmp_path / "texts.digests").stat().st_size == 4 * 16


class TestEmbeddings:
    def test_dense_are_the_models_own(self, encoder, with_dense, sentences):
        for made in (encoder, with_dense):
            pooled, _ = pooled_vectors(made, sentences)
            expected = made.model.encode_document(sentences)
            np.testing.assert_allclose(dense_vectors(made, pooled), expected, rtol=1e-4, atol=1e-6)
        encoder.model.truncate_dim = 5
        pooled, _ = pooled_vectors(encoder, sentences[:3])
        expected = encoder.model.encode_document(sentences[:3])
        assert expected.shape == (3, 5)
        np.testing.assert_allclose(dense_vectors(encoder, pooled), expected, rtol=1e-4, atol=1e-6)

    def test_both_are_those_of_a_pass(self, encoder, with_dense, sentences):
        for made in (encoder, with_dense):
            made.calibrate(sentences, show_progress_bar=False)
            pooled, _ = pooled_vectors(made, sentences)
            found, expected = hybrid_embeddings(made, pooled, sentences), made.encode_document(sentences)
            np.testing.assert_allclose(found.dense, expected.dense, rtol=1e-4, atol=1e-6)
            for mine, theirs in zip(found.sparse.to_dicts(), expected.sparse.to_dicts(), strict=True):
                assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
