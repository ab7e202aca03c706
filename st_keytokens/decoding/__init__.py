"""From a vector to scored terms: LM heads, the tensors of checkpoints, top-k."""

from __future__ import annotations
