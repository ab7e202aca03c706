"""Fingerprints: short names of everything that changes a score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch


def weights_hash(module: torch.nn.Module, samples: int = 64) -> str:
    """Hash of a model's weights, the same on every device and in every floating-point type they are loaded in.

    Args:
        module: Any module. Of each tensor in its state, shape and ``samples`` evenly spaced values count, as bfloat16.
        samples: Values taken from each tensor.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        positions = torch.linspace(0, max(len(flat) - 1, 0), min(samples, len(flat))).long()
        values = flat[positions.to(flat.device)].cpu()
        if values.is_floating_point():
            values = values.to(torch.bfloat16).float()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


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
