from __future__ import annotations

import argparse
import shutil

import pytest
import torch
from cli_samples import WHEAT

from st_keytokens import HybridIndex, KeyTokenEncoder
from st_keytokens.cli.encoders import StoredEncoder


class TestModel:
    @pytest.mark.parametrize("name", ["/none/such/model", "./none", "a/b/c", "", "none", "none/such"])
    def test_not_found(self, fails, name):
        message = fails("tokens", name, "text")
        assert message.startswith(f"model must be a directory that exists or a name on the Hub, got {name!r}.")

    def test_not_a_model(self, fails, tmp_path):
        assert fails("tokens", tmp_path, "text").startswith(f"model {str(tmp_path)!r} could not be loaded: ")

    def test_backbone(self, rows, fails, bert_embedder, bert_folder, tmp_path):
        bert_embedder.save_pretrained(str(tmp_path / "model"))
        message = fails("tokens", tmp_path / "model", "text")
        assert "Use --backbone with the name or path" in message
        (row,) = rows("tokens", tmp_path / "model", "text", "--backbone", bert_folder)
        expected = KeyTokenEncoder(str(tmp_path / "model"), backbone=bert_folder).key_tokens("text")[0]
        assert [(token["token"], token["weight"]) for token in row["tokens"]] == expected

    def test_head_of_a_backbone_is_stored_with_the_index(self, rows, bert_embedder, bert_folder, corpus, tmp_path):
        bert_embedder.save_pretrained(str(tmp_path / "model"))
        backbone = shutil.copytree(bert_folder, tmp_path / "backbone")
        rows("index", tmp_path / "model", corpus, tmp_path / "i", "--no-calibrate", "--backbone", backbone)
        shutil.rmtree(backbone)
        (row,) = rows("search", tmp_path / "i", WHEAT, "--lookup")
        assert row["hits"][0]["id"] == "s38"

    def test_dtype_is_that_of_the_weights_and_the_index_remembers_it(self, rows, fails, model, corpus, tmp_path):
        rows("index", model, corpus, tmp_path / "i", "--no-calibrate", "--model-dtype", "bfloat16")
        with HybridIndex(tmp_path / "i", read_only=True) as opened:
            found = torch.from_numpy(opened.dense_embeddings(opened.ids()))
        assert torch.equal(found.bfloat16().float(), found)
        arguments = argparse.Namespace(model=None, device="cpu", trust_remote_code=False)
        assert StoredEncoder(tmp_path / "i").load(arguments).model.dtype == torch.bfloat16
        assert rows("search", tmp_path / "i", "text")
        message = fails("index", model, corpus, tmp_path / "i", "--no-calibrate")
        assert "--model-dtype must be as it was when" in message and "bfloat16, got none" in message

    def test_unknown_method_and_device(self, fails, model):
        message = fails("tokens", model, "text", "--method", "best")
        assert message == "method must be one of 'default', 'literal', 'decoded', 'nie2025', got 'best'."
        assert "could not be loaded" in fails("tokens", model, "text", "--device", "abacus")
