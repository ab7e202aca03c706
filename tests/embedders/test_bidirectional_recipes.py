from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from embedder_checkpoints import (
    build_language_model,
    build_metaspace_tokenizer,
    save,
    save_adapter,
)
from reference_models import mistral_hidden_states, tensors_of, with_adapter
from transformers import AutoModel

from st_keytokens.embedders import TemplateTransformer, load_embedder, open_embedder
from st_keytokens.embedders.recipes import RECIPES
from st_keytokens.embedders.template_transformer import bidirectional_mask
from st_keytokens.encoder.encoder import KeyTokenEncoder

GRITLM = "GritLM/GritLM-7B"
MNTP = "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
TEXTS = ["The genome of a mouse.", "Stars", "Antibodies bind to proteins on the surface of the virus and block it."]


@pytest.fixture(scope="module")
def mistral():
    return build_language_model("mistral", is_tied=False, sliding_window=None, rope_theta=10000.0)


@pytest.fixture(scope="module")
def gritlm(tmp_path_factory, mistral):
    """In several files, as a model of 7 billion parameters is."""
    return save(tmp_path_factory.mktemp("gritlm"), mistral, build_metaspace_tokenizer(), shard="60KB")


@pytest.fixture(scope="module")
def gritlm_model(gritlm):
    return load_embedder(gritlm, recipe=GRITLM, model_arguments={"device": "cpu"})


def logits(vectors, tensors):
    return torch.as_tensor(np.asarray(vectors, dtype=np.float64)) @ tensors["lm_head.weight"].double().T


class TestReference:
    def test_causal_reference_is_transformers(self, gritlm):
        ids = build_metaspace_tokenizer()(TEXTS[0])["input_ids"]
        with torch.inference_mode():
            expected = AutoModel.from_pretrained(gritlm)(torch.tensor([ids])).last_hidden_state[0]
        found = mistral_hidden_states(tensors_of(gritlm), ids, is_causal=True)
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)


class TestMask:
    def test_padding_is_not_seen_on_either_side(self):
        mask = bidirectional_mask(torch.tensor([[1, 1, 0], [0, 1, 1]]), torch.float32)
        assert mask.shape == (2, 1, 3, 3)
        assert (mask[0, 0] == 0).tolist() == [[True, True, False]] * 3
        assert (mask[1, 0] == 0).tolist() == [[False, True, True]] * 3


class TestGritLM:
    def expected(self, folder, prompt, text):
        tokenizer, tensors = build_metaspace_tokenizer(), tensors_of(folder)
        ids = tokenizer(prompt + text)["input_ids"]
        hidden = mistral_hidden_states(tensors, ids, is_causal=False)
        return torch.nn.functional.normalize(hidden[len(tokenizer(prompt)["input_ids"]) :].mean(dim=0), dim=0)

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_pooled_vectors(self, gritlm, attention):
        arguments = {"device": "cpu", "model_kwargs": {"attn_implementation": attention}}
        model = load_embedder(gritlm, recipe=GRITLM, model_arguments=arguments)
        expected = torch.stack([self.expected(gritlm, "<|embed|>\n", text) for text in TEXTS])
        np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.encode(TEXTS, batch_size=1), expected, rtol=1e-4, atol=1e-5)

    def test_instruction(self, gritlm, gritlm_model):
        prompt = "<|user|>\nFind the virus\n<|embed|>\n"
        expected = torch.stack([self.expected(gritlm, prompt, text) for text in TEXTS])
        np.testing.assert_allclose(gritlm_model.encode(TEXTS, prompt=prompt), expected, rtol=1e-4, atol=1e-5)
        query = gritlm_model.prompts["query"]
        expected = torch.stack([self.expected(gritlm, query, text) for text in TEXTS])
        np.testing.assert_allclose(gritlm_model.encode_query(TEXTS), expected, rtol=1e-4, atol=1e-5)

    def test_is_not_the_causal_model(self, gritlm, gritlm_model):
        causal = copy.deepcopy(gritlm_model)
        causal[0].is_bidirectional = False
        assert not np.allclose(causal.encode(TEXTS), gritlm_model.encode(TEXTS), atol=1e-3)

    def test_decoded_tokens(self, gritlm, gritlm_model):
        encoder = KeyTokenEncoder(gritlm_model)
        names = [type(module).__name__ for module in gritlm_model]
        assert names == ["TemplateTransformer", "Pooling", "KeyTokenHead", "Normalize"]
        encoded = encoder.encode_document(TEXTS)
        vectors = torch.stack([self.expected(gritlm, "<|embed|>\n", text) for text in TEXTS])
        expected = logits(vectors, tensors_of(gritlm))
        scores = encoder.head.decode_scores(torch.from_numpy(encoded.dense))
        seen = torch.isfinite(scores)
        torch.testing.assert_close(scores[seen].double(), expected[seen], rtol=1e-3, atol=1e-4)
        for tokens, row in zip(encoder.key_tokens(TEXTS, top_k=3, correction="none"), expected, strict=True):
            best = row.masked_fill(~seen[0], -torch.inf).argmax()
            assert tokens[0][0] == encoder.vocabulary.strings[encoder.vocabulary.terms[best]]

    def test_half_precision(self, gritlm):
        arguments = {"device": "cpu", "model_kwargs": {"dtype": torch.bfloat16}}
        model = load_embedder(gritlm, recipe=GRITLM, model_arguments=arguments)
        expected = torch.stack([self.expected(gritlm, "<|embed|>\n", text) for text in TEXTS])
        cosines = (torch.from_numpy(model.encode(TEXTS)).double() * expected).sum(dim=1)
        assert float(cosines.min()) > 0.99

    def test_other_attention_is_refused(self, gritlm_model):
        model = copy.deepcopy(gritlm_model)
        model[0].auto_model.config._attn_implementation_internal = "flash_attention_2"
        with pytest.raises(ValueError, match=r"attn_implementation must be one of 'eager', .*flash_attention_2"):
            model.encode(TEXTS)


class TestLLM2Vec:
    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory, mistral, gritlm):
        pytest.importorskip("peft", reason="adapters are merged by peft")
        root = tmp_path_factory.mktemp("llm2vec")
        body = copy.deepcopy(mistral).model
        first = save_adapter(root / "mntp", copy.deepcopy(body), seed=1, base=MISTRAL)
        second = save_adapter(root / "supervised", copy.deepcopy(body), seed=2, base=MISTRAL)
        return gritlm, first, second

    @pytest.fixture(scope="class")
    def model(self, folders):
        base, first, second = folders
        return load_embedder(
            second,
            recipe=f"{MNTP}-supervised",
            backbone=base,
            places={MNTP: first},
            model_arguments={"device": "cpu"},
        )

    def expected(self, folders, prompt, text):
        """As LLM2Vec's own code: the tokens of the text and what follows it, counted from the end."""
        base, first, second = folders
        tokenizer = build_metaspace_tokenizer()
        tensors = with_adapter(with_adapter(tensors_of(base), first, scale=2.0), second, scale=2.0)
        ids = tokenizer(f"[INST] {prompt}{text} [/INST]")["input_ids"]
        count = len(tokenizer(f"{text} [/INST]", add_special_tokens=False)["input_ids"])
        return mistral_hidden_states(tensors, ids, is_causal=False)[-count:].mean(dim=0)

    def test_pooled_vectors(self, folders, model):
        expected = torch.stack([self.expected(folders, "", text) for text in TEXTS])
        np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=1e-4, atol=1e-4)

    def test_instruction(self, folders, model):
        expected = torch.stack([self.expected(folders, model.prompts["query"], text) for text in TEXTS])
        np.testing.assert_allclose(model.encode_query(TEXTS), expected, rtol=1e-4, atol=1e-4)

    def test_decoded_tokens(self, folders, model):
        encoder = KeyTokenEncoder(model)
        vectors = torch.stack([self.expected(folders, "", text) for text in TEXTS])
        expected = logits(torch.nn.functional.normalize(vectors, dim=1), tensors_of(folders[0]))
        scores = encoder.head.decode_scores(torch.from_numpy(encoder.encode(TEXTS).dense))
        seen = torch.isfinite(scores)
        torch.testing.assert_close(scores[seen].double(), expected[seen], rtol=1e-3, atol=1e-4)

    def test_unsupervised_differs_in_its_adapter_alone(self, folders, model):
        base, first, second = folders
        name = f"{MNTP}-unsup-simcse"
        arguments = {"recipe": name, "backbone": base, "places": {MNTP: first}}
        other = load_embedder(second, model_arguments={"device": "cpu"}, **arguments)
        np.testing.assert_array_equal(other.encode_query(TEXTS), model.encode_query(TEXTS))
        assert RECIPES[name].adapters == (MNTP, name)

    def test_nothing_of_peft_is_left(self, model):
        assert not [name for name, _ in model.named_parameters() if "lora" in name]
        assert not hasattr(model[0].auto_model, "peft_config")

    def test_adapter_of_another_model(self, folders, tmp_path):
        base, first, _ = folders
        wide = build_language_model("mistral", hidden_size=48)
        other = save_adapter(tmp_path / "wide", wide.model, seed=3, base="wide")
        with pytest.raises(ValueError, match=r"adapter must fit MistralModel, got .*wide"):
            load_embedder(other, recipe=f"{MNTP}-supervised", backbone=base, places={MNTP: first})
        deep = build_language_model("mistral", num_hidden_layers=3)
        other = save_adapter(tmp_path / "deep", deep.model, seed=3, base="deep")
        with pytest.raises(ValueError, match=r"adapter must fit .* no place for its .*layers\.2"):
            load_embedder(other, recipe=f"{MNTP}-supervised", backbone=base, places={MNTP: first})
        shallow = build_language_model("mistral", num_hidden_layers=1)
        other = save_adapter(tmp_path / "shallow", shallow.model, seed=3, base="shallow")
        with pytest.raises(ValueError, match=r"adapter must fit .* no weight for .*layers\.1"):
            load_embedder(other, recipe=f"{MNTP}-supervised", backbone=base, places={MNTP: first})


class TestSaveLoad:
    def test_encoder_of_a_recipe(self, gritlm, tmp_path):
        model, lm_head = open_embedder(gritlm, recipe=GRITLM, model_arguments={"device": "cpu"})
        encoder = KeyTokenEncoder(model, backbone=lm_head)
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "saved", model_arguments={"device": "cpu"})
        assert isinstance(loaded.model[0], TemplateTransformer)
        assert loaded.fingerprint == encoder.fingerprint
        for encode in ("encode_document", "encode_query"):
            before, after = getattr(encoder, encode)(TEXTS), getattr(loaded, encode)(TEXTS)
            np.testing.assert_allclose(after.dense, before.dense, rtol=1e-5, atol=1e-6)
            assert after.sparse == before.sparse
