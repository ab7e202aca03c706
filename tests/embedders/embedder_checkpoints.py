"""Small random checkpoints in the file layouts of the known embedders; nothing is downloaded, nothing is stored."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from small_models import SENTENCES, build_byte_level_tokenizer, build_wordpiece_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

WIDTH, LAYERS, HEADS = 32, 2, 4
VOCAB = 640
MARKUP = ("<|user|>\n<|embed|>\n", "[INST] one [/INST]", 'This sentence : "one" means in one word:"')


@functools.cache
def build_metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE as Llama's and Mistral's: "▁" for spaces, bytes for what it does not know, <s> before a text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator([word for text in (*SENTENCES, *MARKUP) for word in text.split()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )


def build_language_model(model_type: str, *, seed: int = 0, is_tied: bool | None = None, **settings: Any) -> Any:
    """A random language model of an architecture, head included."""
    common = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    own: dict[str, dict[str, Any]] = {
        "gpt_neo": {
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 64,
        },
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "init_std": 0.2, "pad_token_id": 1},
        "bert": {"intermediate_size": 48, "vocab_size": 600, "pad_token_id": 0},
        "mpnet": {"intermediate_size": 48, "vocab_size": 600, "pad_token_id": 1},
        "modernbert": {"intermediate_size": 48, "vocab_size": 600, "pad_token_id": 0, "global_attn_every_n_layers": 2},
        "gemma3_text": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8},
        "gemma2": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8},
        "qwen3": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    }
    grouped = {"intermediate_size": 48, "num_key_value_heads": 2}
    if is_tied is not None:
        settings["tie_word_embeddings"] = is_tied
    config = CONFIG_MAPPING[model_type](**{**common, **own.get(model_type, grouped), **settings})
    auto = AutoModelForMaskedLM if model_type in ("bert", "mpnet", "modernbert") else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower() or "ln_" in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def save(folder: Path, model: Any, tokenizer: Any, *, shard: str | None = None) -> Path:
    """A checkpoint of transformers; in several files where a shard size is given."""
    model.save_pretrained(folder, **({} if shard is None else {"max_shard_size": shard}))
    tokenizer.save_pretrained(folder)
    if model.config.model_type != "bert":  # whose tokenizer alone gives token types
        path = folder / "tokenizer_config.json"
        settings = {**json.loads(path.read_text()), "model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(settings))
    return folder


def save_modules(folder: Path, pooling: str, *, normalizes: bool = False, **settings: Any) -> Path:
    """What sentence-transformers keeps beside a checkpoint, as the repositories of the embedders have it."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooled = folder / "1_Pooling"
    pooled.mkdir()
    modes = {
        f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    }
    modes |= {f"pooling_mode_{pooling}": True}
    (pooled / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **modes}))
    if normalizes:
        (folder / "2_Normalize").mkdir()
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def save_adapter(folder: Path, model: Any, *, seed: int, base: str, task_type: str | None = None) -> Path:
    """A LoRA adapter of random weights, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type=task_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)
    adapted.unload()
    return folder


def save_copy(folder: Path, source: Path) -> Path:
    """The files of a folder in another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return folder


def save_in_cache(cache: Path, name: str, source: Path) -> None:
    """The files of a folder as huggingface_hub keeps those of a repository that was downloaded."""
    commit = "c" * 40
    repository = cache / f"models--{name.replace('/', '--')}"
    save_copy(repository / "snapshots" / commit, source)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    index = "model.safetensors.index.json"
    if not (source / index).exists():  # what the cache notes when a file was asked for in vain
        missing = repository / ".no_exist" / commit / index
        missing.parent.mkdir(parents=True)
        missing.touch()


__all__ = ["build_byte_level_tokenizer", "build_metaspace_tokenizer", "build_wordpiece_tokenizer"]
