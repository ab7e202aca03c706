"""PEFT adapters, merged into the model that they were trained on."""

from __future__ import annotations

from typing import Any

_PREFIX = "base_model.model."


def merge_adapter(model: Any, name_or_path: str, **hub: Any) -> None:
    """Merges an adapter's weights into a model's own; nothing of PEFT is left in it.

    Adapters trained on a language model with its head name its layers with one more prefix than the body has, which
    is what a SentenceTransformer holds; both are understood. An adapter that does not fit is refused: PEFT itself
    would leave out what it finds no place for.

    Args:
        model: The transformers model; modified.
        name_or_path: The adapter's directory, or id on the Hub.
        **hub: ``token``, ``revision``, ``cache_dir``, ``local_files_only``, where they are given.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If a weight of the adapter has no place in the model, or one of the adapted layers has no weight.
    """
    try:
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError as err:
        raise ImportError(
            f"peft must be installed to merge the adapter {name_or_path!r}. "
            'Install it with pip install "st-keytokens[peft]".'
        ) from err
    config = PeftConfig.from_pretrained(name_or_path, **hub)
    config.task_type, config.inference_mode = None, True  # the body is no model for a task
    config.base_model_name_or_path = model.name_or_path
    weights = load_peft_weights(name_or_path, device="cpu", **hub)
    prefix = f"{_PREFIX}{model.base_model_prefix}."
    if all(name.startswith(prefix) for name in weights):
        weights = {_PREFIX + name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    try:
        adapted = get_peft_model(model, config)
        loaded = set_peft_model_state_dict(adapted, weights)
    except (RuntimeError, ValueError) as err:
        raise ValueError(
            f"adapter must fit {type(model).__name__}, got {name_or_path!r}, which does not: {err}. Pass the language "
            "model that it was trained on as backbone."
        ) from err
    lost = sorted(loaded.unexpected_keys)
    empty = sorted(name for name in loaded.missing_keys if "lora_" in name)
    if lost or empty:
        kind, names = ("no place for its", lost) if lost else ("no weight for", empty)
        raise ValueError(
            f"adapter must fit {type(model).__name__}, got {name_or_path!r} with {kind} {names[0]} and "
            f"{len(names) - 1} more. Pass the language model that it was trained on as backbone."
        )
    merged = adapted.merge_and_unload()
    for name in ("peft_config", "_hf_peft_config_loaded"):
        vars(merged).pop(name, None)
