"""Writes a model as a directory that transformers and sentence-transformers both open, weights in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from corpus import END_OF_TEXT, PAD
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

MAX_SEQ_LENGTH = 256


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict({k: v.to("cpu", torch.bfloat16) for k, v in model.state_dict().items()})
    half.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    # Stored in 16 bits to be small, computed in 32: not every CPU is fast with fewer.
    model_config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    files = {
        "config.json": model_config,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # the one name that transformers 4 and 5 both know
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "padding_side": "right",
            "model_max_length": MAX_SEQ_LENGTH,
            "add_prefix_space": True,  # transformers 4 takes it from here alone, whatever tokenizer.json says
            "clean_up_tokenization_spaces": False,
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "sentence_bert_config.json": {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.config.hidden_size,
            "pooling_mode_mean_tokens": True,
        },
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "model.safetensors").chmod(0o644)
