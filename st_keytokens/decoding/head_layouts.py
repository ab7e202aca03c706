"""What is known of each architecture's LM head: where its tensors are, and what it does around the product."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from huggingface_hub.errors import StrictDataclassError

logger = logging.getLogger(__name__)

_ENCODER_DECODERS = {"t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma", "t5gemma2", "pop2piano", "udop"}
_BIASED = {"codegen", "ctrl", "gptj", "phi"}  # lm_head.bias, which a body does not hold
_BIASED_BY_CONFIG = {
    "eurobert": "mlp_bias",
    "phimoe": "lm_head_bias",
    "zaya": "lm_head_bias",
    "ernie4_5_moe": "use_bias",
}
_SCALES = {  # the config attribute that scales the logits, and the exponent: granite divides where others multiply
    "cohere": ("logit_scale", 1),
    "cohere2": ("logit_scale", 1),
    "cohere2_moe": ("logit_scale", 1),
    "cohere_compass_text": ("logit_scale", 1),
    "falcon_h1": ("lm_head_multiplier", 1),
    "granite": ("logits_scaling", -1),
    "granite_swa": ("logits_scaling", -1),
    "granitemoe": ("logits_scaling", -1),
    "granitemoe_swa": ("logits_scaling", -1),
    "granitemoehybrid": ("logits_scaling", -1),
    "granitemoeshared": ("logits_scaling", -1),
    "hyperclovax": ("logits_scaling", 1),
}
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_ALTERS_LOGITS = re.compile(r"^(logits?_.*(scal|mult|cap)|(lm_head|output)_multiplier$|unpadded_vocab_size$)")


@dataclass(frozen=True)
class HeadLayout:
    """The LM head of one configuration. Names are module names without the prefix of the enclosing model.

    Attributes:
        output: Names that the output layer, ``hidden @ weight.T + bias``, may have.
        embeddings: Names that the input embeddings may have: the weight where the output layer's is not stored.
        is_tied: Whether the output layer shares the weight of the input embeddings.
        has_bias: Whether logits have a bias.
        bias: Names of bias tensors beside ``<output>.bias``.
        dense: Name of the dense layer before the product, ``""`` where there is none; then an activation and a norm.
        norm: Name of the norm after the activation.
        activation: Name of the activation, as in ``transformers.activations.ACT2FN``.
        norm_eps: Epsilon of the norm.
        scale: Factor of the logits.
        soft_cap: ``c`` in ``c * tanh(logits / c)``, or None.
        input_dimension: Width of the embeddings that go in, or None where the configuration does not tell.
    """

    output: tuple[str, ...] = ("lm_head", "embed_out")
    embeddings: tuple[str, ...] = (
        "embed_tokens",
        "wte",
        "embed_in",
        "word_embeddings",
        "tok_embeddings",
        "tokens_embed",
        "embeddings",
    )
    is_tied: bool = False
    has_bias: bool = False
    bias: tuple[str, ...] = ()
    dense: str = ""
    norm: str = ""
    activation: str = "gelu"
    norm_eps: float = 1e-12
    scale: float = 1.0
    soft_cap: float | None = None
    input_dimension: int | None = None

    @property
    def missing_in_body(self) -> list[str]:
        """What of the head a body, which holds the input embeddings alone, lacks."""
        lacking = {"weight": not self.is_tied, "transform": bool(self.dense), "bias": self.has_bias}
        return [name for name, is_lacking in lacking.items() if is_lacking]


@dataclass(frozen=True)
class _TransformedHead:
    """An architecture with dense layer, activation and norm before the product."""

    output: str
    dense: str
    norm: str
    bias: tuple[str, ...] = ()
    activation: str = ""  # a config attribute; gelu where empty
    norm_eps: str = "layer_norm_eps"  # a config attribute; 1e-12 where empty
    has_bias: str = ""  # a config attribute; always where empty


_BERT = _TransformedHead(
    "cls.predictions.decoder",
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    ("cls.predictions.bias",),
    "hidden_act",
)
_ROBERTA = _TransformedHead("lm_head.decoder", "lm_head.dense", "lm_head.layer_norm", ("lm_head.bias",))
_TRANSFORMED = {
    "bert": _BERT,
    "ernie": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": _ROBERTA,
    "modernbert": _TransformedHead(
        "decoder", "head.dense", "head.norm", (), "classifier_activation", "norm_eps", "decoder_bias"
    ),
    "modernbert-decoder": _TransformedHead(
        "decoder", "lm_head.dense", "lm_head.norm", (), "classifier_activation", "norm_eps", "decoder_bias"
    ),
    "distilbert": _TransformedHead("vocab_projector", "vocab_transform", "vocab_layer_norm", (), "activation", ""),
    "electra": _TransformedHead("generator_lm_head", "generator_predictions.dense", "generator_predictions.LayerNorm"),
    "albert": _TransformedHead(
        "predictions.decoder", "predictions.dense", "predictions.LayerNorm", ("predictions.bias",), "hidden_act"
    ),
}


_REGISTERED: dict[str, Callable[[Any], HeadLayout]] = {}


def register_head_layout(model_type: str, layout: Callable[[Any], HeadLayout]) -> None:
    """Makes the LM head of an architecture known, or known otherwise.

    Args:
        model_type: ``model_type`` of its configuration.
        layout: Gives the layout of a configuration.

    Raises:
        TypeError: If layout cannot be called.

    >>> register_head_layout("mine", lambda config: HeadLayout(output=("out",), scale=config.scale))
    >>> head_layout({"model_type": "mine", "scale": 0.5}).scale
    0.5
    """
    if not callable(layout):
        raise TypeError(f"layout must be a function of a configuration, got {type(layout).__name__}.")
    _REGISTERED[model_type] = layout


def head_layout(config: Any) -> HeadLayout:
    """Say what the LM head of a configuration looks like.

    Args:
        config: A ``transformers`` configuration, or a mapping such as the content of a ``config.json``.

    Returns:
        The layout. Architectures that transformers lists as causal language models, and unknown ones, are taken to
        have the plain head, ``hidden @ weight.T``, with the scaling and soft-capping that the configuration names.

    Raises:
        TypeError: If config is neither a configuration nor a mapping.
        ValueError: If the architecture's head cannot decode its embeddings, or is not known.

    Examples:
        >>> head_layout({"model_type": "gemma2", "hidden_size": 32}).soft_cap
        30.0
        >>> head_layout({"model_type": "bert"}).dense
        'cls.predictions.transform.dense'
    """
    whole = as_config(config)
    text = whole.get_text_config() if hasattr(whole, "get_text_config") and _has_text_config(whole) else whole
    model_type = str(getattr(text, "model_type", ""))
    if model_type in _REGISTERED:
        return _REGISTERED[model_type](text)
    if model_type in _ENCODER_DECODERS or getattr(whole, "is_encoder_decoder", False):
        raise ValueError(
            f"model must have an LM head that reads its embeddings, got the encoder-decoder {model_type!r}, whose LM "
            "head reads the decoder's hidden states and never meets the encoder's embeddings. Use a decoder-only or a "
            "masked language model."
        )
    shared: dict[str, Any] = {
        "is_tied": bool(getattr(whole, "tie_word_embeddings", getattr(text, "tie_word_embeddings", False))),
        "scale": _scale(text, model_type),
        "soft_cap": next((float(cap) for name in _SOFT_CAPS if (cap := getattr(text, name, None))), None),
        "input_dimension": getattr(text, "hidden_size", None),
    }
    if model_type in _TRANSFORMED:
        head = _TRANSFORMED[model_type]
        return HeadLayout(
            output=(head.output,),
            has_bias=bool(getattr(text, head.has_bias)) if head.has_bias else True,
            bias=head.bias,
            dense=head.dense,
            norm=head.norm,
            activation=str(getattr(text, head.activation)) if head.activation else "gelu",
            norm_eps=float(getattr(text, head.norm_eps)) if head.norm_eps else 1e-12,
            **shared,
        )
    if _has_unknown_mlm_head(text, model_type):
        raise ValueError(
            f"model must have an LM head that is known here, got the masked language model {model_type!r}. Use one of "
            f"{', '.join(sorted(_TRANSFORMED))} or a causal language model, or LMHead.from_input_embeddings(model)."
        )
    if model_type == "opt":  # the body's last hidden state is already projected to the width of the word embeddings
        shared["input_dimension"] = text.word_embed_proj_dim
    by_config = _BIASED_BY_CONFIG.get(model_type)
    has_bias = bool(getattr(text, by_config, False)) if by_config else model_type in _BIASED
    return HeadLayout(has_bias=has_bias, **shared)


def as_config(config: Any) -> Any:
    """Make a configuration with its architecture's defaults from a mapping; a configuration is returned as it is.

    Args:
        config: A ``transformers`` configuration, or a mapping. An unknown ``model_type`` gives a plain namespace.

    Returns:
        An object with the settings as attributes.

    Raises:
        TypeError: If config is neither.
        ValueError: If the settings contradict each other.

    Examples:
        >>> as_config({"model_type": "llama"}).tie_word_embeddings
        False
    """
    from transformers import CONFIG_MAPPING

    if isinstance(config, Mapping):
        model_type = config.get("model_type", "")
        if model_type in CONFIG_MAPPING:
            try:
                return CONFIG_MAPPING[model_type].from_dict(dict(config))
            except (StrictDataclassError, TypeError, ValueError) as err:
                raise ValueError(f"config must be valid for model_type {model_type!r}, but it is not: {err}") from err
        return SimpleNamespace(**config)
    if not hasattr(config, "model_type"):
        raise TypeError(f"config must be a transformers configuration or a mapping, got {type(config).__name__}.")
    return config


def find_name(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """Find the first wanted dotted name among names that may carry the prefix of an enclosing model.

    Args:
        names: Names to search.
        wanted: Names without prefix, most wanted first.

    Returns:
        The name itself, or else the least nested one that ends with ``.<name>``; None if there is none.

    Raises:
        ValueError: If several equally nested names match.

    Examples:
        >>> find_name(["model.embed_tokens.weight", "model.mtp.0.embed_tokens.weight"], ["embed_tokens.weight"])
        'model.embed_tokens.weight'
    """
    names = list(names)
    for name in wanted:
        found = sorted((n for n in names if n == name or n.endswith(f".{name}")), key=lambda n: n.count("."))
        if len(found) > 1 and found[0].count(".") == found[1].count("."):
            raise ValueError(f"{name} must be found once, got {', '.join(found)}. Pass tensor_name to choose one.")
        if found:
            return found[0]
    return None


def _has_text_config(config: Any) -> bool:
    return any(hasattr(config, name) for name in ("text_config", "llm_config", "language_config"))


def _scale(config: Any, model_type: str) -> float:
    """The factor of the logits; refuses an attribute that may change them in a way unknown here."""
    attribute, exponent = _SCALES.get(model_type, ("", 1))
    for name, value in _settings(config).items():
        if name not in (attribute, *_SOFT_CAPS) and _ALTERS_LOGITS.match(name) and value not in (None, 1, False):
            raise ValueError(
                f"model must have an LM head that is known here, got {model_type!r} with {name}={value!r}, which "
                "changes the logits. To leave that out, use LMHead.from_input_embeddings(model), or config={} with "
                "tensor_name."
            )
    value = getattr(config, attribute, None) if attribute else None
    return 1.0 if value is None else float(value) ** exponent


def _settings(config: Any) -> dict[str, Any]:
    settings: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    return settings


def _has_unknown_mlm_head(config: Any, model_type: str) -> bool:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if model_type in _BIASED_BY_CONFIG or model_type in _BIASED:
        return False
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return True
    known = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return not known and any("MaskedLM" in name for name in getattr(config, "architectures", None) or ())
