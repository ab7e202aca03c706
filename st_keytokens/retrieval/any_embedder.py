"""What an application embeds with, as an encoder, and what is kept of it beside an index: all but the embedder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakSet

from st_keytokens.embedders import FunctionEmbedder, is_embedder
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.sidecar import FOLDER, Sidecar
from st_keytokens.shared.files import read_json, write_atomically

__all__ = [
    "ENCODER_FOLDER",
    "as_encoder",
    "calls_functions",
    "is_embedder_of",
    "is_kept",
    "keep_encoder",
    "mark_kept",
    "remember_vectors",
    "saved_encoder",
]

ENCODER_FOLDER = "encoder"  # beside an index
_EMBEDDER_FILE = "embedder.json"
_KEPT: WeakSet[KeyTokenEncoder] = WeakSet()


def as_encoder(embedder: Any, path: str | PathLike[str] | None = None, *, name: str = "encoder") -> KeyTokenEncoder:
    """The encoder of whatever an application embeds with.

    Args:
        embedder: A ``KeyTokenEncoder``, which is given back; embeddings of an adapter, which have one; or what the
            class takes, but for names and paths, which are easily something else: a SentenceTransformer, an
            ``Embeddings`` of LangChain, a ``BaseEmbedding`` of LlamaIndex, a function, a pair of functions.
        path: Directory of an index. What :func:`keep_encoder` has left there, calibration and settings, is taken,
            unless the encoder has a calibration already.
        name: What errors call the argument.

    Raises:
        TypeError: If it is nothing of that kind.
        ValueError: If it is None, or not the embedder that the index at ``path`` was made with.
    """
    folder = None if path is None else Path(path, ENCODER_FOLDER, FOLDER)
    if folder is not None and not (folder / "encoder.json").is_file():
        folder = None
    if embedder is None:
        if path is None:
            raise ValueError(f"{name} must be given, got None. Pass what embeds the texts.")
        made_with = "encoder" if folder is None else "embedder"
        raise ValueError(
            f"{name} must be given for {path}, which was saved without one, got None. Pass the {made_with} that it "
            f"was made with{_described(path, ', ')}."
        )
    given = embedder if isinstance(embedder, KeyTokenEncoder) else getattr(embedder, "encoder", None)
    if isinstance(given, KeyTokenEncoder):
        if folder is not None and given.needs_calibration:
            given.calibration = _saved(given, folder, path, name).calibration
            mark_kept(given)
        return given
    if isinstance(embedder, (str, PathLike)) or not is_embedder(embedder):
        raise TypeError(
            f"{name} must be a KeyTokenEncoder, got {type(embedder).__name__}. Make one with KeyTokenEncoder(model), "
            "or pass embeddings of LangChain or LlamaIndex, a SentenceTransformer, or a function from texts to "
            "vectors."
        )
    made = KeyTokenEncoder(embedder)
    if folder is not None and made.calibration is None:
        made = _saved(made, folder, path, name)
    mark_kept(made)
    return made


def _saved(encoder: KeyTokenEncoder, folder: Path, path: Any, name: str) -> KeyTokenEncoder:
    """The encoder of the folder, over the model of another one, if it is the same model."""
    calibration = Sidecar.load(folder).head.calibration
    if calibration is not None:
        dimension, got = calibration.moments.embedding_dimension, encoder.head.lm_head_dimension
        if dimension != got:
            raise ValueError(
                f"{name} must give vectors of dimension {dimension}, as the embedder that {path} was made with"
                f"{_described(path, ', ')}, got {got} from {_name(encoder)}. Pass that embedder, or make a new index."
            )
        if calibration.model_name != encoder.model_name:
            raise ValueError(
                f"{name} must be the embedder that {path} was made with{_described(path, ', ')}, got "
                f"{_name(encoder)}. Pass that one, or FunctionEmbedder(embed, name=...) where a function that embeds "
                "in the same way has another name now."
            )
    return KeyTokenEncoder.from_sidecar(encoder.model, folder)


def calls_functions(encoder: KeyTokenEncoder) -> bool:
    """Whether an encoder embeds by calling an application's functions, each call of which may be paid for."""
    return isinstance(encoder.forward_pass.before[0], FunctionEmbedder)


def is_embedder_of(embedder: Any, encoder: KeyTokenEncoder) -> bool:
    """Whether an application's embedder gives the vectors of an encoder: it has the encoder, or is called by it."""
    own = getattr(embedder, "encoder", None)
    if isinstance(own, KeyTokenEncoder):
        return own is encoder
    module = encoder.forward_pass.before[0]
    return isinstance(module, FunctionEmbedder) and module.is_of(embedder)


def remember_vectors(
    encoder: KeyTokenEncoder, texts: Sequence[str], vectors: Sequence[Sequence[float] | None]
) -> None:
    """Has an encoder that calls functions know vectors of documents which they gave before; None for none."""
    module = encoder.forward_pass.before[0]
    if isinstance(module, FunctionEmbedder):
        module.remember(texts, vectors)


def mark_kept(encoder: KeyTokenEncoder) -> None:
    """Has indexes keep an encoder that no application has, but for its model."""
    _KEPT.add(encoder)


def is_kept(encoder: KeyTokenEncoder) -> bool:
    """Whether indexes keep the encoder: one that was made or calibrated here, or that no folder can hold whole."""
    return not encoder.needs_calibration and (encoder in _KEPT or calls_functions(encoder))


def keep_encoder(encoder: KeyTokenEncoder, path: str | PathLike[str]) -> None:
    """Writes calibration and settings beside an index, unless they are there; the embedder is not written.

    Args:
        encoder: The encoder.
        path: Directory of the index.

    Raises:
        OSError: If they cannot be written.
    """
    folder = Path(path, ENCODER_FOLDER)
    try:
        if read_json(folder / FOLDER / "encoder.json").get("fingerprint") == encoder.fingerprint:
            return
    except (OSError, ValueError):
        pass
    encoder.save_sidecar(folder / FOLDER)
    described = {"name": _name(encoder), "dimension": encoder.get_embedding_dimension()}
    write_atomically(folder / _EMBEDDER_FILE, json.dumps(described, indent=2).encode())


def saved_encoder(path: str | PathLike[str], *, name: str = "encoder") -> KeyTokenEncoder:
    """The encoder that was written whole, with its model, beside an index.

    Raises:
        ValueError: If there is none.
    """
    folder = Path(path, ENCODER_FOLDER)
    if (folder / "modules.json").is_file():
        return KeyTokenEncoder.from_pretrained(folder)
    return as_encoder(None, path, name=name)


def _name(encoder: KeyTokenEncoder) -> str:
    module = encoder.forward_pass.before[0]
    if isinstance(module, FunctionEmbedder):
        return module.name
    return str(encoder.model.model_card_data.base_model or type(encoder.model).__name__)


def _described(path: Any, before: str = "") -> str:
    """What made an index, where that is known."""
    try:
        found = read_json(Path(path, ENCODER_FOLDER, _EMBEDDER_FILE))
        return f"{before}{found['name']} of dimension {found['dimension']}"
    except (OSError, ValueError, KeyError):
        return ""
