"""LM heads: from a pooled embedding to a logit for every token of the vocabulary."""

from __future__ import annotations

from st_keytokens.lm_head.checkpoint_tensors import CheckpointTensors
from st_keytokens.lm_head.head_layouts import HeadLayout, head_layout
from st_keytokens.lm_head.lm_head import LMHead

__all__ = ["CheckpointTensors", "HeadLayout", "LMHead", "head_layout"]
