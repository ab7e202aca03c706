"""Writes a model as a directory that transformers and sentence-transformers both open, in bfloat16."""

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
    state = {k: v.to("cpu", torch.bfloat16) for k, v in model.state_dict().items()}
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(state)
    half.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json = lambda name, content: (folder / name).write_text(json.dumps(content, indent=2) + "\n")  # noqa: E731
    write_json(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # the one name that transformers 4 and 5 both know
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "padding_side": "right",
            "model_max_length": MAX_SEQ_LENGTH,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(
        "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
    )
    write_json("sentence_bert_config.json", {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False})
    write_json(
        "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        "1_Pooling/config.json",
        {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True},
    )
