"""The ``key_tokens`` folder beside a saved model: everything that the plain model does not know."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import load_dir_path

from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.embedders import open_embedder
from st_keytokens.files import write_atomically
from st_keytokens.hashes import is_same_sample, weights_sample
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.terms.weighting import METHODS, Weighting, check_method

if TYPE_CHECKING:
    from st_keytokens.encoder.encoder import KeyTokenEncoder


logger = logging.getLogger(__name__)

FOLDER = "key_tokens"
FORMAT = 1
_HUB_ARGUMENTS = ("token", "cache_folder", "revision", "local_files_only")


def save(encoder: KeyTokenEncoder, path: Path) -> None:
    """Saves model and sidecar, see ``KeyTokenEncoder.save_pretrained``. A head among the modules is left out."""
    forward_pass = encoder.forward_pass
    is_plain = encoder.head not in list(encoder.model)
    model = encoder.model if is_plain else forward_pass.chain([*forward_pass.before, *forward_pass.after])
    model.save_pretrained(str(path))
    save_folder(encoder, path / FOLDER)


def save_folder(encoder: KeyTokenEncoder, folder: Path) -> None:
    """Saves the sidecar alone: everything but the model."""
    encoder.head.save(str(folder))
    settings = {
        "format": FORMAT,
        "query": encoder.query,
        "weighting": vars(encoder.weighting),
        "fingerprint": encoder.fingerprint,
        "vocabulary_hash": encoder.vocabulary.hash,
        "weights_hash": encoder.weights_hash,
        "weights_sample": weights_sample(encoder.forward_pass.headless),
    }
    write_atomically(folder / "encoder.json", json.dumps(settings, indent=2).encode())


def load(
    cls: type[KeyTokenEncoder],
    path: str,
    model_arguments: dict[str, Any],
    changes: dict[str, Any],
    *,
    cache_size: int,
) -> KeyTokenEncoder:
    """Loads model and sidecar, see ``KeyTokenEncoder.from_pretrained``."""
    model, lm_head = open_embedder(path, backbone=changes.get("backbone"), model_arguments=model_arguments)
    changes = changes if lm_head is None else {**changes, "backbone": lm_head}
    hub = {name: model_arguments[name] for name in _HUB_ARGUMENTS if name in model_arguments}
    folder = find_folder(path, {"cache_folder": os.getenv("SENTENCE_TRANSFORMERS_HOME"), **hub})
    if folder is None:
        return cls(model, cache_size=cache_size, **changes)
    return attach(cls, model, folder, changes, cache_size=cache_size)


def attach(
    cls: type[KeyTokenEncoder],
    model: SentenceTransformer,
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    cache_size: int = 1024,
) -> KeyTokenEncoder:
    """An encoder of a loaded model and a sidecar.

    Args:
        cls: Class of the encoder.
        model: The model that the sidecar was saved with.
        folder: What :func:`save_folder` wrote.
        changes: Arguments of the class but ``head``, over those that were saved; a ``method`` replaces all settings
            of the saved one.
        cache_size: See the class.

    Returns:
        The encoder.

    Raises:
        ValueError: If the sidecar is damaged, or belongs to other weights or another vocabulary.
    """
    changes = dict(changes or {})
    is_changed = bool(changes)
    try:
        settings = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise ValueError(f"its format is {settings['format']}, not {FORMAT}")
        saved = KeyTokenHead.load(str(folder))
        arguments = {"query": settings["query"], "weighting": Weighting(**settings["weighting"])}
        fingerprint, vocabulary_hash, weights_hash, sample = (
            settings[name] for name in ("fingerprint", "vocabulary_hash", "weights_hash", "weights_sample")
        )
    except (KeyError, TypeError, ValueError, OSError) as err:
        raise ValueError(f"{folder} must hold what save_pretrained wrote, got a damaged one: {err}.") from err
    config: dict[str, Any] = saved.get_config_dict()
    if "method" in changes:
        check_method(changes["method"])
        method = METHODS[changes.pop("method")]
        arguments["weighting"], config = method.weighting, dict(method.head)
    config |= {name: changes.pop(name) for name in ("max_active_dims", "query_max_active_dims") if name in changes}
    backbone, calibration = changes.pop("backbone", None), changes.pop("calibration", None)
    lm_head = saved.lm_head if backbone is None else backbone
    if lm_head is not None and not isinstance(lm_head, LMHead):
        lm_head = LMHead.from_checkpoint(str(lm_head))
    encoder = cls(model, head=KeyTokenHead(lm_head, **config), cache_size=cache_size, **{**arguments, **changes})
    for name, is_same in (
        ("vocabulary", vocabulary_hash == encoder.vocabulary.hash or is_changed),
        ("model weights", is_same_sample(sample, weights_sample(model))),
    ):
        if not is_same:
            raise ValueError(
                f"{folder} must belong to this model, got one with other {name}. "
                "Fit and save the key tokens of this model again."
            )
    encoder.keep_weights_hash(weights_hash)
    if calibration is not None:
        encoder.calibration = calibration
    elif saved.calibration is not None:
        encoder.calibration = saved.calibration
        encoder.head.take_statistics(saved)
    if not is_changed and encoder.fingerprint != fingerprint:
        raise ValueError(
            f"{folder} must give the encoder that was saved, {fingerprint[:12]}, got {encoder.fingerprint[:12]}. "
            "A file in it was changed, or the model's tokenizer or modules were; save the encoder again."
        )
    return encoder


def find_folder(path: str, hub: dict[str, Any]) -> Path | None:
    """The sidecar of a directory or of a model on the Hub, or None."""
    if Path(path).is_dir():
        folder = Path(path, FOLDER)
        return folder if (folder / "encoder.json").exists() else None
    options = {"cache_dir" if name == "cache_folder" else name: value for name, value in hub.items()}
    file = f"{FOLDER}/encoder.json"
    known = try_to_load_from_cache(path, file, options.get("cache_dir"), options.get("revision"))
    if known is _CACHED_NO_EXIST:  # of the commit that the model has just been loaded from
        return None
    try:
        hf_hub_download(path, file, **options)
    except LocalEntryNotFoundError:
        is_offline = constants.HF_HUB_OFFLINE or hub.get("local_files_only")
        level = logging.INFO if is_offline else logging.WARNING
        logger.log(level, "The Hub could not be asked whether %s has key tokens saved; it is used without.", path)
        return None
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None
    return Path(load_dir_path(path, FOLDER, **hub))
