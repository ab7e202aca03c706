"""The fingerprint of an encoder: a short name of everything that changes a score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from st_keytokens.hashes import fingerprint, module_settings, tokenizer_hash, weights_hash

if TYPE_CHECKING:
    from st_keytokens.encoder.encoder import HeadedModel
    from st_keytokens.key_token_head import KeyTokenHead


SCORING_VERSION = 3  # counts up whenever the same settings give other scores than before


def lm_head_hash(head: KeyTokenHead) -> str:
    """Hash of an LM head: its tensors, unless they are the model's own, and what it does around the product."""
    lm_head = head.lm_head
    if lm_head is None:
        return ""
    tensors = torch.nn.ParameterDict()
    parts = {"output": lm_head.parts.output, "transform": lm_head.parts.transform}
    for name, part in () if lm_head.is_tied else parts.items():
        for key, value in () if part is None else part.state_dict().items():
            tensors[f"{name}-{key}".replace(".", "-")] = torch.nn.Parameter(value, requires_grad=False)
    settings = [lm_head.is_tied, lm_head.scale, lm_head.soft_cap, repr(lm_head.parts.transform)]
    return fingerprint({"tensors": weights_hash(tensors), "settings": settings})


def scoring_state(encoder: HeadedModel) -> tuple[Any, ...]:
    """All settings that change a score, as they are now; cheap, so that it can be compared before each use."""
    model, calibration, forward_pass = encoder.model, encoder.calibration, encoder.forward_pass
    return (
        SCORING_VERSION,
        [getattr(encoder.head, name) for name in encoder.head.config_keys],
        encoder.weighting,
        None if calibration is None else calibration.hash,
        sorted(model.prompts.items()),
        model.default_prompt_name,
        model.truncate_dim,
        module_settings((*forward_pass.before, *forward_pass.after)),
    )


def encoder_fingerprint(encoder: HeadedModel, state: tuple[Any, ...]) -> str:
    """Names a state together with weights, LM head, vocabulary and tokenizer."""
    return fingerprint(
        {
            "state": repr(state),
            "weights": encoder.weights_hash,
            "lm_head": lm_head_hash(encoder.head),
            "vocabulary": encoder.vocabulary.hash,
            "tokenizer": tokenizer_hash(encoder.model.tokenizer),
        }
    )
