"""The ``key_tokens`` folder beside a saved model: everything that the plain model does not know."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from sentence_transformers.util import load_dir_path

from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.shared.files import json_checksum, read_json, write_atomically
from st_keytokens.terms.weighting import METHODS, Weighting, check_method
from st_keytokens.terms.words import Words

logger = logging.getLogger(__name__)

FOLDER = "key_tokens"
FORMAT = 1
_HUB_ARGUMENTS = ("token", "cache_folder", "revision", "local_files_only")


@dataclass(frozen=True)
class Sidecar:
    """What the folder holds beside the head.

    Attributes:
        folder: Where it is.
        head: The head, not bound, with its calibration and, unless it is the model's own, its LM head.
        query: How queries are encoded.
        weighting: Type and fields of the weighting.
        fingerprint: Of the encoder that was saved.
        vocabulary_hash: Of its vocabulary.
        weights_hash: Of the model's weights.
        weights_sample: A few of them.
        terms: What a term is.
        language: Of the words' stemmer.
        stop_words: Words that are no terms.
    """

    folder: Path
    head: KeyTokenHead
    query: str
    weighting: Mapping[str, Any]
    fingerprint: str
    vocabulary_hash: str
    weights_hash: str
    weights_sample: list[float]
    terms: str = "tokens"
    language: str | None = None
    stop_words: Sequence[str] = ()

    def save(self) -> None:
        """Writes the folder; what an earlier save left there is replaced."""
        self.head.save(str(self.folder))
        kept = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("folder", "head")
        }
        settings = {"format": FORMAT, **kept}
        content = json.dumps({**settings, "checksum": json_checksum(settings)}, indent=2)
        write_atomically(self.folder / "encoder.json", content.encode())

    @classmethod
    def load(cls, folder: Path) -> Sidecar:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: If it is damaged, or of another format.
        """
        try:
            settings = read_json(folder / "encoder.json")
            if type(settings["format"]) is not int or settings["format"] != FORMAT:
                raise ValueError(f"its format is {settings['format']!r:.60}, not {FORMAT}")
            wanted = json_checksum(settings)
            if settings.get("checksum", wanted) != wanted:  # earlier versions wrote none
                raise ValueError("its encoder.json was altered")
            for name, kind in _TYPES.items():
                if not isinstance(settings[name], kind):
                    raise ValueError(f"its {name} is {settings[name]!r:.60}")
            if not all(isinstance(value, float) for value in settings["weights_sample"]):
                raise ValueError("its weights_sample is not of numbers")
            kept = {name: settings[name] for name in _SETTINGS if name in settings or name not in _OPTIONAL}
            saved = cls(folder, KeyTokenHead.load(str(folder)), **kept)
            if "type" not in saved.weighting:
                Weighting(**saved.weighting)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError, OSError) as err:
            raise ValueError(f"{folder} must hold what save_pretrained wrote, got a damaged one: {err}.") from err
        return saved

    def arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of ``KeyTokenEncoder`` that give what was saved, with some changed.

        Args:
            changes: Arguments of the class but ``head``; a ``method`` replaces all settings of the saved one.

        Raises:
            ValueError: If the weighting is of a class of the user's own, and none is given.
        """
        changes = dict(changes)
        config: dict[str, Any] = self.head.get_config_dict()
        if "method" in changes:
            check_method(changes["method"])
            method = METHODS[changes.pop("method")]
            config = dict(method.head)
            changes.setdefault("weighting", method.weighting)
        config |= {name: changes.pop(name) for name in ("max_active_dims", "query_max_active_dims") if name in changes}
        lm_head = changes.pop("backbone", None) or self.head.lm_head
        if "weighting" not in changes:
            if "type" in self.weighting:
                raise ValueError(
                    f"weighting must be given for {self.folder}, which was saved with one of your own class "
                    f"{self.weighting['type']!r}. Pass weighting={self.weighting['type']}(...)."
                )
            changes["weighting"] = Weighting(**self.weighting)
        if "terms" not in changes and "language" not in changes:
            is_words = self.terms == "words"
            changes["terms"] = Words(self.language, stop_words=self.stop_words) if is_words else "tokens"
        return {"query": self.query, "head": KeyTokenHead(lm_head, **config), **changes}


_OPTIONAL = ("terms", "language", "stop_words")  # not in folders of the first format
_TYPES = {
    "query": str,
    "weighting": dict,
    "fingerprint": str,
    "vocabulary_hash": str,
    "weights_hash": str,
    "weights_sample": list,
}
_SETTINGS = [field.name for field in fields(Sidecar) if field.name not in ("folder", "head")]


def weighting_fields(weighting: Weighting) -> dict[str, Any]:
    """Fields of a weighting for the folder; with the name of its class where that is the user's own."""
    if type(weighting) is Weighting:
        return vars(weighting)
    return {"type": type(weighting).__qualname__, "fields": repr(weighting)}


def stands_alone(path: str) -> bool:
    """Whether a directory has the folder and no model."""
    return Path(path, FOLDER, "encoder.json").is_file() and not Path(path, "modules.json").exists()


def find_folder(path: str, model_arguments: Mapping[str, Any]) -> Path | None:
    """The sidecar of a directory or of a model on the Hub, or None."""
    hub: dict[str, Any] = {"cache_folder": os.getenv("SENTENCE_TRANSFORMERS_HOME")}
    hub |= {name: model_arguments[name] for name in _HUB_ARGUMENTS if name in model_arguments}
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
