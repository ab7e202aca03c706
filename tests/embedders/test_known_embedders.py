from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from embedder_checkpoints import (
    build_byte_level_tokenizer,
    build_language_model,
    build_metaspace_tokenizer,
    save,
    save_adapter,
    save_in_cache,
)
from small_models import build_sentence_transformer

from st_keytokens import embedders
from st_keytokens.embedders import known_embedders, load_embedder, load_saved, open_embedder
from st_keytokens.embedders.recipes import RECIPES, find_recipe
from st_keytokens.embedders.table import embedder_table, update_table
from st_keytokens.encoder.encoder import KeyTokenEncoder

PAGE = Path(__file__).parents[2] / "docs" / "embedders.md"


class TestTable:
    def test_documentation_agrees(self):
        assert embedder_table() in PAGE.read_text(encoding="utf-8")

    def test_update(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(PAGE.read_text(encoding="utf-8").replace("GritLM", "other"), encoding="utf-8")
        update_table(page)
        assert embedder_table() in page.read_text(encoding="utf-8")
        page.write_text("nothing")
        with pytest.raises(ValueError, match=r"path must hold the marks"):
            update_table(page)

    def test_facts_are_whole(self):
        assert len(RECIPES) == len(known_embedders()) == 41
        assert [recipe.name for recipe in known_embedders() if "/" not in recipe.name] == ["prompteol"]
        for recipe in known_embedders():
            assert recipe.source.startswith("https://"), recipe.name
            assert recipe.why_not or not recipe.adapters or recipe.base, recipe.name
            assert recipe.name == recipe.adapters[-1] if recipe.adapters else not recipe.base, recipe.name
            assert set(recipe.templates) <= {"query", "document"}, recipe.name
            with pytest.raises(dataclasses.FrozenInstanceError):
                recipe.pooling = "max"

    def test_the_papers_eight(self):
        aligned = {recipe.name for recipe in known_embedders() if recipe.finding == "aligned"}
        eight = {
            "Muennighoff/SGPT-1.3B-weightedmean-nli",
            "Muennighoff/SGPT-1.3B-weightedmean-msmarco-specb-bitfit",
            "facebook/opt-1.3b",
            "royokong/prompteol-opt-1.3b",
            "huggyllama/llama-7b",
            "royokong/prompteol-llama-7b",
            "GritLM/GritLM-7B",
            "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp-supervised",
            "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp-unsup-simcse",
        }
        assert eight <= aligned

    def test_decodable_and_not(self):
        refused = {recipe.name for recipe in known_embedders(is_decodable=False)}
        assert refused == {"sentence-transformers/sentence-t5-base", "nvidia/NV-Embed-v2"}
        assert len(known_embedders(is_decodable=True)) == len(RECIPES) - 2

    def test_any_case(self):
        assert find_recipe("gritlm/gritlm-7b") is RECIPES["GritLM/GritLM-7B"]

    def test_public_names(self):
        assert embedders.__all__ == [
            "EmbedFunction",
            "EmbedderRecipe",
            "FunctionEmbedder",
            "TemplateTransformer",
            "as_sentence_transformer",
            "is_embedder",
            "known_embedders",
            "load_embedder",
            "load_saved",
            "open_embedder",
        ]


class TestRefusals:
    def test_t5(self):
        with pytest.raises(ValueError, match=r"sentence-t5-base: T5's LM head reads the decoder's hidden states"):
            KeyTokenEncoder.from_pretrained("sentence-transformers/sentence-t5-base")

    def test_unknown_recipe(self, llama_folder):
        with pytest.raises(ValueError, match=r"recipe must be the id of a known embedder, got 'gritlm'"):
            load_embedder(llama_folder, recipe="gritlm")

    def test_unknown_place(self, llama_folder):
        with pytest.raises(ValueError, match=r"places must be of repositories .* GritLM/GritLM-7B, got some/model"):
            load_embedder(llama_folder, recipe="GritLM/GritLM-7B", places={"some/model": llama_folder})

    def test_remote_code_is_not_taken_for_granted(self, llama_folder):
        with pytest.raises(ValueError, match=r"model_arguments must say that code .*llama-embed-nemotron-8b"):
            load_embedder(llama_folder, recipe="nvidia/llama-embed-nemotron-8b")

    def test_backbone_without_checkpoint(self, llama_folder, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"must hold model.safetensors or model.safetensors.index.json"):
            load_embedder(llama_folder, recipe="huggyllama/llama-7b", backbone=tmp_path)

    def test_backbone_without_lm_head(self, llama_folder, tmp_path):
        body = build_language_model("llama", is_tied=False).model
        save(tmp_path / "body", body, build_byte_level_tokenizer())
        with pytest.raises(ValueError, match=r"must hold the LM head, got none of lm_head.weight.*It holds "):
            load_embedder(llama_folder, recipe="huggyllama/llama-7b", backbone=tmp_path / "body")

    def test_backbone_of_another_width(self, llama_folder, tmp_path):
        other = build_language_model("llama", is_tied=False, hidden_size=48)
        save(tmp_path / "wide", other, build_byte_level_tokenizer())
        with pytest.raises(ValueError, match=r"lm_head must decode vectors of dimension 32, .* one for dimension 48"):
            load_embedder(llama_folder, recipe="huggyllama/llama-7b", backbone=tmp_path / "wide")

    def test_peft_is_missing(self, tmp_path, monkeypatch):
        save(tmp_path / "opt", build_language_model("opt"), build_byte_level_tokenizer())
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r'pip install "st-keytokens\[peft\]"'):
            load_embedder(tmp_path, recipe="royokong/prompteol-opt-1.3b", backbone=tmp_path / "opt")


class TestOthers:
    def test_tied_embedder_of_no_table(self, tmp_path):
        build_sentence_transformer(tmp_path / "plain", normalize=True).save_pretrained(str(tmp_path / "saved"))
        model = load_embedder(tmp_path / "saved", model_arguments={"device": "cpu"}, max_active_dims=5)
        assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "KeyTokenHead", "Normalize"]
        assert model[2].max_active_dims == 5
        assert KeyTokenEncoder(model).key_tokens("stars", top_k=1)[0]

    def test_untied_embedder_of_no_table(self, tmp_path, untied_llama_folder):
        folder = tmp_path / "saved"
        build_sentence_transformer(tmp_path / "plain", "llama-untied").save_pretrained(str(folder))
        with pytest.raises(ValueError, match=r"backbone must be given for .*saved.* none of the known embedders"):
            load_embedder(folder)
        model = load_embedder(folder, backbone=untied_llama_folder, model_arguments={"device": "cpu"})
        assert KeyTokenEncoder(model).key_tokens("stars", top_k=1)[0]

    def test_open_embedder_leaves_others_alone(self, llama_folder):
        model, lm_head = open_embedder(llama_folder, model_arguments={"device": "cpu"})
        assert lm_head is None
        assert type(model[0]).__name__ == "Transformer"


class TestSaved:
    def test_prompts_and_arguments(self, tmp_path):
        folder = save(tmp_path / "opt", build_language_model("opt"), build_byte_level_tokenizer())
        model, _ = open_embedder(folder, recipe="facebook/opt-1.3b", model_arguments={"device": "cpu"})
        model.prompts["query"] = "q: "
        model.save_pretrained(str(tmp_path / "saved"))
        loaded = load_saved(str(tmp_path / "saved"), device="cpu", truncate_dim=8)
        assert loaded.prompts["query"] == "q: "
        assert loaded.truncate_dim == 8
        expected = torch.from_numpy(model.encode(["stars"]))[:, :8]
        torch.testing.assert_close(torch.from_numpy(loaded.encode(["stars"])), expected, rtol=1e-5, atol=1e-6)

    def test_code_of_others_is_not_run(self, tmp_path):
        folder = save(tmp_path / "opt", build_language_model("opt"), build_byte_level_tokenizer())
        model, _ = open_embedder(folder, recipe="facebook/opt-1.3b", model_arguments={"device": "cpu"})
        model.save_pretrained(str(tmp_path / "saved"))
        file = tmp_path / "saved" / "modules.json"
        file.write_text(file.read_text().replace("sentence_transformers.sentence_transformer.modules.pooling", "evil"))
        with pytest.raises((ValueError, ImportError)):
            load_saved(str(tmp_path / "saved"), device="cpu")


CACHE_FOLDER = """
import sys
from st_keytokens import KeyTokenEncoder
arguments = {"device": "cpu", "cache_folder": sys.argv[1]}
for name, backbone in (("GritLM/GritLM-7B", None), ("some/embedder", "some/language-model")):
    encoder = KeyTokenEncoder.from_pretrained(name, backbone=backbone, model_arguments=arguments)
    print(encoder.head.lm_head.weight.shape)
"""


def test_everything_is_looked_for_in_the_cache_folder(tmp_path):
    """Embedder and LM head alike, of an id in the table and of one that is not."""
    mistral = save(tmp_path / "m", build_language_model("mistral", is_tied=False), build_metaspace_tokenizer())
    for name in ("GritLM/GritLM-7B", "some/embedder", "some/language-model"):
        save_in_cache(tmp_path / "mine", name, mistral)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CACHE_FOLDER, str(tmp_path / "mine")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("640, 32") == 2


IDS = """
from st_keytokens import KeyTokenEncoder
for name in ("GritLM/GritLM-7B", "royokong/prompteol-opt-1.3b", "Muennighoff/SGPT-1.3B-weightedmean-nli"):
    encoder = KeyTokenEncoder.from_pretrained(name, model_arguments={"device": "cpu"}, max_active_dims=4)
    encoded = encoder.encode(["The genome of a mouse."])
    print(name, type(encoder.model[0]).__name__, encoder.head.lm_head.is_tied, encoder.head.max_active_dims)
"""


def test_ids_are_found_in_the_hubs_cache(tmp_path):
    """By their ids, from a cache as huggingface_hub keeps it, in a process of its own, without a network."""
    pytest.importorskip("peft", reason="adapters are merged by peft")
    cache = tmp_path / "hub"
    opt = build_language_model("opt", seed=1)
    mistral = build_language_model("mistral", is_tied=False)
    checkpoints = {
        "GritLM/GritLM-7B": (mistral, build_metaspace_tokenizer()),
        "facebook/opt-1.3b": (opt, build_byte_level_tokenizer()),
        "Muennighoff/SGPT-1.3B-weightedmean-nli": (build_language_model("gpt_neo"), build_byte_level_tokenizer()),
        "EleutherAI/gpt-neo-1.3B": (build_language_model("gpt_neo", seed=2), build_byte_level_tokenizer()),
    }
    for number, (name, (model, tokenizer)) in enumerate(checkpoints.items()):
        save_in_cache(cache, name, save(tmp_path / str(number), model, tokenizer))
    adapter = save_adapter(tmp_path / "adapter", opt, seed=3, base="facebook/opt-1.3b", task_type="CAUSAL_LM")
    save_in_cache(cache, "royokong/prompteol-opt-1.3b", adapter)
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IDS], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "GritLM/GritLM-7B TemplateTransformer False 4",
        "royokong/prompteol-opt-1.3b TemplateTransformer True 4",
        "Muennighoff/SGPT-1.3B-weightedmean-nli TemplateTransformer False 4",
    ]
