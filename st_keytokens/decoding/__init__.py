"""From a vector to scored terms: LM heads, the tensors of checkpoints, top-k."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_keytokens.shared.imports import lazy_names

__all__ = ["HeadLayout", "LMHead", "register_head_layout"]

if TYPE_CHECKING:
    from st_keytokens.decoding.head_layouts import HeadLayout, register_head_layout
    from st_keytokens.decoding.lm_head import LMHead
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"HeadLayout": "head_layouts", "LMHead": "lm_head", "register_head_layout": "head_layouts"}
    )
