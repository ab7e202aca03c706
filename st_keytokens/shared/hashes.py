"""Hashes that name weights, tokenizers, modules and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch


def weights_hash(module: torch.nn.Module, samples: int = 64) -> str:
    """Hash of a model's weights, the same on every device, and in bfloat16 as in the float32 that it rounds.

    Args:
        module: Any module. Of each tensor in its state, shape and ``samples`` evenly spaced values count, as bfloat16;
            those of a BERT's ``pooler`` do not.
        samples: Values taken from each tensor.

    Returns:
        64 hexadecimal digits.
    """
    return tensors_hash(module.state_dict(), samples)


def tensors_hash(tensors: Mapping[str, torch.Tensor], samples: int = 64) -> str:
    """:func:`weights_hash` of tensors by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if ".pooler." in name:  # often missing from a checkpoint, random then, and not used by the embedding
            continue
        flat = tensor.detach().reshape(-1)
        positions = _places(len(flat), samples)
        values = flat[positions.to(flat.device)].cpu()
        if values.is_floating_point():
            values = values.to(torch.bfloat16).float()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


class WeightsWatch:
    """Notices that a model's weights have changed, at the cost of a look at each tensor's version and a few values.

    Args:
        module: The model.

    Attributes:
        hash: :func:`weights_hash` as it was at the last look.
        dtype: That of the first floating-point weight at the last look; None where there is none.
    """

    _VALUES = 16

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._seen = self._look()
        self.hash = weights_hash(module)
        self.dtype = self._dtype()

    def has_changed(self) -> bool:
        """Whether the weights' hash or their dtype is another one than at the last look."""
        seen = self._look()
        if seen == self._seen:
            return False
        before = self.hash, self.dtype
        self._seen, self.hash, self.dtype = seen, weights_hash(self._module), self._dtype()
        return (self.hash, self.dtype) != before

    def _look(self) -> list[Any]:
        tensors, seen, values = list(self._module.parameters()), [], []
        step = max(1, len(tensors) // self._VALUES)
        for number, tensor in enumerate(tensors):
            if not tensor.is_meta:
                seen.append((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype))
                if number % step == 0 and tensor.is_floating_point() and tensor.numel():
                    value = tensor.detach().view(-1)[tensor.numel() // 2]  # what .data changes, no version tells
                    values.append(value.to(tensors[0].device, torch.float32))
        return [seen, torch.stack(values).tolist() if values else []]

    def _dtype(self) -> torch.dtype | None:
        return next((t.dtype for t in self._module.parameters() if t.is_floating_point()), None)


def weights_sample(module: torch.nn.Module, size: int = 256) -> list[float]:
    """A few weights, for telling models apart whatever floating-point type they are loaded in."""
    tensors = [t for n, t in sorted(module.state_dict().items()) if t.is_floating_point() and ".pooler." not in n]
    each = max(1, size // max(1, len(tensors)))
    found: list[float] = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        positions = _places(len(flat), each)
        found += flat[positions.to(flat.device)].float().cpu().tolist()
    return found


def _places(size: int, count: int) -> torch.Tensor:
    """Evenly spread positions; in float32 the last one of a large tensor would be rounded past its end."""
    return torch.linspace(0, max(size - 1, 0), min(count, size), dtype=torch.float64).long()


def is_same_sample(saved: list[float], loaded: list[float]) -> bool:
    """Whether two samples are of the same weights, up to the rounding of 16-bit types.

    >>> is_same_sample([1.0, -2.0], [1.0005, -2.0]), is_same_sample([1.0, -2.0], [1.1, -2.0])
    (True, False)
    """
    return len(saved) == len(loaded) and torch.allclose(
        torch.tensor(saved), torch.tensor(loaded), rtol=1e-2, atol=1e-6
    )


def module_settings(modules: Iterable[torch.nn.Module]) -> list[Any]:
    """What a model's modules are set to: the type's name, its configuration and ``max_seq_length`` of each."""
    found = []
    for module in modules:
        get_config: Any = getattr(module, "get_config_dict", dict)
        has_length = hasattr(type(module), "max_seq_length") or "max_seq_length" in vars(module)
        found.append((type(module).__name__, get_config(), module.max_seq_length if has_length else None))
    return found


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of a fast tokenizer, normaliser and merges included; of a slow one's vocabulary.

    Truncation and padding, which change with every use, do not count.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return fingerprint({"vocabulary": tokenizer.get_vocab()})
    content = json.loads(backend.to_str())
    return fingerprint({k: v for k, v in content.items() if k not in ("truncation", "padding")})


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Hash of named parts, independent of their order.

    Args:
        parts: JSON-serialisable values by name.

    Returns:
        32 hexadecimal digits.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
