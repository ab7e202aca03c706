"""Embedders built as their recipes say, with the LM heads that decode them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import import_from_string, load_file_path

from st_keytokens.decoding.head_parts import FrozenLayer
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.embedders.recipes import EmbedderRecipe, find_recipe
from st_keytokens.embedders.template_transformer import TemplateTransformer
from st_keytokens.encoder.forward_pass import ForwardPass, find_head
from st_keytokens.key_token_head import KeyTokenHead, lm_head_of, transformers_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from st_keytokens.key_token_head import HeadSettings

__all__ = ["load_embedder", "load_model", "open_embedder"]


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


_OURS = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (TemplateTransformer, KeyTokenHead)}
_THEIRS = "sentence_transformers."
_PLACE = ("token", "cache_folder", "revision", "local_files_only")
_OF_MODULES = ("trust_remote_code", "model_kwargs", "processor_kwargs", "config_kwargs")


def load_saved(name_or_path: str, **arguments: Any) -> SentenceTransformer:
    """Loads a model as ``SentenceTransformer`` does, and one with modules of this package without remote code.

    sentence-transformers takes every class that is not its own for code from the repository, and asks for
    ``trust_remote_code``. ``TemplateTransformer`` and ``KeyTokenHead`` are installed: they, and sentence-transformers'
    own, are loaded here by name.

    Args:
        name_or_path: Directory, or id on the Hub.
        **arguments: Those of ``SentenceTransformer``.

    Returns:
        The model.

    Raises:
        OSError: If there is no such model.
        ValueError: If it needs remote code, and ``trust_remote_code`` is not given.
    """
    place = {key: arguments[key] for key in _PLACE if key in arguments}
    names = _read_json(name_or_path, "modules.json", place) or []
    types = [str(module["type"]) for module in names]
    if _OURS.keys().isdisjoint(types) or not all(kind in _OURS or kind.startswith(_THEIRS) for kind in types):
        return SentenceTransformer(name_or_path, **arguments)
    if "tokenizer_kwargs" in arguments:
        arguments["processor_kwargs"] = arguments.pop("tokenizer_kwargs")
    given = {key: arguments.pop(key) for key in (*_PLACE, *_OF_MODULES) if key in arguments}
    modules = [
        (_OURS.get(kind) or import_from_string(kind)).load(
            name_or_path, subfolder=module["path"], **{**dict.fromkeys(_OF_MODULES), "backend": "torch", **given}
        )
        for module, kind in zip(names, types, strict=True)
    ]
    settings = _read_json(name_or_path, "config_sentence_transformers.json", place) or {}
    saved = {
        name: settings[name]
        for name in ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
        if settings.get(name)
    }
    return SentenceTransformer(modules=modules, **{**saved, **arguments})


def _read_json(name_or_path: str, file: str, place: dict[str, Any]) -> Any:
    path = load_file_path(name_or_path, file, **place)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


_HUB = ("token", "revision", "local_files_only", "trust_remote_code")
_POOLER = {"text": {"method": "forward", "method_output_name": "pooler_output"}}

Place = str | PathLike[str]


def load_embedder(
    name_or_path: Place,
    *,
    recipe: str | EmbedderRecipe | None = None,
    backbone: Place | None = None,
    places: Mapping[str, Place] | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    **settings: Unpack[HeadSettings],
) -> SentenceTransformer:
    """A SentenceTransformer that embeds as its authors meant, with the head that decodes it before ``Normalize``.

    Args:
        name_or_path: Id of a known embedder, see :func:`known_embedders`; or id or directory of any other.
        recipe: Id of the known embedder that a directory, or another repository, is a copy of; ``"prompteol"``, the
            one-word prompt for any causal language model; or a recipe of your own.
        backbone: Id or directory of the language model that holds the LM head, and the weights that adapters belong
            to. None: as the recipe says; for other embedders, their own LM head.
        places: Where the repositories that the recipe names are, by id, for those that are not taken from the Hub.
        model_arguments: For ``SentenceTransformer``, such as ``{"device": "cuda"}``. Where the recipe needs
            remote code, ``{"trust_remote_code": True}`` is for the caller to say.
        **settings: Those of :class:`KeyTokenHead`.

    Returns:
        The model. Give it to ``KeyTokenEncoder``, or use it as it is.

    Raises:
        FileNotFoundError: If the backbone has no safetensors checkpoint.
        ImportError: If there are adapters to merge, and peft is not installed.
        OSError: If there is no such model.
        ValueError: If recipe is not in the table or cannot be decoded, the embedder holds no LM head and no backbone
            is named, or the parts do not fit.
    """
    model, lm_head = open_embedder(
        name_or_path, recipe=recipe, backbone=backbone, places=places, model_arguments=model_arguments
    )
    head = KeyTokenHead(lm_head, **settings)
    if lm_head is None:
        try:
            lm_head_of(model, head, None)
        except ValueError as err:
            raise ValueError(
                f"backbone must be given for {str(name_or_path)!r}, which is none of the known embedders and does not "
                f"hold its LM head: {err}"
            ) from err
    head.bind(model)
    model.insert(len(ForwardPass(model, head).before), head)
    return model


def open_embedder(
    name_or_path: Place,
    *,
    recipe: str | EmbedderRecipe | None = None,
    backbone: Place | None = None,
    places: Mapping[str, Place] | None = None,
    model_arguments: Mapping[str, Any] | None = None,
) -> tuple[SentenceTransformer, LMHead | None]:
    """The parts of :func:`load_embedder`: the model without a head, and the LM head of a known embedder.

    Args:
        name_or_path: As in :func:`load_embedder`, as all that follow.
        recipe: See there.
        backbone: See there.
        places: See there.
        model_arguments: See there.

    Returns:
        Model and LM head; None for the LM head where it is the model's own, or no recipe and no backbone says.

    Raises:
        OSError: If there is no such model, or a file of its weights is damaged.
        ValueError: See :func:`load_embedder`, as for all others.
    """
    name, arguments = str(name_or_path), dict(model_arguments or {})
    known = recipe if isinstance(recipe, EmbedderRecipe) else find_recipe(recipe or name, is_needed=bool(recipe))
    model, where = _model(known, name, backbone, places or {}, arguments)
    if known is None:
        return model, _own_lm_head(model, name, arguments) if backbone is None else _lm_head(backbone, name, arguments)
    if backbone is not None and not (known.base and not known.backbone):
        holder = str(backbone)
    elif known.backbone:
        holder = where[known.backbone]
    else:
        return model, _own_lm_head(model, where[known.base or known.name], arguments)
    return model, with_rows(_lm_head(holder, name, arguments, known.tensor_name), len(model.tokenizer))


def load_model(
    name_or_path: Place,
    *,
    recipe: str | EmbedderRecipe | None = None,
    backbone: Place | None = None,
    model_arguments: Mapping[str, Any] | None = None,
) -> SentenceTransformer:
    """The model of :func:`open_embedder` alone: no LM head is read.

    Args:
        name_or_path: As in :func:`load_embedder`, as all that follow.
        recipe: See there.
        backbone: See there.
        model_arguments: See there.

    Returns:
        The model.

    Raises:
        ValueError: See :func:`load_embedder`, as for all others.
    """
    name = str(name_or_path)
    known = recipe if isinstance(recipe, EmbedderRecipe) else find_recipe(recipe or name, is_needed=bool(recipe))
    return _model(known, name, backbone, {}, dict(model_arguments or {}))[0]


def _model(
    known: EmbedderRecipe | None,
    name: str,
    backbone: Place | None,
    places: Mapping[str, Place],
    arguments: dict[str, Any],
) -> tuple[SentenceTransformer, dict[str, str]]:
    """The model, and where each repository of its recipe is."""
    where: dict[str, str] = {}
    if known is not None:
        if known.needs_remote_code and not arguments.get("trust_remote_code"):
            raise ValueError(
                f"model_arguments must say that code of the repository may run for {known.name}, got none. Look at "
                "that code, and pass {'trust_remote_code': True} if you trust it."
            )
        where = _places(known, name, backbone, places)
    try:
        if known is None or known.is_saved_whole:
            return load_saved(name, **arguments), where
        return _built(known, where, name, arguments), where
    except SafetensorError as err:
        raise OSError(f"{name} must hold whole weights, got a damaged file: {err}. Download it again.") from err


def _lm_head(holder: Place, name: str, arguments: Mapping[str, Any], tensor_name: str | None = None) -> LMHead:
    """The LM head of a checkpoint, from where the model itself is looked for; a revision is that of the model."""
    return LMHead.from_checkpoint(
        str(holder),
        tensor_name=tensor_name,
        token=arguments.get("token"),
        revision=arguments.get("revision") if str(holder) == name else None,
        cache_folder=_cache_folder(arguments),
    )


def _own_lm_head(model: SentenceTransformer, name: str, arguments: Mapping[str, Any]) -> LMHead | None:
    """The LM head that a checkpoint stores beside the body, where the body itself does not hold it; else None."""
    bodies = transformers_of(model, model)
    try:
        if len(bodies) != 1 or find_head(model) is not None:
            return None
        LMHead.from_model(bodies[0].auto_model)
    except (TypeError, ValueError):
        try:
            return _lm_head(name, name, arguments)
        except (OSError, ValueError):  # an embedder's own checkpoint seldom has one
            return None
    return None


def _cache_folder(arguments: Mapping[str, Any]) -> str | None:
    """Where files of the Hub are cached, as SentenceTransformer has it."""
    return arguments.get("cache_folder") or os.getenv("SENTENCE_TRANSFORMERS_HOME")


def with_rows(lm_head: LMHead, rows: int) -> LMHead:
    """An LM head with at least so many rows; new ones, of tokens that the backbone never had, are zero."""
    lacking = rows - lm_head.vocab_size
    if lacking <= 0:
        return lm_head
    output = lm_head.parts.output
    parts = [output.weight] if output.bias is None else [output.weight, output.bias]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    padded = [torch.cat([tensor, tensor.new_zeros(lacking, *tensor.shape[1:])]) for tensor in tensors]
    return LMHead(
        FrozenLayer(*padded), lm_head.parts.transform, scale=lm_head.scale, soft_cap=lm_head.soft_cap, is_held=False
    )


def _places(recipe: EmbedderRecipe, name: str, backbone: Place | None, places: Mapping[str, Place]) -> dict[str, str]:
    """Where each repository of a recipe is."""
    unknown = sorted(set(places) - {*recipe.repositories, recipe.name})
    if unknown:
        raise ValueError(
            f"places must be of repositories that the recipe of {recipe.name} names, "
            f"{', '.join(recipe.repositories)}, got {unknown[0]}. Check the id."
        )
    where = {repository: str(places.get(repository, repository)) for repository in recipe.repositories}
    where[recipe.name] = name
    if backbone is not None and recipe.base:
        where[recipe.base] = str(backbone)
    return where


def _built(
    recipe: EmbedderRecipe, where: Mapping[str, str], name: str, arguments: dict[str, Any]
) -> SentenceTransformer:
    """The modules that a recipe describes."""
    arguments, base = dict(arguments), where[recipe.base or recipe.name]
    hub = {key: arguments.pop(key) for key in _HUB if key in arguments}
    cache = _cache_folder(arguments)
    arguments.pop("cache_folder", None)
    hub |= {} if cache is None else {"cache_dir": cache}
    of_base = hub if base == name else {key: value for key, value in hub.items() if key != "revision"}
    processor = arguments.pop("processor_kwargs", None) or arguments.pop("tokenizer_kwargs", None)
    pooler = {"modality_config": _POOLER, "module_output_name": "sentence_embedding"}
    transformer = TemplateTransformer(
        base,
        model_kwargs={**of_base, **(arguments.pop("model_kwargs", None) or {})},
        processor_kwargs={**of_base, **(processor or {})},
        config_kwargs={**of_base, **(arguments.pop("config_kwargs", None) or {})},
        templates=recipe.templates,
        joins_tokens=recipe.joins_tokens,
        ends_with_eos=recipe.ends_with_eos,
        pooled_tokens=recipe.pooled_tokens,
        is_bidirectional=recipe.attention == "bidirectional",
        **(pooler if recipe.pooling == "pooler" else {}),
    )
    if recipe.max_seq_length is not None:
        transformer.max_seq_length = min(recipe.max_seq_length, transformer.max_seq_length)
    for adapter in recipe.adapters:
        place = where[adapter]
        allowed = {key: value for key, value in hub.items() if key != "trust_remote_code"}
        merge_adapter(
            transformer.auto_model,
            place,
            **{key: value for key, value in allowed.items() if key != "revision" or place == name},
        )
    modules: list[torch.nn.Module] = [transformer]
    if recipe.pooling != "pooler":
        modules.append(Pooling(transformer.get_embedding_dimension(), recipe.pooling))
    if recipe.is_normalized:
        modules.append(Normalize())
    prompts = {**recipe.prompts, **(arguments.pop("prompts", None) or {})}
    default = arguments.pop("default_prompt_name", None) or ("document" if "document" in prompts else None)
    return SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name=default, **arguments)
