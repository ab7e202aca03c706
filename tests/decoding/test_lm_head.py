from __future__ import annotations

import copy
import functools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaConfig,
    T5Config,
    T5EncoderModel,
)

from st_keytokens.decoding.head_layouts import find_name, head_layout
from st_keytokens.decoding.head_parts import FrozenLayer, HeadTransform
from st_keytokens.decoding.lm_head import LMHead

V, D = 97, 32
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = IDS | {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ENCODER = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
GPT = IDS | {"vocab_size": V, "n_embd": D, "n_layer": 2, "n_head": 4, "n_positions": 64}
OPT = IDS | {
    "vocab_size": V,
    "hidden_size": D,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GPT_NEO = IDS | {
    "vocab_size": V,
    "hidden_size": D,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "max_position_embeddings": 64,
}
DISTILBERT = {"vocab_size": V, "dim": D, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "activation": "relu"}
CAUSAL = {
    "bloom": ("bloom", IDS | {"vocab_size": V, "hidden_size": D, "n_layer": 2, "n_head": 4}),
    "cohere": ("cohere", DECODER | {"logit_scale": 0.125}),
    "gemma2": ("gemma2", DECODER | {"head_dim": 8, "final_logit_softcapping": 0.5}),
    "gemma3": ("gemma3_text", DECODER | {"head_dim": 8, "final_logit_softcapping": 0.5}),
    "gemma3-uncapped": ("gemma3_text", DECODER | {"head_dim": 8}),
    "gpt2": ("gpt2", GPT),
    "gpt_neo": ("gpt_neo", GPT_NEO),
    "gpt_neox": ("gpt_neox", DECODER),
    "gptj": ("gptj", GPT | {"rotary_dim": 4}),
    "granite": ("granite", DECODER | {"logits_scaling": 3.0}),
    "llama": ("llama", DECODER),
    "mamba": ("mamba", IDS | {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "state_size": 4}),
    "mistral": ("mistral", DECODER),
    "opt": ("opt", OPT | {"word_embed_proj_dim": D}),
    "opt-projected": ("opt", OPT | {"word_embed_proj_dim": 16}),
    "opt-projected-norm-last": ("opt", OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "phi": ("phi", DECODER),
    "phi3": ("phi3", DECODER),
    "qwen2": ("qwen2", DECODER),
    "qwen3": ("qwen3", DECODER | {"head_dim": 8}),
}
BIASED = {"gptj", "phi"}
SCALED_OR_CAPPED = {"cohere", "gemma2", "gemma3", "granite"}
MASKED = {
    "albert": ("albert", ENCODER | {"embedding_size": 16, "hidden_act": "relu"}),
    "bert": ("bert", ENCODER | {"hidden_act": "relu"}),
    "camembert": ("camembert", ENCODER),
    "distilbert": ("distilbert", DISTILBERT),
    "electra": ("electra", ENCODER | {"embedding_size": 16}),
    "modernbert": ("modernbert", ENCODER | {"classifier_activation": "silu", "norm_eps": 1e-3}),
    "modernbert-biased": ("modernbert", ENCODER | {"norm_bias": True, "classifier_bias": True}),
    "modernbert-unbiased": ("modernbert", ENCODER | {"decoder_bias": False}),
    "mpnet": ("mpnet", ENCODER),
    "roberta": ("roberta", ENCODER),
    "xlm-roberta": ("xlm-roberta", ENCODER),
}
INPUT_IDS = torch.tensor([[5, 17, 96, 3, 42, 8], [11, 90, 23, 4, 60, 71]])


@functools.cache
def language_model(family: str, is_tied: bool):
    """A model with random weights, also where initialisation gives 0 or 1, so that every part of the head counts."""
    auto, families = (AutoModelForCausalLM, CAUSAL) if family in CAUSAL else (AutoModelForMaskedLM, MASKED)
    model_type, settings = families[family]
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(model_type, **settings, tie_word_embeddings=is_tied)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    @functools.cache
    def save(family: str, is_tied: bool) -> str:
        directory = str(tmp_path_factory.mktemp(f"{family}-{is_tied}"))
        language_model(family, is_tied).save_pretrained(directory)
        return directory

    return save


def body_of(model):
    return model.model if model.base_model is model else model.base_model  # transformers 4 names Gemma 3's otherwise


@torch.no_grad()
def hidden_and_logits(model, body=None):
    """Last hidden states of the body and the model's own logits, a row a token."""
    hidden = (body or body_of(model))(INPUT_IDS).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1]), model(INPUT_IDS).logits.reshape(-1, V)


def plain_head(weight=None, **settings) -> LMHead:
    weight = torch.arange(12.0).reshape(4, 3) if weight is None else weight
    return LMHead(FrozenLayer(weight), is_held=False, **settings)


def assert_decodes(head: LMHead, model, body=None) -> None:
    hidden, expected = hidden_and_logits(model, body)
    torch.testing.assert_close(head.logits(hidden), expected, rtol=1e-5, atol=1e-5)
    assert head.vocab_size == V
    assert head.embedding_dimension == hidden.shape[1]


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", CAUSAL)
class TestCausalFamilies:
    def test_model_in_memory(self, family, is_tied):
        model = language_model(family, is_tied)
        head = LMHead.from_model(model)
        assert_decodes(head, model)
        assert head.is_tied is (is_tied and family not in BIASED)
        assert head.is_affine is (family not in {"gemma2", "gemma3"})
        assert head.is_scale_free is (family not in {"gemma2", "gemma3"} | BIASED)

    def test_checkpoint(self, family, is_tied, saved):
        head = LMHead.from_checkpoint(saved(family, is_tied))
        assert_decodes(head, language_model(family, is_tied))
        assert not head.is_tied

    def test_body_loaded_from_checkpoint(self, family, is_tied, saved, tmp_path):
        directory = saved(family, is_tied)
        if (
            family.startswith("gemma3") and transformers.__version__ < "5"
        ):  # its AutoModel reads only bodies saved alone
            directory = tmp_path
            body_of(language_model(family, is_tied)).save_pretrained(directory)
        body = AutoModel.from_pretrained(directory).eval()
        if is_tied and family not in BIASED:
            head = LMHead.from_model(body)
            assert_decodes(head, language_model(family, is_tied), body)
            assert head.is_tied
            assert head.weight is body.get_input_embeddings().weight
        else:
            lacking = ", ".join(["weight"] * (not is_tied) + ["bias"] * (family in BIASED))
            with pytest.raises(ValueError, match=f"without the head's {lacking}. Use LMHead.from_checkpoint"):
                LMHead.from_model(body)

    def test_scale_and_cap_matter(self, family, is_tied):
        model = language_model(family, is_tied)
        hidden, expected = hidden_and_logits(model)
        is_plain = torch.allclose(hidden @ model.get_output_embeddings().weight.T, expected, atol=1e-4)
        assert is_plain is (family not in SCALED_OR_CAPPED | BIASED)


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", MASKED)
class TestMaskedFamilies:
    def test_model_in_memory(self, family, is_tied):
        model = language_model(family, is_tied)
        head = LMHead.from_model(model)
        assert_decodes(head, model)
        assert (head.is_tied, head.is_affine, head.is_scale_free) == (False, False, False)

    def test_checkpoint(self, family, is_tied, saved):
        assert_decodes(LMHead.from_checkpoint(saved(family, is_tied)), language_model(family, is_tied))

    def test_save_and_load(self, family, is_tied, tmp_path):
        model = language_model(family, is_tied)
        LMHead.from_model(model).save(tmp_path)
        assert_decodes(LMHead.load(tmp_path), model)

    def test_body_lacks_transform(self, family, is_tied, saved):
        body = AutoModel.from_pretrained(saved(family, is_tied))
        with pytest.raises(ValueError, match=r"without the head's .*transform.*Use LMHead.from_checkpoint"):
            LMHead.from_model(body)


class TestRefused:
    def test_t5_encoder(self, tmp_path):
        model = T5EncoderModel(T5Config(vocab_size=V, d_model=D, d_kv=8, d_ff=48, num_layers=1, num_heads=4))
        model.save_pretrained(tmp_path)
        message = "got the encoder-decoder 't5', whose LM head reads the decoder's hidden states"
        with pytest.raises(ValueError, match=message):
            LMHead.from_model(model)
        with pytest.raises(ValueError, match=message):
            LMHead.from_checkpoint(tmp_path)

    def test_encoder_decoder_by_configuration(self):
        with pytest.raises(ValueError, match="got the encoder-decoder 'bart'"):
            head_layout({"model_type": "bart"})

    def test_unknown_masked_language_models(self):
        with pytest.raises(ValueError, match="got the masked language model 'deberta-v2'"):
            head_layout({"model_type": "deberta-v2"})
        with pytest.raises(ValueError, match="got the masked language model 'made-up'"):
            head_layout({"model_type": "made-up", "architectures": ["MadeUpForMaskedLM"]})

    def test_unknown_change_of_logits(self):
        with pytest.raises(ValueError, match=r"got 'made-up' with output_multiplier=0\.5"):
            head_layout({"model_type": "made-up", "output_multiplier": 0.5})
        assert head_layout({"model_type": "made-up", "output_multiplier": 1.0}).scale == 1

    @pytest.mark.parametrize("model", [nn.Linear(2, 2), None, "gpt2"])
    def test_no_model(self, model):
        with pytest.raises(TypeError, match=f"model must be a transformers model, got {type(model).__name__}"):
            LMHead.from_model(model)

    def test_no_configuration(self):
        with pytest.raises(TypeError, match="config must be a transformers configuration or a mapping, got int"):
            head_layout(3)

    @pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 takes any configuration")
    def test_invalid_configuration(self):
        with pytest.raises(ValueError, match=r"config must be valid for model_type 'llama', but it is not: Class"):
            head_layout({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 3})

    def test_factorised_body_of_unknown_architecture(self):
        class Body(nn.Module):
            config = LlamaConfig(**DECODER | {"hidden_size": 64}, tie_word_embeddings=True)

            def get_input_embeddings(self):
                return nn.Embedding(V, D)

            def get_output_embeddings(self):
                return None

        with pytest.raises(ValueError, match="must take the 64 dimensions of the configuration, got a weight for 32"):
            LMHead.from_model(Body())

    def test_quantised_weight(self):
        with pytest.raises(TypeError, match=r"LM head must have tensors of float64.*, got torch\.int8"):
            plain_head(torch.zeros(4, 3, dtype=torch.int8).requires_grad_(False))


class TestLayouts:
    def test_scale_multiplies_or_divides(self):
        assert head_layout({"model_type": "cohere", "logit_scale": 0.25}).scale == 0.25
        assert head_layout({"model_type": "granite", "logits_scaling": 4.0}).scale == 0.25

    def test_defaults_of_the_architecture(self):
        assert head_layout({"model_type": "gpt2"}).is_tied
        assert not head_layout({"model_type": "llama"}).is_tied
        assert head_layout({"model_type": "gemma2"}).soft_cap == 30
        assert head_layout(LlamaConfig(hidden_size=64)).input_dimension == 64

    def test_text_part_of_a_larger_model(self):
        layout = head_layout({"model_type": "gemma3", "text_config": DECODER | {"model_type": "gemma3_text"}})
        assert layout.input_dimension == D
        assert layout.is_tied

    def test_unknown_architecture_is_plain(self):
        layout = head_layout({"model_type": "made-up", "tie_word_embeddings": True})
        assert (layout.is_tied, layout.dense, layout.scale, layout.input_dimension) == (True, "", 1, None)

    def test_find_name(self):
        names = ["model.lm_head.weight", "model.mtp.lm_head.weight", "a.wte.weight", "b.wte.weight", "xlm_head.weight"]
        assert find_name(names, ["lm_head.weight"]) == "model.lm_head.weight"
        assert find_name(names, ["embed_out.weight"]) is None
        with pytest.raises(ValueError, match=r"wte\.weight must be found once, got a\.wte\.weight, b\.wte\.weight"):
            find_name(names, ["wte.weight"])


class TestLogits:
    def test_hand_worked(self):
        head = plain_head(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]]))
        embeddings = torch.tensor([[3.0, 1.0], [0.0, -1.0]])
        before = embeddings.clone()
        assert head.logits(embeddings).tolist() == [[3, 2, -2], [0, -2, -1]]
        assert head(embeddings).tolist() == [[3, 2, -2], [0, -2, -1]]
        assert torch.equal(embeddings, before)

    def test_scale_bias_and_cap_against_numpy(self):
        generator = np.random.default_rng(0)
        weight, bias, x = (generator.normal(size=shape).astype(np.float32) for shape in ((5, 3), (5,), (2, 3)))
        layer = FrozenLayer(torch.from_numpy(weight), torch.from_numpy(bias))
        head = LMHead(layer, scale=0.3, soft_cap=1.5)
        expected = 1.5 * np.tanh(0.3 * (x @ weight.T + bias) / 1.5)
        np.testing.assert_allclose(head.logits(torch.from_numpy(x)), expected, rtol=1e-5)

    def test_transform_against_numpy(self):
        generator = np.random.default_rng(1)
        shapes = {"dense": (4, 3), "dense_bias": (4,), "norm": (4,), "norm_bias": (4,), "weight": (5, 4), "x": (2, 3)}
        a = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        t = {name: torch.from_numpy(array) for name, array in a.items()}
        transform = HeadTransform(
            FrozenLayer(t["dense"], t["dense_bias"]),
            FrozenLayer(t["norm"], t["norm_bias"]),
            activation="relu",
            norm_eps=0.01,
        )
        head = LMHead(FrozenLayer(t["weight"]), transform, is_held=False)
        hidden = np.maximum(a["x"] @ a["dense"].T + a["dense_bias"], 0)
        hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 0.01)
        hidden = hidden * a["norm"] + a["norm_bias"]
        np.testing.assert_allclose(head.hidden_states(t["x"]), hidden, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(head.logits(t["x"]), hidden @ a["weight"].T, rtol=1e-4, atol=1e-5)
        assert (head.embedding_dimension, head.vocab_size) == (3, 5)

    def test_one_row_equals_its_row_in_a_batch(self):
        head = LMHead.from_model(language_model("bert", True))
        x = torch.randn(7, D)
        torch.testing.assert_close(torch.cat([head.logits(row[None]) for row in x]), head.logits(x))

    def test_no_rows(self):
        assert plain_head().logits(torch.empty(0, 3)).shape == (0, 4)

    def test_gradient_reaches_embeddings(self):
        head = LMHead.from_model(language_model("gemma2", True))
        x = torch.randn(2, D, requires_grad=True)
        head.logits(x).sum().backward()
        assert x.grad is not None
        assert (x.grad != 0).any()

    @pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 2, 3)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"embeddings must have shape \(batch_size, 3\), got"):
            plain_head().logits(torch.zeros(shape))

    @pytest.mark.parametrize("x", [torch.zeros(2, 3, dtype=torch.long), np.zeros((2, 3)), [[0.0, 0.0, 0.0]]])
    def test_wrong_type(self, x):
        with pytest.raises(TypeError, match="embeddings must be a floating-point tensor, got"):
            plain_head().logits(x)

    @pytest.mark.gpu
    def test_embeddings_are_moved(self):
        head = plain_head().to("cuda")
        logits = head.logits(torch.ones(1, 3))
        assert logits.device.type == "cuda"
        assert logits.tolist() == [[3, 12, 21, 30]]


class TestDtypes:
    @pytest.mark.parametrize("family", ["llama", "gemma2", "bert", "opt-projected"])
    def test_bfloat16_model(self, family):
        model = copy.deepcopy(language_model(family, True)).to(torch.bfloat16)
        hidden, expected = hidden_and_logits(model)
        logits = LMHead.from_model(model).logits(hidden.float())
        assert logits.dtype == (torch.float32 if family == "gemma2" else torch.bfloat16)
        torch.testing.assert_close(logits.float(), expected.float(), rtol=0.02, atol=0.02)

    def test_cap_is_applied_in_float32(self):
        head = plain_head(torch.ones(1, 1, dtype=torch.bfloat16), soft_cap=30.0)
        capped = head.logits(torch.tensor([[90.0], [91.0]]))
        expected = 30 * np.tanh(np.array([[90.0], [91.0]]) / 30)
        np.testing.assert_allclose(capped, expected, rtol=1e-5)
        assert capped[1] > capped[0]

    def test_compute_dtype(self):
        weight, x = torch.randn(50, 16), torch.randn(3, 16)
        head = plain_head(weight, compute_dtype=torch.bfloat16)
        logits = head.logits(x)
        assert (logits.dtype, head.dtype, head.compute_dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
        assert torch.equal(logits, x.bfloat16() @ weight.bfloat16().T)
        assert not torch.equal(logits.float(), x @ weight.T)

    def test_half_weight_computed_in_float32(self):
        weight, x = torch.randn(50, 16).half(), torch.randn(3, 16)
        head = plain_head(weight, compute_dtype=torch.float32)
        torch.testing.assert_close(head.logits(x), x @ weight.float().T)

    def test_converted_weight_follows_the_weight(self):
        embeddings = nn.Embedding(4, 3)
        head = LMHead(embeddings, compute_dtype=torch.float64)
        x = torch.randn(2, 3)
        with torch.no_grad():
            for _ in range(2):
                embeddings.weight.add_(1)
                torch.testing.assert_close(head.logits(x), x.double() @ embeddings.weight.double().T)
            embeddings.weight.data = torch.randn(4, 3)
            torch.testing.assert_close(head.logits(x), x.double() @ embeddings.weight.double().T)

    def test_weight_is_converted_once(self):
        head = plain_head(compute_dtype=torch.float64)
        head.logits(torch.ones(1, 3))
        converted = head._converted[1].data_ptr()
        head.logits(torch.ones(2, 3))
        assert head._converted[1].data_ptr() == converted

    def test_inference_mode_before_gradients(self):
        head = plain_head(compute_dtype=torch.float64)
        with torch.inference_mode():
            head.logits(torch.ones(1, 3))
        x = torch.ones(1, 3, requires_grad=True)
        head.logits(x).sum().backward()
        assert x.grad.tolist() == [[18, 22, 26]]

    def test_gradient_reaches_a_converted_weight(self):
        embeddings = nn.Embedding(4, 3)
        LMHead(embeddings, compute_dtype=torch.float64).logits(torch.ones(1, 3)).sum().backward()
        assert embeddings.weight.grad.tolist() == [[1, 1, 1]] * 4

    def test_autocast_changes_nothing(self):
        for family in ("llama", "bert"):
            head, x = LMHead.from_model(language_model(family, True)), torch.randn(3, D)
            expected = head.logits(x)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(head.logits(x), expected)

    @pytest.mark.parametrize(
        ("stored", "computed"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", None)]
    )
    def test_rows_are_what_is_computed_with(self, stored, computed):
        generator = torch.Generator().manual_seed(0)
        weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((50, 16), (50,), (3, 16)))
        layer = FrozenLayer(weight.to(getattr(torch, stored)), bias.to(getattr(torch, stored)))
        dtype = None if computed is None else getattr(torch, computed)
        head = LMHead(layer, scale=0.3, compute_dtype=dtype)
        blocks = [head.rows(start, start + 20) for start in (0, 20, 40)]
        rows, biases = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        assert (rows.dtype, biases.dtype) == (torch.float32, torch.float32)
        assert torch.equal(rows, layer.weight.to(dtype).float())
        assert torch.equal(biases, (layer.bias.float() * 0.3).to(head.compute_dtype).float())
        torch.testing.assert_close(head.logits(x).float(), 0.3 * x @ rows.T + biases, rtol=0.02, atol=0.02)
        assert plain_head().rows(1, 9)[0].tolist() == [[3, 4, 5], [6, 7, 8], [9, 10, 11]]
        assert plain_head().rows(0, 1)[1] is None

    def test_hash_tells_heads_apart_and_dtypes_together(self):
        weight = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        head, changed = plain_head(weight), weight.clone()
        changed[-3:] += 1
        assert head.hash == plain_head(weight.bfloat16()).hash == copy.deepcopy(head).hash
        others = [
            plain_head(changed),
            plain_head(weight[:499]),
            plain_head(weight, scale=2.0),
            plain_head(weight, soft_cap=2.0),
            head.sharing(compute_dtype=torch.bfloat16),
            LMHead(FrozenLayer(weight, weight[:, 0])),
        ]
        assert len({head.hash, *(other.hash for other in others)}) == 7
        masked = copy.deepcopy(LMHead.from_model(language_model("bert", True)))
        before = masked.hash
        masked.parts.transform.norm_eps = 0.5
        assert masked.hash != before

    def test_sharing_parts(self):
        head = LMHead.from_model(body_of(language_model("llama", True)))
        other = head.sharing(compute_dtype=torch.float64)
        assert other.weight is head.weight
        assert (other.compute_dtype_name, head.compute_dtype_name) == ("float64", None)
        assert (other.is_tied, head.sharing(is_tied=False).is_tied) == (True, False)
        capped = plain_head(scale=0.5, soft_cap=3.0).sharing()
        assert (capped.scale, capped.soft_cap, capped.is_held) == (0.5, 3.0, False)
        assert list(capped.state_dict()) == ["output.weight"]

    def test_wrong_compute_dtype(self):
        with pytest.raises(ValueError, match=r"compute_dtype must be None or one of float64, .*, got torch.int8"):
            plain_head(compute_dtype=torch.int8)


class Container(nn.Module):
    def __init__(self, model, head):
        super().__init__()
        self.model = model
        self.head = head


@pytest.fixture(params=["llama", "bert"])
def container(request):
    """A model and its head, a body where it holds its head."""
    model = copy.deepcopy(language_model(request.param, True))
    model = body_of(model) if request.param == "llama" else model
    return Container(model, LMHead.from_model(model))


class TestTie:
    def is_tied(self, container):
        return container.head.weight is container.model.get_input_embeddings().weight

    def test_adds_nothing_to_state_dict(self, container):
        assert list(container.head.state_dict()) == []
        assert list(container.state_dict()) == [f"model.{name}" for name in container.model.state_dict()]

    def test_survives_pickling(self, container):
        x = torch.randn(2, D)
        other = pickle.loads(pickle.dumps(container))
        assert self.is_tied(other)
        assert torch.equal(other.head.logits(x), container.head.logits(x))

    def test_survives_deepcopy(self, container):
        other = copy.deepcopy(container)
        assert self.is_tied(other)
        assert other.head.weight is not container.head.weight

    def test_follows_moves_and_training(self, container):
        container.to(torch.bfloat16)
        assert container.head.dtype == torch.bfloat16
        assert self.is_tied(container)
        x = torch.randn(2, D)
        before = container.head.logits(x)
        with torch.no_grad():
            container.model.get_input_embeddings().weight.mul_(2)
        assert not torch.equal(container.head.logits(x), before)

    def test_converted_weight_is_not_pickled(self):
        head = LMHead(nn.Embedding(1000, 16), compute_dtype=torch.float64)
        size = len(pickle.dumps(head))
        head.logits(torch.ones(1, 16))
        assert len(pickle.dumps(head)) == size
        assert pickle.loads(pickle.dumps(head)).logits(torch.ones(1, 16)).dtype == torch.float64

    def test_owned_head_has_a_state(self):
        head = plain_head()
        assert list(head.state_dict()) == ["output.weight"]
        assert head.to(torch.bfloat16).dtype == torch.bfloat16
        assert not any(parameter.requires_grad for parameter in head.parameters())

    def test_repr(self, container):
        assert repr(container.head).startswith("LMHead(embedding_dimension=32, vocab_size=97, ")
        assert "owned" in repr(plain_head())


class TestMeta:
    def test_model_on_meta(self):
        with torch.device("meta"):
            model = AutoModel.from_config(LlamaConfig(**DECODER, tie_word_embeddings=True))
        with pytest.raises(ValueError, match=r"weights in memory, got one on the meta device \(not loaded"):
            LMHead.from_model(model)

    def test_offloaded_later(self):
        model = nn.Embedding(4, 3)
        head = LMHead(model)
        model.to("meta")
        with pytest.raises(ValueError, match="got one on the meta device"):
            head.logits(torch.ones(1, 3))


class TestInputEmbeddings:
    @pytest.mark.parametrize("family", ["bert", "gemma2", "cohere", "llama"])
    def test_bare_product(self, family):
        body = body_of(language_model(family, False))
        head = LMHead.from_input_embeddings(body)
        x = torch.randn(3, D)
        torch.testing.assert_close(head.logits(x), x @ body.get_input_embeddings().weight.T)
        assert (head.is_held, head.is_tied, head.is_scale_free) == (True, False, True)

    def test_no_model(self):
        with pytest.raises(TypeError, match="model must be a transformers model, got Linear"):
            LMHead.from_input_embeddings(nn.Linear(2, 2))


class TestCheckpoint:
    def test_dtype_and_compute_dtype(self, saved):
        head = LMHead.from_checkpoint(saved("bert", False), dtype=torch.bfloat16, compute_dtype=torch.float32)
        assert {tensor.dtype for tensor in head.state_dict().values()} == {torch.bfloat16}
        assert head.logits(torch.ones(1, D)).dtype == torch.float32

    def test_sharded(self, tmp_path):
        model = language_model("llama", False)
        model.save_pretrained(tmp_path, max_shard_size="12KB")
        assert (tmp_path / "model.safetensors.index.json").exists()
        assert_decodes(LMHead.from_checkpoint(tmp_path), model)

    def test_body_saved_alone(self, tmp_path):
        model = language_model("qwen2", True)
        body_of(model).save_pretrained(tmp_path)
        assert_decodes(LMHead.from_checkpoint(tmp_path), model)

    def test_names_of_old_checkpoints(self, saved, tmp_path):
        tensors = load_file(f"{saved('bert', True)}/model.safetensors")
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        renamed = {functools.reduce(lambda n, kv: n.replace(*kv), old.items(), name): t for name, t in tensors.items()}
        assert "cls.predictions.transform.LayerNorm.gamma" in renamed
        save_file(renamed, tmp_path / "model.safetensors")
        config = language_model("bert", True).config
        assert_decodes(LMHead.from_checkpoint(tmp_path, config=config), language_model("bert", True))

    def test_embed_out_of_gpt_neox(self, tmp_path):
        model = language_model("gpt_neox", False)
        save_file({"embed_out.weight": model.get_output_embeddings().weight.detach()}, tmp_path / "model.safetensors")
        assert_decodes(LMHead.from_checkpoint(tmp_path, config=model.config), model)

    def test_configuration_as_mapping(self, saved):
        config = language_model("granite", True).config.to_dict()
        assert_decodes(LMHead.from_checkpoint(saved("granite", True), config=config), language_model("granite", True))

    def test_tensor_name(self, saved):
        head = LMHead.from_checkpoint(saved("gemma2", True), tensor_name="model.embed_tokens.weight")
        assert_decodes(head, language_model("gemma2", True))

    def test_bare_tensor(self, saved):
        weight = language_model("gptj", False).get_output_embeddings().weight
        x = torch.randn(2, D)
        head = LMHead.from_checkpoint(saved("gptj", False), config={}, tensor_name="transformer.wte.weight")
        expected = x @ language_model("gptj", False).get_input_embeddings().weight.T
        torch.testing.assert_close(head.logits(x), expected)
        head = LMHead.from_checkpoint(saved("gptj", False), config={})
        torch.testing.assert_close(head.logits(x), x @ weight.T + language_model("gptj", False).lm_head.bias)

    def test_untied_body_alone(self, tmp_path):
        body_of(language_model("llama", False)).save_pretrained(tmp_path)
        message = (
            r"got none of lm_head.weight, embed_out.weight. It holds (embed_tokens|norm).weight, .* and \d+ more. "
            "Pass the language model"
        )
        with pytest.raises(ValueError, match=message):
            LMHead.from_checkpoint(tmp_path)

    @pytest.mark.parametrize(
        ("family", "name"),
        [
            ("bert", "cls.predictions.transform.dense.weight"),
            ("bert", "cls.predictions.transform.LayerNorm.weight"),
            ("gptj", "lm_head.bias"),
        ],
    )
    def test_missing_part(self, saved, tmp_path, family, name):
        tensors = load_file(f"{saved(family, False)}/model.safetensors")
        del tensors[name]
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=f"must hold the LM head, got none of {name}"):
            LMHead.from_checkpoint(tmp_path, config=language_model(family, False).config)

    def test_missing_tensor_name(self, saved):
        with pytest.raises(ValueError, match=r"got none of head.w\. It holds lm_head.weight"):
            LMHead.from_checkpoint(saved("llama", False), tensor_name="head.w")

    def test_wrong_dimension(self, saved):
        config = LlamaConfig(**DECODER | {"hidden_size": 64})
        with pytest.raises(ValueError, match="must take the 64 dimensions of the configuration, got a weight for 32"):
            LMHead.from_checkpoint(saved("llama", False), config=config)

    def test_vector_as_weight(self, saved):
        with pytest.raises(ValueError, match=r"LM head must have output.weight of shape 32 x any, got \(32,\)"):
            LMHead.from_checkpoint(saved("llama", False), tensor_name="model.norm.weight")

    def test_parts_that_do_not_fit(self, saved, tmp_path):
        tensors = load_file(f"{saved('bert', False)}/model.safetensors")
        tensors = {name: t for name, t in tensors.items() if not name.endswith("predictions.decoder.bias")}
        tensors["cls.predictions.bias"] = torch.zeros(5)
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"LM head must have output.bias of shape 97, got \(5,\)"):
            LMHead.from_checkpoint(tmp_path, config=language_model("bert", False).config)

    def test_no_configuration(self, tmp_path):
        save_file({"lm_head.weight": torch.zeros(4, 3)}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"config must be given where there is no config\.json, as in .*, got"):
            LMHead.from_checkpoint(tmp_path)


class TestSaveLoad:
    def test_every_setting(self, tmp_path):
        layer = FrozenLayer(torch.randn(5, 3, dtype=torch.bfloat16), torch.randn(5, dtype=torch.bfloat16))
        head = LMHead(layer, scale=0.5, soft_cap=2.0, compute_dtype=torch.float32)
        head.save(tmp_path)
        loaded = LMHead.load(tmp_path)
        x = torch.randn(2, 3)
        assert torch.equal(loaded.logits(x), head.logits(x))
        assert (loaded.scale, loaded.soft_cap, loaded.dtype) == (0.5, 2.0, torch.bfloat16)
        assert loaded.compute_dtype == torch.float32
        assert not loaded.is_held

    @pytest.mark.parametrize("family", ["llama", "gemma2", "gptj", "cohere"])
    def test_causal(self, family, saved, tmp_path):
        head = LMHead.from_checkpoint(saved(family, False))
        head.save(tmp_path)
        assert_decodes(LMHead.load(tmp_path), language_model(family, False))

    def test_in_a_fresh_process(self, tmp_path):
        head = LMHead.from_model(language_model("roberta", True))
        head.save(tmp_path)
        code = (
            "import sys, json, torch; from st_keytokens import LMHead;"
            "print(json.dumps(LMHead.load(sys.argv[1]).logits(torch.ones(1, 32)).tolist()))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        np.testing.assert_allclose(json.loads(done.stdout), head.logits(torch.ones(1, D)).detach(), rtol=1e-5)

    def test_nothing_saved(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"lm_head.json"):
            LMHead.load(tmp_path)

    def test_other_format(self, tmp_path):
        plain_head().save(tmp_path)
        (tmp_path / "lm_head.json").write_text('{"format_version": 99}')
        with pytest.raises(ValueError, match=r"must be of format 1, got 99\. Install the st-keytokens that"):
            LMHead.load(tmp_path)

    @pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"format_version": 1}'])
    def test_malformed_settings(self, tmp_path, content):
        plain_head().save(tmp_path)
        (tmp_path / "lm_head.json").write_text(content)
        with pytest.raises(ValueError, match="must hold a saved LM head"):
            LMHead.load(tmp_path)

    def test_truncated_tensors(self, tmp_path):
        plain_head().save(tmp_path)
        file = tmp_path / "lm_head.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
        with pytest.raises(ValueError, match="must hold a saved LM head"):
            LMHead.load(tmp_path)

    def test_over_what_it_was_loaded_from(self, tmp_path):
        plain_head().save(tmp_path)
        head = LMHead.load(tmp_path)
        plain_head(torch.zeros(4, 3)).save(tmp_path)
        assert torch.equal(head.weight, plain_head().weight)
        head.save(tmp_path)
        assert torch.equal(LMHead.load(tmp_path).weight, plain_head().weight)

    def test_out_of_range(self):
        with pytest.raises(ValueError, match="soft_cap must be None or above 0, got -1"):
            plain_head(soft_cap=-1)
