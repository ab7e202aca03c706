"""Checkpoints as they are published: each oddity as a small one made on the fly, and what becomes of it."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from small_models import (
    build_byte_level_tokenizer,
    build_llama,
    build_sentence_transformer,
    save_language_model,
)
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor

from st_keytokens import HybridIndex, KeyTokenEncoder, KeyTokenHead

CPU = {"device": "cpu"}


def embedder(folder, model=None, tokenizer=None, pooling="mean"):
    """A SentenceTransformer of a language model and a tokenizer, saved in a folder."""
    (model or build_llama()).save_pretrained(folder)
    (tokenizer or build_byte_level_tokenizer()).save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), pooling)], **CPU)


def check_routes(encoder, sentences, tmp_path):
    """Decodes, calibrates, encodes, saves, loads, indexes and searches."""
    if encoder.head.lm_head is not None:
        assert encoder.key_tokens(sentences[0], top_k=5)[0]
    encoder.calibrate(sentences, show_progress_bar=False)
    embeddings = encoder.encode_document(sentences[:5])
    assert np.isfinite(embeddings.dense).all() and (embeddings.sparse.active_dims > 5).all()
    encoder.save_pretrained(tmp_path / "saved")
    loaded = KeyTokenEncoder(tmp_path / "saved", model_arguments=CPU)
    assert loaded.fingerprint == encoder.fingerprint
    with HybridIndex(tmp_path / "index", encoder=loaded) as index:
        index.add(["0", "1", "2"], sentences[:3])
        assert index.search(sentences[1], top_k=1, mode="sparse")[0].id == "1"


class TestDamagedWeights:
    """A download that broke midway, a shard that never came: the file, or the folder with what to do, is named."""

    @pytest.fixture
    def sharded(self, tmp_path):
        build_llama().save_pretrained(tmp_path, max_shard_size="50KB")
        build_byte_level_tokenizer().save_pretrained(tmp_path)
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
        return tmp_path

    @pytest.mark.parametrize("damage", ["half of it", "nothing of it", "another file", "one flipped length"])
    def test_a_damaged_shard(self, sharded, damage):
        shard = sorted(sharded.glob("model-*.safetensors"))[1]
        content = shard.read_bytes()
        broken = {
            "half of it": content[: len(content) // 2],
            "nothing of it": b"",
            "another file": b"<html>502 Bad Gateway</html>",
            "one flipped length": content[:7] + b"\xff" + content[8:],
        }
        shard.write_bytes(broken[damage])
        with pytest.raises(OSError, match=r"must hold whole weights, got a damaged file: .*Download it again"):
            KeyTokenEncoder(sharded, recipe="prompteol", model_arguments=CPU)

    def test_a_missing_shard_is_named(self, sharded):
        shard = sorted(sharded.glob("model-*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(OSError, match=shard.name):
            KeyTokenEncoder(sharded, recipe="prompteol", model_arguments=CPU)


class TestVocabularies:
    def test_added_token_beyond_the_matrix(self, tmp_path, sentences):
        tokenizer = copy.deepcopy(build_byte_level_tokenizer())
        tokenizer.add_tokens([f"<pad_{i}>" for i in range(40)])  # fills the 640 rows
        tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
        encoder = KeyTokenEncoder(embedder(tmp_path / "model", tokenizer=tokenizer), terms="tokens")
        assert len(tokenizer) == encoder.vocabulary.vocab_size + 1 == 641
        check_routes(encoder, sentences, tmp_path)
        ((ids, _),) = encoder.encode("A cell <image_soft_token> divides").sparse
        assert set(ids) >= set(encoder.literal_terms(["A cell"])[0])
        lookup = encoder.encode_query("A cell <image_soft_token> divides", query="lookup").sparse
        np.testing.assert_array_equal(lookup.indices, np.unique(encoder.literal_terms(["A cell  divides"])[0]))

    def test_matrix_longer_than_the_tokenizer(self, tmp_path, sentences):
        model = build_llama()
        model.resize_token_embeddings(704, mean_resizing=False)
        encoder = KeyTokenEncoder(embedder(tmp_path / "model", model), terms="tokens")
        assert encoder.vocabulary.vocab_size == 704 and encoder.vocabulary.is_masked[640:].all()
        check_routes(encoder, sentences, tmp_path)

    def test_matrix_shorter_than_the_tokenizer(self, tmp_path, sentences, caplog):
        model = build_llama()
        model.resize_token_embeddings(590, mean_resizing=False)
        encoder = KeyTokenEncoder(embedder(tmp_path / "model", model), terms="tokens")
        assert encoder.vocabulary.vocab_size == 590
        assert "lie beyond the 590 rows of the model" in caplog.text
        check_routes(encoder, sentences, tmp_path)

    def test_no_token_to_pad_with(self, tmp_path, sentences):
        whole = build_byte_level_tokenizer()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole.backend_tokenizer, eos_token="<|endoftext|>")
        model = embedder(tmp_path / "model", tokenizer=tokenizer)
        assert model.tokenizer.pad_token is None
        encoder = KeyTokenEncoder(model)
        assert model.tokenizer.pad_token == "<|endoftext|>"
        check_routes(encoder, sentences, tmp_path)

    def test_nothing_at_all_to_pad_with(self, tmp_path):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_byte_level_tokenizer().backend_tokenizer)
        with pytest.raises(ValueError, match=r"a token to pad with, got none\. Set model\.tokenizer\.pad_token"):
            KeyTokenEncoder(embedder(tmp_path / "model", tokenizer=tokenizer))


class TestHeads:
    @pytest.mark.parametrize("kind", ["llama", "llama-untied", "bert"])
    def test_language_model_as_a_path(self, tmp_path, sentences, kind):
        save_language_model(tmp_path / "model", kind)
        encoder = KeyTokenEncoder(tmp_path / "model", model_arguments=CPU)
        tensors = load_file(tmp_path / "model" / "model.safetensors")
        if kind != "bert":
            weight = tensors["model.embed_tokens.weight" if kind == "llama" else "lm_head.weight"]
            torch.testing.assert_close(encoder.head.lm_head.weight.detach(), weight)
        assert encoder.head.lm_head.is_tied == (kind == "llama")
        check_routes(encoder, sentences, tmp_path)

    def test_unknown_lm_head_wants_a_calibration(self, tmp_path, bert_embedder, sentences):
        encoder = KeyTokenEncoder(copy.deepcopy(bert_embedder))
        for decode in (encoder.key_tokens, encoder.encode):
            with pytest.raises(ValueError, match=r"LM head must be known .* KeyTokenEncoder\.calibrate\(texts\)"):
                decode(sentences[:2])
        assert encoder.encode_query("proteins", query="lookup").sparse.nnz
        check_routes(encoder, sentences, tmp_path)
        tokens = [token for token, _ in encoder.key_tokens(sentences[0], top_k=5)[0]]
        words = {word for text in sentences for word in text.lower().strip(".").split()}
        assert len(tokens) == 5 and set(tokens) <= words

    def test_dense_layers_after_pooling(self, tmp_path, sentences):
        model = embedder(tmp_path / "model")
        model = SentenceTransformer(modules=[*model, Dense(32, 48, bias=False), Dense(48, 32), Normalize()], **CPU)
        encoder = KeyTokenEncoder(model)
        check_routes(encoder, sentences, tmp_path)
        dense = model.encode(sentences[:3])
        np.testing.assert_allclose(encoder.encode(sentences[:3]).dense, dense, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match="Dense, Dense follows pooling"):
            encoder.sparsify(dense)

    def test_sixteen_bits(self, tmp_path, sentences):
        model = embedder(tmp_path / "model", build_llama().to(torch.bfloat16))
        encoder = KeyTokenEncoder(model.to(torch.bfloat16))  # transformers 4 loads it in 32
        assert encoder.head.lm_head.dtype == torch.bfloat16
        check_routes(encoder, sentences, tmp_path)

    @pytest.mark.parametrize("is_tied", [True, False])
    def test_language_model_in_a_vision_language_model(self, tmp_path, sentences, is_tied):
        pytest.importorskip("PIL", reason="the model's own processor of images needs it")
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        text = LlamaConfig(**sizes, vocab_size=640, num_key_value_heads=2, tie_word_embeddings=is_tied)
        vision = CLIPVisionConfig(**sizes, image_size=14, patch_size=7)
        config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=639, tie_word_embeddings=is_tied)
        torch.manual_seed(0)
        LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "model")
        images = CLIPImageProcessor(size={"shortest_edge": 14}, crop_size=14)
        tokenizer = copy.deepcopy(build_byte_level_tokenizer())  # the processor signs it
        LlavaProcessor(images, tokenizer, patch_size=7).save_pretrained(tmp_path / "model")
        encoder = KeyTokenEncoder(tmp_path / "model", model_arguments=CPU)
        tensors = load_file(tmp_path / "model" / "model.safetensors")
        name = next(n for n in tensors if n.endswith("embed_tokens.weight" if is_tied else "lm_head.weight"))
        torch.testing.assert_close(encoder.head.lm_head.weight.detach(), tensors[name])
        check_routes(encoder, sentences, tmp_path)


class TestHeadAsAModule:
    @pytest.fixture
    def model(self, tmp_path):
        return build_sentence_transformer(tmp_path / "model")

    def test_saved_with_the_head_it_loads_without_remote_code(self, model, tmp_path, sentences):
        encoder = KeyTokenEncoder(model)
        calibration = encoder.calibrate(sentences, show_progress_bar=False)
        model.insert(2, KeyTokenHead.for_model(model, calibration))
        model.save_pretrained(str(tmp_path / "with-head"))
        loaded = KeyTokenEncoder(tmp_path / "with-head", model_arguments=CPU)
        assert loaded.calibration.document_count == len(sentences)
        assert loaded.encode(sentences[:2]).sparse == KeyTokenEncoder(model).encode(sentences[:2]).sparse

    def test_compiled(self, model, sentences):
        dense = model.encode(sentences[:3])
        model.insert(2, KeyTokenHead.for_model(model))
        ids = model.encode(sentences[:3], output_value="key_token_ids")
        model.compile(backend="eager")
        np.testing.assert_allclose(model.encode(sentences[:3]), dense, rtol=1e-5, atol=1e-6)
        compiled = model.encode(sentences[:3], output_value="key_token_ids")
        assert all(torch.equal(one, other) for one, other in zip(ids, compiled, strict=True))

    def test_a_vector_that_is_not_finite_stays_and_has_no_key_tokens(self, model, caplog):
        head = KeyTokenHead.for_model(model)
        vectors = torch.randn(3, 32)
        vectors[1, 5] = float("nan")
        features = head({"sentence_embedding": vectors})
        assert torch.equal(features["sentence_embedding"].isnan(), vectors.isnan())
        assert features["key_token_weights"].gt(0).sum(dim=1).tolist()[1] == 0
        expected = head.decode(vectors[[0, 2]])
        torch.testing.assert_close(features["key_token_weights"][[0, 2]], expected[1])
        assert "1 of 3 embeddings are not finite" in caplog.text


class Poisoned(torch.nn.Module):
    """Pooling's output with NaN for texts of so many tokens."""

    def __init__(self, length):
        super().__init__()
        self.length = length

    def forward(self, features, **_):
        is_hit = features["attention_mask"].sum(dim=1) == self.length
        features["sentence_embedding"] = features["sentence_embedding"].masked_fill(is_hit[:, None], float("nan"))
        return features


def test_the_text_whose_vector_is_not_finite_is_named(llama_embedder, sentences):
    texts = [*sentences[:5], "one two three", *sentences[6:11]]
    length = len(llama_embedder.tokenizer(texts[5])["input_ids"])
    model = SentenceTransformer(modules=[*copy.deepcopy(llama_embedder), Poisoned(length)], **CPU)
    encoder = KeyTokenEncoder(model, head=KeyTokenHead.for_model(llama_embedder))
    encoder.encode(texts[:5])  # remembered, so that not all of the texts take a pass
    with pytest.raises(ValueError, match="NaN or infinity for text 5"):
        encoder.encode(texts, batch_size=2)


class TestChangingWeights:
    @pytest.fixture
    def encoder(self, llama_embedder):
        return KeyTokenEncoder(copy.deepcopy(llama_embedder))

    @staticmethod
    def train(model):
        body = model[0].auto_model
        optimizer = torch.optim.SGD(body.parameters(), lr=0.1)
        with torch.enable_grad():
            features = model.preprocess(["genes encode proteins"])
            model(features)["sentence_embedding"].sum().backward()
        optimizer.step()

    @pytest.mark.parametrize("how", ["train", "data", "load_state_dict"])
    def test_they_are_noticed(self, encoder, sentences, how, tmp_path, caplog):
        before, old = encoder.fingerprint, encoder.encode(sentences[:2])
        with HybridIndex(tmp_path / "index", encoder=encoder) as index:
            index.add(["0", "1"], sentences[:2])
            if how == "train":
                self.train(encoder.model)
            elif how == "data":
                for parameter in encoder.model.parameters():
                    parameter.data += 0.1
            else:
                other = KeyTokenEncoder(copy.deepcopy(encoder.model))
                self.train(other.model)
                encoder.model.load_state_dict(other.model.state_dict())
            new = encoder.encode(sentences[:2])
            assert encoder.fingerprint != before
            assert not np.allclose(new.dense, old.dense)
            assert "weights have changed under the encoder" in caplog.text
            with pytest.raises(ValueError, match="fingerprint"):
                index.add(["2"], sentences[2:3])

    def test_a_calibration_of_the_old_ones_is_refused(self, encoder, sentences):
        encoder.calibrate(sentences, show_progress_bar=False)
        self.train(encoder.model)
        for call in (encoder.encode, encoder.key_tokens, lambda texts: encoder.sparsify(np.ones((1, 32), np.float32))):
            with pytest.raises(ValueError, match="calibration must be fitted with the model's weights"):
                call(sentences[:1])
        encoder.calibrate(sentences, show_progress_bar=False)
        assert encoder.encode(sentences[:1]).sparse.nnz

    def test_the_same_weights_again_are_no_change(self, encoder, sentences, caplog):
        before = encoder.fingerprint
        encoder.model.load_state_dict(copy.deepcopy(encoder.model.state_dict()))
        encoder.encode(sentences[:1])
        assert encoder.fingerprint == before and not caplog.text

    def test_half_precision_is_said_and_what_is_remembered_is_forgotten(self, encoder, sentences, caplog):
        encoder.encode(sentences[:2])
        encoder.model.bfloat16()
        caplog.set_level(logging.WARNING)
        encoder.refresh()
        assert "bfloat16 now" in caplog.text and len(encoder.cache) == 0
