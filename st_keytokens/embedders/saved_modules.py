"""Models from a directory or the Hub, those with a TemplateTransformer among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import import_from_string, load_file_path

from st_keytokens.embedders.template_transformer import TemplateTransformer

_OURS = f"{TemplateTransformer.__module__}.{TemplateTransformer.__qualname__}"
_THEIRS = "sentence_transformers."
_PLACE = ("token", "cache_folder", "revision", "local_files_only")
_OF_MODULES = ("trust_remote_code", "model_kwargs", "processor_kwargs", "config_kwargs")


def load_saved(name_or_path: str, **arguments: Any) -> SentenceTransformer:
    """Loads a model as ``SentenceTransformer`` does, and one with a ``TemplateTransformer`` without remote code.

    sentence-transformers takes every class that is not its own for code from the repository, and asks for
    ``trust_remote_code``. This one is installed: it, and sentence-transformers' own, are loaded here by name.

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
    if _OURS not in types or not all(kind == _OURS or kind.startswith(_THEIRS) for kind in types):
        return SentenceTransformer(name_or_path, **arguments)
    if "tokenizer_kwargs" in arguments:
        arguments["processor_kwargs"] = arguments.pop("tokenizer_kwargs")
    given = {key: arguments.pop(key) for key in (*_PLACE, *_OF_MODULES) if key in arguments}
    modules = [
        (TemplateTransformer if kind == _OURS else import_from_string(kind)).load(
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
