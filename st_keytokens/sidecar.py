"""The ``key_tokens`` folder beside a saved model: everything that the plain model does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import load_dir_path

from st_keytokens.calibration import Calibration
from st_keytokens.fingerprint import weights_hash
from st_keytokens.lm_head import LMHead
from st_keytokens.weighting import Weighting

if TYPE_CHECKING:
    from st_keytokens.encoder import KeyTokenEncoder

FOLDER = "key_tokens"
FORMAT = 1


def save(encoder: KeyTokenEncoder, path: Path) -> None:
    """Saves model and sidecar, see ``KeyTokenEncoder.save_pretrained``."""
    encoder.model.save_pretrained(str(path))
    folder = path / FOLDER
    encoder.head.save(str(folder))
    settings = {
        "format": FORMAT,
        "query": encoder.query,
        "weighting": vars(encoder.weighting),
        "vocabulary_hash": encoder.vocabulary.hash,
        "model_hash": weights_hash(encoder.model),
    }
    (folder / "encoder.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load(cls: type[KeyTokenEncoder], path: str, **arguments: Any) -> KeyTokenEncoder:
    """Loads model and sidecar, see ``KeyTokenEncoder.from_pretrained``."""
    model_arguments = arguments.pop("model_arguments", {})
    model = SentenceTransformer(path, **model_arguments)
    hub = {k: v for k, v in model_arguments.items() if k in ("token", "cache_folder", "revision", "local_files_only")}
    found = load_dir_path(path, FOLDER, **hub)
    folder = Path(found) if found is not None else None
    if folder is None or not (folder / "encoder.json").exists():
        return cls(model, **arguments)
    settings = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    if settings["format"] != FORMAT:
        raise ValueError(
            f"{folder} must be of format {FORMAT}, got {settings['format']}. Install the st-keytokens that wrote it."
        )
    head = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    saved: dict[str, Any] = {"query": settings["query"], "weighting": Weighting(**settings["weighting"]), **head}
    if (folder / "calibration.json").exists():
        saved["calibration"] = Calibration.load(folder)
    if (folder / "lm_head.json").exists():
        saved["lm_head"] = LMHead.load(folder)
    encoder = cls(model, **{**saved, **arguments})
    for name, expected, actual in (
        ("vocabulary", settings["vocabulary_hash"], encoder.vocabulary.hash),
        ("model weights", settings["model_hash"], weights_hash(model)),
    ):
        if expected != actual:
            raise ValueError(
                f"{folder} must belong to this model, got other {name}: {expected[:12]} saved, {actual[:12]} loaded. "
                "Fit and save the key tokens of this model again."
            )
    return encoder
