"""What an embedder should give, computed from the tensors of its checkpoint alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import silu


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, in one file or several."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def with_adapter(tensors: dict[str, torch.Tensor], folder: Path, *, scale: float) -> dict[str, torch.Tensor]:
    """Tensors to which ``scale * B @ A`` of a LoRA adapter is added, by the names of its layers."""
    found = dict(tensors)
    weights = load_file(folder / "adapter_model.safetensors")
    for name, a in weights.items():
        if ".lora_A." in name:
            layer = name.split("layers.")[1].split(".lora_A")[0]
            (target,) = (key for key in tensors if key.endswith(f"layers.{layer}.weight"))
            found[target] = found[target] + scale * weights[name.replace("lora_A", "lora_B")] @ a
    return found


def mistral_hidden_states(
    tensors: dict[str, torch.Tensor], ids: Sequence[int], *, is_causal: bool, heads: int = 4, theta: float = 10000.0
) -> torch.Tensor:
    """The last hidden states of one text, ``(length, width)``: RMSNorm, rotary positions, grouped heads, SwiGLU."""
    at = {name.removeprefix("model."): tensor.double() for name, tensor in tensors.items()}
    hidden = at["embed_tokens.weight"][torch.tensor(list(ids))]
    length, width = hidden.shape
    size = width // heads
    turns = torch.arange(length)[:, None] / theta ** (torch.arange(0, size, 2) / size)
    cos, sin = (torch.cat([f(turns), f(turns)], dim=1).double() for f in (torch.cos, torch.sin))

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    def split(x: torch.Tensor, bias: torch.Tensor | float) -> torch.Tensor:
        return (x + bias).reshape(length, -1, size).transpose(0, 1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-right, left], dim=-1) * sin

    for layer in range(sum(name.endswith("input_layernorm.weight") for name in at)):
        part = {k.removeprefix(f"layers.{layer}."): v for k, v in at.items() if k.startswith(f"layers.{layer}.")}
        x = norm(hidden, part["input_layernorm.weight"])
        q, k, v = (
            split(x @ part[f"self_attn.{n}_proj.weight"].T, part.get(f"self_attn.{n}_proj.bias", 0.0)) for n in "qkv"
        )
        groups = heads // len(k)
        k, v = (each.repeat_interleave(groups, dim=0) for each in (turned(k), v))
        scores = turned(q) @ k.transpose(1, 2) / np.sqrt(size)
        if is_causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        attended = (scores.softmax(dim=-1) @ v).transpose(0, 1).reshape(length, -1)
        hidden = hidden + attended @ part["self_attn.o_proj.weight"].T
        x = norm(hidden, part["post_attention_layernorm.weight"])
        gated = silu(x @ part["mlp.gate_proj.weight"].T) * (x @ part["mlp.up_proj.weight"].T)
        hidden = hidden + gated @ part["mlp.down_proj.weight"].T
    return norm(hidden, at["norm.weight"])
