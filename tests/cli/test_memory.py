from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from small_models import build_byte_level_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from st_keytokens.cli.console import UserError, is_out_of_memory, memory_advice
from st_keytokens.cli.encoders import clear_errors

# Runs a command in a process that may grow by so many bytes once everything is imported.
LIMITED = """
import json, resource, sys
import sentence_transformers
from st_keytokens.cli import encoders, main
from st_keytokens.encoder import pooled_vectors
from pathlib import Path

size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = size + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def model(llama_folder, tmp_path_factory):
    """A small Llama with so wide a layer that a text wants 32 MB more than once, and 128 at a time 4 GB."""
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig.from_pretrained(llama_folder, intermediate_size=2**15, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(folder / "wide")
    build_byte_level_tokenizer().save_pretrained(folder / "wide")
    transformer = Transformer(str(folder / "wide"))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save_pretrained(str(folder / "embedder"))
    return folder / "embedder"


def run_limited(size, *words):
    command = [sys.executable, "-c", LIMITED, str(size), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return found.returncode, found.stdout, found.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space, and reads /proc")
class TestCommands:
    @pytest.fixture
    def corpus(self, tmp_path):
        path = tmp_path / "corpus.jsonl"
        text = "Stars form when clouds of gas collapse. " * 100
        path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i in range(128)))
        return path

    def test_a_large_batch_needs_the_memory_of_a_few_texts(self, model, corpus, tmp_path):
        words = ["index", model, corpus, tmp_path / "index", "--batch-size", 128]
        assert run_limited(2**30, *words)[:2] == (0, "Added 128 documents. The index holds 128 documents.\n")

    def test_batch_that_is_too_large(self, model, corpus, tmp_path):
        words = ["index", model, corpus, tmp_path / "index", "--batch-size", 128]
        code, out, err = run_limited(2**27, *words)
        assert (code, out) == (2, "")
        assert err.startswith(
            "st-keytokens: error: --batch-size must be small enough for the memory there is, got 128: "
        )
        assert err.endswith(" Make it smaller, or choose another --device.\n") and err.count("\n") == 1


class TestErrors:
    def test_real_ones_are_told_apart(self):
        with pytest.raises(RuntimeError) as torchs:
            torch.empty(2**60, dtype=torch.uint8)
        with pytest.raises(MemoryError) as numpys:
            np.empty(2**60, dtype=np.uint8)
        assert is_out_of_memory(torchs.value) and is_out_of_memory(numpys.value)
        assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
        assert not is_out_of_memory(OSError(errno.ENOENT, "No such file or directory"))
        assert not is_out_of_memory(ValueError("CUDA out of memory"))
        with pytest.raises(RuntimeError) as others:
            torch.zeros(2) + torch.zeros(3)
        assert not is_out_of_memory(others.value)

    def test_loading_a_model_does_not_hide_them(self):
        with pytest.raises(MemoryError, match="no more"), clear_errors("model", {}):
            raise MemoryError("no more")
        with (
            pytest.raises(UserError, match="model 'model' could not be loaded: no weights"),
            clear_errors("model", {}),
        ):
            raise RuntimeError("no weights")

    def test_advice_is_short(self):
        error = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB. " + "GPU 0 has ... " * 50)
        advice = memory_advice(error, Namespace(batch_size=64))
        assert advice.startswith(
            "--batch-size must be small enough for the memory there is, got 64: CUDA out of memory. Tried to allocate"
        )
        assert advice.endswith("… Make it smaller, or choose another --device.") and len(advice) < 320
        assert memory_advice(MemoryError(), Namespace()) == (
            "memory must hold the model and a text, got: MemoryError Choose another --device."
        )

    @pytest.mark.gpu
    def test_cuda(self):
        with pytest.raises(RuntimeError) as found:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        assert is_out_of_memory(found.value)
        assert "CUDA out of memory." in memory_advice(found.value, Namespace(batch_size=64))
