from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from functools import partial

import huggingface_hub
import numpy as np
import pytest
import torch
from encoder_checks import assert_same
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from small_models import build_sentence_transformer

from st_keytokens.calibration import Calibration
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder import sidecar
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.terms.weighting import METHODS, Weighting

NAME, COMMIT = "someone/embedder", "0" * 40


@pytest.fixture
def embedder(llama_embedder):
    return copy.deepcopy(llama_embedder)


@pytest.fixture
def encoder(embedder, sentences):
    encoder = KeyTokenEncoder(embedder, max_active_dims=20, query_max_active_dims=6, cache_size=0)
    encoder.calibrate(sentences, show_progress_bar=False)
    return encoder


@pytest.fixture
def saved(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def cached(saved, tmp_path):
    """The cache of the Hub with the model in it, sidecar included, as a download leaves it."""
    repository = tmp_path / "hub" / "models--someone--embedder"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository


def load(cached, **model_arguments):
    arguments = {"cache_folder": str(cached.parent), "device": "cpu", **model_arguments}
    return KeyTokenEncoder.from_pretrained(NAME, model_arguments=arguments)


def warnings(caplog) -> list[str]:
    """What our own loggers warn of; the Hub's client has warnings of its own."""
    records = [record for record in caplog.records if record.name.startswith("st_keytokens")]
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


class TestFolder:
    def test_holds_everything_but_the_model(self, saved):
        names = {path.name for path in (saved / "key_tokens").iterdir()} - {"logit_statistics.safetensors"}
        assert names == {"calibration.json", "calibration.safetensors", "config.json", "encoder.json"}

    def test_alone_is_enough_for_a_loaded_model(self, encoder, llama_embedder, tmp_path):
        encoder.save_sidecar(tmp_path / "alone")
        attached = KeyTokenEncoder.from_sidecar(copy.deepcopy(llama_embedder), tmp_path / "alone", cache_size=7)
        assert attached.fingerprint == encoder.fingerprint
        assert attached.cache.size == 7

    def test_what_an_earlier_save_left_is_gone(self, untied_llama_embedder, untied_llama_folder, tmp_path):
        untied = KeyTokenEncoder(copy.deepcopy(untied_llama_embedder), backbone=untied_llama_folder)
        untied.save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / "key_tokens" / "lm_head.json").exists()
        KeyTokenEncoder(build_sentence_transformer(tmp_path / "tied")).save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved" / "key_tokens" / "lm_head.json").exists()

    def test_output_mode_of_a_head_in_the_model_is_kept(self, llama_embedder, tmp_path):
        model = copy.deepcopy(llama_embedder)
        model.append(KeyTokenHead.for_model(model, output_mode="sparse"))
        KeyTokenEncoder(model).save_pretrained(tmp_path / "saved")
        assert KeyTokenEncoder.from_pretrained(tmp_path / "saved").head.output_mode == "sparse"


class TestSaveLoad:
    def test_plain_sentence_transformers_still_loads_the_model(self, encoder, sentences, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
        assert [type(m).__name__ for m in plain] == ["Transformer", "Pooling"]
        np.testing.assert_allclose(plain.encode(sentences), encoder.model.encode(sentences), rtol=1e-4, atol=1e-5)

    def test_everything_is_restored_in_a_fresh_process(self, embedder, sentences, tmp_path):
        encoder = KeyTokenEncoder(
            embedder,
            weighting=Weighting(k1=0.9, document_decoded_weight=0.2),
            query="lookup",
            head=KeyTokenHead(max_active_dims=11, query_max_active_dims=5, activation="log1p", correction="center"),
        )
        encoder.calibrate(sentences)
        encoder.save_pretrained(tmp_path / "saved")
        program = """
import json, sys
from st_keytokens import KeyTokenEncoder
encoder = KeyTokenEncoder.from_pretrained(sys.argv[1], model_arguments={"device": "cpu"})
texts = json.loads(sys.stdin.read())
queries = encoder.encode_query(texts)
documents = encoder.encode_document(texts)
print(json.dumps({"fingerprint": encoder.fingerprint, "no pass": queries.dense is None,
                  "queries": queries.sparse.to_dicts(), "documents": documents.sparse.to_dicts()}))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "saved")],
            input=json.dumps(sentences[:4]),
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["fingerprint"] == encoder.fingerprint
        assert found["no pass"]
        for name, ours in (
            ("queries", encoder.encode_query(sentences[:4])),
            ("documents", encoder.encode_document(sentences[:4])),
        ):
            for row, theirs in zip(ours.sparse.to_dicts(), found[name], strict=True):
                assert {int(k): v for k, v in theirs.items()} == pytest.approx(row, rel=1e-4)

    def test_untied_head_is_saved(self, untied_llama_embedder, untied_llama_folder, sentences, tmp_path):
        encoder = KeyTokenEncoder(copy.deepcopy(untied_llama_embedder), backbone=untied_llama_folder)
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "saved", model_arguments={"device": "cpu"})
        assert loaded.fingerprint == encoder.fingerprint
        assert_same(loaded.encode(sentences), encoder.encode(sentences), rtol=1e-4)

    def test_a_model_without_sidecar_is_attached(self, embedder, sentences, tmp_path):
        embedder.save_pretrained(str(tmp_path / "plain"))
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "plain", max_active_dims=4)
        assert loaded.head.max_active_dims == 4

    def test_what_is_no_longer_there_is_not_loaded(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        encoder.calibration = None
        encoder.save_pretrained(tmp_path / "saved")
        assert KeyTokenEncoder.from_pretrained(tmp_path / "saved").calibration is None

    def test_another_method_replaces_the_saved_settings(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "saved", method="nie2025")
        assert loaded.weighting == METHODS["nie2025"].weighting
        assert loaded.head.max_active_dims == 3000

    def test_sixteen_bits_are_the_same_model(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        for dtype in (torch.float16, torch.bfloat16):
            loaded = KeyTokenEncoder.from_pretrained(
                tmp_path / "saved", model_arguments={"device": "cpu", "model_kwargs": {"dtype": dtype}}
            )
            assert loaded.fingerprint == encoder.fingerprint

    @pytest.mark.parametrize("content", ["{}", "{", '{"format": 1, "query": "encode", "weighting": {"k7": 1}}'])
    def test_damaged(self, encoder, tmp_path, content):
        encoder.save_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / "key_tokens" / "encoder.json").write_text(content)
        with pytest.raises(ValueError, match=r"must hold what save_pretrained wrote, got a damaged one"):
            KeyTokenEncoder.from_pretrained(tmp_path / "saved")

    def test_a_missing_calibration_is_noticed(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / "key_tokens" / "calibration.json").unlink()
        with pytest.raises(ValueError, match=r"must give the encoder that was saved"):
            KeyTokenEncoder.from_pretrained(tmp_path / "saved")

    def test_a_model_that_holds_a_head_is_saved_plain(self, embedder, sentences, tmp_path):
        embedder.append(KeyTokenHead.for_model(embedder, max_active_dims=5))
        encoder = KeyTokenEncoder(embedder)
        encoder.calibrate(sentences)
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "saved", model_arguments={"device": "cpu"})
        assert_same(loaded.encode(sentences), encoder.encode(sentences), rtol=1e-4)

    @pytest.mark.parametrize("after", [Normalize, partial(Dense, 32, 32)], ids=["normalize", "dense"])
    def test_a_model_that_holds_a_head_with_an_lm_head_of_its_own(
        self, untied_llama_embedder, untied_llama_folder, sentences, tmp_path, after
    ):
        model = copy.deepcopy(untied_llama_embedder)
        model.append(after())
        plain = KeyTokenEncoder(model, backbone=untied_llama_folder, max_active_dims=5)
        model_name = plain.model_name
        model.insert(2, KeyTokenHead(LMHead.from_checkpoint(untied_llama_folder), max_active_dims=5))
        encoder = KeyTokenEncoder(model)
        assert encoder.model_name == model_name
        encoder.calibrate(sentences, show_progress_bar=False)
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "saved", model_arguments={"device": "cpu"})
        assert loaded.fingerprint == encoder.fingerprint
        assert_same(loaded.encode(sentences), encoder.encode(sentences), rtol=1e-4)

    def test_other_weights_are_refused(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        with torch.no_grad():
            encoder.model[0].auto_model.norm.weight.mul_(2)
        encoder.model.save_pretrained(str(tmp_path / "saved"))
        with pytest.raises(ValueError, match=r"must belong to this model, got one with other model weights"):
            KeyTokenEncoder.from_pretrained(tmp_path / "saved")

    def test_modules_json_route(self, embedder, sentences, tmp_path):
        embedder.append(KeyTokenHead.for_model(embedder, max_active_dims=6))
        embedder.save_pretrained(str(tmp_path / "whole"))
        loaded = SentenceTransformer(str(tmp_path / "whole"), trust_remote_code=True, device="cpu")
        if not loaded[2].is_bound:
            loaded[2].bind(loaded)
        ours = torch.stack(embedder.encode(sentences, output_value="key_token_ids"))
        assert torch.equal(torch.stack(loaded.encode(sentences, output_value="key_token_ids")), ours)


class TestChanges:
    def test_are_over_what_was_saved(self, saved, sentences):
        loaded = KeyTokenEncoder.from_pretrained(
            saved, query="lookup", weighting=Weighting(k1=0.5), cache_size=3, query_max_active_dims=2
        )
        assert (loaded.query, loaded.weighting.k1, loaded.cache.size) == ("lookup", 0.5, 3)
        assert (loaded.head.max_active_dims, loaded.head.query_max_active_dims) == (20, 2)
        assert loaded.calibration.document_count == len(sentences)

    def test_another_calibration(self, saved, encoder, sentences):
        other = Calibration.fit(encoder, sentences[:20], show_progress_bar=False)
        loaded = KeyTokenEncoder.from_pretrained(saved, calibration=other)
        assert loaded.calibration is other
        encoder.calibration = other
        assert loaded.fingerprint == encoder.fingerprint

    def test_another_backbone(self, untied_llama_embedder, untied_llama_folder, tmp_path):
        encoder = KeyTokenEncoder(copy.deepcopy(untied_llama_embedder), backbone=untied_llama_folder)
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "saved", backbone=untied_llama_folder)
        assert loaded.fingerprint == encoder.fingerprint

    def test_unknown_names(self, saved):
        with pytest.raises(TypeError, match="max_dims"):
            KeyTokenEncoder.from_pretrained(saved, max_dims=3)
        with pytest.raises(ValueError, match=r"method must be one of .*, got 'splade'"):
            KeyTokenEncoder.from_pretrained(saved, method="splade")


class TestOtherFiles:
    def test_an_unknown_format(self, saved):
        path = saved / "key_tokens" / "encoder.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
        with pytest.raises(ValueError, match=r"got a damaged one: its format is 99, not 1"):
            KeyTokenEncoder.from_pretrained(saved)

    def test_another_vocabulary(self, saved, wordpiece_tokenizer):
        wordpiece_tokenizer.save_pretrained(saved)
        with pytest.raises(ValueError, match=r"the model's tokenizer or modules were"):
            KeyTokenEncoder.from_pretrained(saved)

    def test_changed_prompts(self, saved):
        model = SentenceTransformer(str(saved), device="cpu")
        model.prompts["query"] = "find: "
        with pytest.raises(ValueError, match=r"must give the encoder that was saved"):
            KeyTokenEncoder.from_sidecar(model, saved / "key_tokens")


class TestHub:
    """The Hub's cache, without the Hub: the tests run offline."""

    def test_a_cached_sidecar_is_used(self, cached, encoder):
        assert load(cached).fingerprint == encoder.fingerprint

    def test_the_environment_says_where_the_cache_is(self, cached, encoder, monkeypatch):
        monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(cached.parent))
        loaded = KeyTokenEncoder.from_pretrained(NAME, model_arguments={"device": "cpu"})
        assert loaded.fingerprint == encoder.fingerprint

    def test_a_plain_model_is_used_without_a_word(self, cached, caplog):
        shutil.rmtree(cached / "snapshots" / COMMIT / "key_tokens")
        for model_arguments in ({}, {"local_files_only": True}):
            assert load(cached, **model_arguments).calibration is None
        assert warnings(caplog) == []

    def test_what_the_hub_has_once_said_is_not_asked_again(self, cached, monkeypatch):
        shutil.rmtree(cached / "snapshots" / COMMIT / "key_tokens")
        marker = cached / ".no_exist" / COMMIT / "key_tokens" / "encoder.json"
        marker.parent.mkdir(parents=True)
        marker.touch()
        monkeypatch.setattr(socket, "getaddrinfo", None)  # whoever asks fails
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        assert sidecar.find_folder(NAME, {"cache_folder": str(cached.parent)}) is None

    @pytest.mark.slow
    def test_a_hub_that_cannot_be_asked(self, cached):
        shutil.rmtree(cached / "snapshots" / COMMIT / "key_tokens")
        program = "import sys; from st_keytokens.encoder import sidecar; sidecar.find_folder(*eval(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", program, repr((NAME, {"cache_folder": str(cached.parent)}))],
            env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "The Hub could not be asked whether someone/embedder has key tokens saved" in done.stderr
