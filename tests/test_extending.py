"""What docs/extending.md says can be added from outside the package: a weighting, an LM head layout, a recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import build_sentence_transformer, save_language_model

from st_keytokens import HybridIndex, KeyTokenEncoder, Weighting
from st_keytokens.decoding import HeadLayout, LMHead, register_head_layout
from st_keytokens.embedders import EmbedderRecipe


@dataclass(frozen=True)
class WholeTexts(Weighting):
    """Terms of a document weigh twice as much where it is short."""

    short: int = 20

    def document(self, literal, decoded, vocab_size, corpus):
        found = super().document(literal, decoded, vocab_size, corpus)
        factors = np.repeat([2.0 if len(terms) < self.short else 1.0 for terms in literal], found.active_dims)
        return found.with_values(found.values * factors)


class TestWeighting:
    @pytest.fixture
    def saved(self, tmp_path, sentences):
        encoder = KeyTokenEncoder(build_sentence_transformer(tmp_path / "model"), weighting=WholeTexts(short=12))
        encoder.calibrate(sentences, show_progress_bar=False)
        encoder.save_pretrained(tmp_path / "saved")
        with HybridIndex(tmp_path / "index", encoder=encoder) as index:
            index.add(["one", "two"], sentences[:2])
        return tmp_path, encoder

    def test_it_weighs(self, saved):
        _, encoder = saved
        texts = ["a cell", "a cell " * 10]
        plain = KeyTokenEncoder(encoder.model, calibration=encoder.calibration).encode(texts).sparse
        found = encoder.encode(texts).sparse
        np.testing.assert_allclose(found[0].values, 2 * plain[0].values, rtol=1e-6)
        np.testing.assert_allclose(found[1].values, plain[1].values, rtol=1e-6)

    def test_it_comes_back_when_it_is_given(self, saved, sentences):
        folder, encoder = saved
        loaded = KeyTokenEncoder(folder / "saved", weighting=WholeTexts(short=12))
        assert loaded.fingerprint == encoder.fingerprint
        with HybridIndex(folder / "index", encoder=loaded) as index:
            assert index.search(sentences[0], top_k=1)[0].id == "one"

    def test_without_it_the_loader_says_what_it_wants(self, saved):
        folder, _ = saved
        with pytest.raises(
            ValueError, match=r"one of your own class 'WholeTexts'.* Pass weighting=WholeTexts\(\.\.\.\)"
        ):
            KeyTokenEncoder(folder / "saved")

    def test_another_one_is_another_encoder(self, saved):
        folder, encoder = saved
        other = KeyTokenEncoder(folder / "saved", weighting=WholeTexts(short=13))
        assert other.fingerprint != encoder.fingerprint


class TestHeadLayout:
    def test_of_an_architecture_of_ones_own(self, tmp_path):
        register_head_layout("mine", lambda config: HeadLayout(output=("projection",), scale=config.logit_factor))
        weight = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
        save_file({"decoder.projection.weight": weight}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "logit_factor": 0.5}))
        vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(LMHead.from_checkpoint(tmp_path).logits(vectors), 0.5 * vectors @ weight.T)

    def test_must_be_a_function(self):
        with pytest.raises(TypeError, match="layout must be a function of a configuration, got HeadLayout"):
            register_head_layout("mine", HeadLayout())


def test_recipe_of_ones_own(tmp_path, sentences):
    save_language_model(tmp_path, "llama")
    recipe = EmbedderRecipe(
        name="me/mine",
        backbone="",
        pooling="lasttoken",
        source="https://example.org",
        prompts={"query": "Query: ", "document": ""},
    )
    encoder = KeyTokenEncoder(tmp_path, recipe=recipe, model_arguments={"device": "cpu"})
    assert encoder.model[1].pooling_mode == "lasttoken"
    assert encoder.model.prompts["query"] == "Query: "
    assert encoder.key_tokens(sentences[0], top_k=3)[0]
