"""The encoder of a command: of a model by directory or name, or the one that an index was made with.

An index directory of the command line holds, beside the index, the folder ``encoder``: in ``key_tokens`` all that the
plain model does not know (settings, calibration, an untied LM head), and in ``model.json`` where the model is. Until
the index is built, it holds as well ``unfinished.json``, which says what is building it, and ``vectors``, into which
the documents of an index that calibrates are embedded. The model itself is not copied, since it may weigh gigabytes;
the index's fingerprint refuses another one.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import RepositoryNotFoundError, disable_progress_bars

from st_keytokens.cli.console import Console, UserError, is_out_of_memory, one_line
from st_keytokens.cli.options import model_path
from st_keytokens.embedders.loading import load_model
from st_keytokens.encoder import sidecar
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.index import HybridIndex
from st_keytokens.shared.files import write_atomically
from st_keytokens.shared.hashes import is_same_sample, weights_sample
from st_keytokens.terms.weighting import check_method

_HUB_TIMEOUT = 5.0  # seconds in which the Hub must answer; else only what it has sent before is used
_LIBRARIES = ("transformers", "sentence_transformers", "huggingface_hub", "st_keytokens.evaluation")


@contextmanager
def quiet_libraries(has_progress: bool) -> Iterator[None]:
    """Keeps warnings and progress bars of the libraries below from stderr; downloads show theirs on a terminal."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    if not has_progress:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_encoder(arguments: Namespace) -> KeyTokenEncoder:
    """The encoder of a command with the options of a model, and its sidecar, if it has one."""
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in ("backbone", "recipe", "terms", "language")}
    if arguments.method is not None:
        check_method(arguments.method)
        settings["method"] = arguments.method
    path = model_path(arguments.model)
    options = _model_options(path, arguments, arguments.model_dtype)
    with clear_errors(arguments.model, options):
        encoder = KeyTokenEncoder.from_pretrained(path, model_arguments=options, cache_size=0, **settings)
    if options.get("local_files_only") and not constants.HF_HUB_OFFLINE:  # offline is what the user wanted
        logging.getLogger(__name__).warning("The Hub does not answer; %s is used as its cache here holds it.", path)
    return encoder


def load_index_encoder(arguments: Namespace, console: Console) -> KeyTokenEncoder:
    """The encoder that the index of a command was made with; what is wrong with the index is said before."""
    with HybridIndex(arguments.index, read_only=True) as opened:
        count = len(opened)
    stored = StoredEncoder(Path(arguments.index))
    begun = stored.begun
    if begun is None and not count and (stored.vectors.exists() or not (stored.exists or arguments.model)):
        begun = {"command": f"st-keytokens index MODEL INPUT {shlex.quote(arguments.index)}", "documents": None}
    if begun is not None and not (stored.exists and count):
        raise UserError(
            f"INDEX_DIR must be a finished index, got {arguments.index!r}, which holds no document yet: its indexing "
            f"is going on or was interrupted. To go on, run again: {begun['command']}"
        )
    if begun is not None:
        console.message(
            f"{one_line(arguments.index)} is not finished: its indexing of {begun['documents']:,} documents is going "
            f"on or was interrupted, and it holds {count:,}. To go on, run again: {one_line(begun['command'])}"
        )
    if stored.exists:
        return stored.load(arguments)
    if arguments.model is None:
        raise UserError(f"{arguments.index} does not tell its model. Say which it is with --model.")
    return load_encoder(arguments)


class StoredEncoder:
    """The folder ``encoder`` of an index directory."""

    def __init__(self, index: Path) -> None:
        self.folder = index / "encoder"
        self.sidecar = self.folder / sidecar.FOLDER
        self.vectors = self.folder / "vectors"
        self._begun = self.folder / "unfinished.json"

    @property
    def exists(self) -> bool:
        """Whether it has been saved."""
        return (self.folder / "model.json").is_file()

    @property
    def begun(self) -> dict[str, Any] | None:
        """The command that is indexing, or was interrupted, and the number of its documents; None: it has finished."""
        return _fields(self._begun, ["command", "documents"]) if self._begun.is_file() else None

    def begin(self, arguments: Namespace, count: int) -> None:
        """Notes that the documents of a command are being indexed."""
        self.folder.mkdir(exist_ok=True)
        command = shlex.join(["st-keytokens", *arguments.words])
        write_atomically(self._begun, (json.dumps({"command": command, "documents": count}, indent=2) + "\n").encode())

    def finish(self) -> None:
        """Notes that they are there."""
        shutil.rmtree(self.vectors, ignore_errors=True)
        self._begun.unlink(missing_ok=True)

    @property
    def origin(self) -> dict[str, Any]:
        """Where the model is, and the options that it was loaded with."""
        later = dict.fromkeys(("recipe", "terms", "language", "model_dtype"))  # not in folders of earlier versions
        return {**later, **_fields(self.folder / "model.json", ["model", "backbone", "method", "calibrate"])}

    def save(self, encoder: KeyTokenEncoder, arguments: Namespace) -> None:
        """Saves all but the model; whole or, if the process dies, not at all."""
        encoder.save_sidecar(self.sidecar)
        temporary = self.folder / "model.json.tmp"
        temporary.write_text(json.dumps(_origin_of(arguments), indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.folder / "model.json")

    def check_same_options(self, arguments: Namespace) -> None:
        """Refuses options of ``index`` that differ from those of the first run."""
        saved, given = self.origin, _origin_of(arguments)
        for name in ("backbone", "model_dtype", "recipe", "terms", "language", "method", "calibrate"):
            if saved[name] != given[name]:
                before, now = ("none" if value is None else value for value in (saved[name], given[name]))
                option = "--" + name.replace("_", "-")
                raise UserError(
                    f"{option} must be as it was when {self.folder.parent} was begun, {before}, got {now}. "
                    "Leave the options as they were, or make a new index."
                )

    def load(self, arguments: Namespace) -> KeyTokenEncoder:
        """The encoder, with the model from where it was or from ``arguments.model``."""
        name = arguments.model or self.origin["model"]
        try:
            path = model_path(name)
            options = _model_options(path, arguments, self.origin["model_dtype"])
            with clear_errors(name, options):
                model = load_model(
                    path, recipe=self.origin["recipe"], backbone=self.origin["backbone"], model_arguments=options
                )
        except UserError as err:
            if arguments.model:
                raise
            raise UserError(f"{err} If the model has moved, say where it is with --model.") from err
        saved = _fields(self.sidecar / "encoder.json", ["weights_sample"])["weights_sample"]
        if not is_same_sample(saved, weights_sample(model)):
            raise UserError(
                f"model must be the one that {self.folder.parent} was made with, got {name!r} with other weights."
            )
        with clear_errors(name, options):
            return KeyTokenEncoder.from_sidecar(model, self.sidecar, cache_size=0)


def _fields(path: Path, names: list[str]) -> dict[str, Any]:
    """Some fields of a JSON file of an index directory."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content, **{name: content[name] for name in names}}
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise UserError(f"{path} must be as the command index wrote it, got another file. Restore it.") from err


def _origin_of(arguments: Namespace) -> dict[str, Any]:
    """Where a command's model is, and its options, as an index remembers them."""
    backbone = arguments.backbone
    if backbone is not None and Path(backbone).is_dir():
        backbone = str(Path(backbone).resolve())
    options = {
        name: getattr(arguments, name)
        for name in ("recipe", "terms", "language", "model_dtype", "method", "calibrate")
    }
    return {"model": model_path(arguments.model), "backbone": backbone, **options}


def _model_options(path: str, arguments: Namespace, dtype: str | None) -> dict[str, Any]:
    """Arguments of ``SentenceTransformer``. A Hub that does not answer at once is not asked again."""
    options: dict[str, Any] = {"trust_remote_code": arguments.trust_remote_code, "model_kwargs": {}}
    if dtype is not None:
        options["model_kwargs"]["dtype"] = dtype
    if arguments.device is not None:
        options["device"] = arguments.device
    if not Path(path).is_dir():
        try:
            HfApi().model_info(path, timeout=_HUB_TIMEOUT)
        except RepositoryNotFoundError:  # it answers; loading will say what it lacks
            pass
        except Exception:  # httpx, requests and huggingface_hub itself each have their own
            options["local_files_only"] = True
            # transformers looks for an adapter without that setting where peft is installed
            options["model_kwargs"]["adapter_kwargs"] = {"local_files_only": True}
    return options


@contextmanager
def clear_errors(name: str, options: dict[str, Any]) -> Iterator[None]:
    """Makes one kind of error of all that libraries raise while a model is loaded."""
    try:
        yield
    except Exception as err:
        if is_out_of_memory(err):
            raise
        if options.get("local_files_only") and isinstance(err, OSError):
            raise UserError(
                f"model must be a directory that exists or a name on the Hub, got {name!r}. "
                "The Hub does not answer, and its cache here holds no such model."
            ) from err
        raise UserError(f"model {name!r} could not be loaded: {err}") from err
