"""The ``key_tokens`` folder beside a saved model: everything that the plain model does not know."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import load_dir_path

from st_keytokens.atomic_files import write_atomically
from st_keytokens.fingerprint import is_same_sample, weights_sample
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.weighting import METHODS, Weighting, check_method

if TYPE_CHECKING:
    from st_keytokens.encoder import KeyTokenEncoder

logger = logging.getLogger(__name__)

FOLDER = "key_tokens"
FORMAT = 1


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
        "weights_sample": weights_sample(encoder.model),
    }
    write_atomically(folder / "encoder.json", json.dumps(settings, indent=2).encode())


def load(cls: type[KeyTokenEncoder], path: str, **arguments: Any) -> KeyTokenEncoder:
    """Loads model and sidecar, see ``KeyTokenEncoder.from_pretrained``."""
    model_arguments = arguments.pop("model_arguments", {})
    model = SentenceTransformer(path, **model_arguments)
    hub = {k: v for k, v in model_arguments.items() if k in ("token", "cache_folder", "revision", "local_files_only")}
    folder = _find_folder(path, hub)
    return cls(model, **arguments) if folder is None else attach(cls, model, folder, **arguments)


def attach(cls: type[KeyTokenEncoder], model: SentenceTransformer, folder: Path, **arguments: Any) -> KeyTokenEncoder:
    """An encoder of a loaded model and a sidecar.

    Args:
        cls: Class of the encoder.
        model: The model that the sidecar was saved with.
        folder: What :func:`save_folder` wrote.
        **arguments: Of the class, over those that were saved; a ``method`` replaces all settings of the saved one.

    Raises:
        ValueError: If the sidecar is damaged, or belongs to other weights or another vocabulary.
    """
    try:
        settings = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise ValueError(f"its format is {settings['format']}, not {FORMAT}")
        head = KeyTokenHead.load(str(folder))
        saved = {"query": settings["query"], "weighting": Weighting(**settings["weighting"]), **head.get_config_dict()}
        expected = [settings[n] for n in ("fingerprint", "vocabulary_hash", "weights_hash", "weights_sample")]
    except (KeyError, TypeError, ValueError, OSError) as err:
        raise ValueError(f"{folder} must hold what save_pretrained wrote, got a damaged one: {err}.") from err
    if "method" in arguments:
        check_method(arguments["method"])
        method = METHODS[arguments["method"]]
        saved |= {"weighting": method.weighting, **KeyTokenHead().get_config_dict(), **method.head}
    encoder = cls(
        model, **{"lm_head": head.lm_head, **saved, **{k: v for k, v in arguments.items() if k != "calibration"}}
    )
    is_changed = bool(arguments.keys() - {"cache_size"})
    fingerprint, vocabulary_hash, weights_hash, sample = expected
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
    if "calibration" in arguments:
        encoder.calibration = arguments["calibration"]
    elif head.calibration is not None:
        encoder.calibration = head.calibration
        encoder.head.take_statistics(head)
    if not is_changed and encoder.fingerprint != fingerprint:
        raise ValueError(
            f"{folder} must give the encoder that was saved, {fingerprint[:12]}, got {encoder.fingerprint[:12]}. "
            "A file in it was changed, or the model's tokenizer or modules were; save the encoder again."
        )
    return encoder


def _find_folder(path: str, hub: dict[str, Any]) -> Path | None:
    """The sidecar of a directory or of a model on the Hub, or None."""
    if Path(path).is_dir():
        folder = Path(path, FOLDER)
        return folder if (folder / "encoder.json").exists() else None
    options = {"cache_dir" if name == "cache_folder" else name: value for name, value in hub.items()}
    try:
        hf_hub_download(path, f"{FOLDER}/encoder.json", **options)
    except LocalEntryNotFoundError:
        logger.warning("The Hub could not be asked whether %s has key tokens saved; it is used without.", path)
        return None
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None
    return Path(load_dir_path(path, FOLDER, **hub))
