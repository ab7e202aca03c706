"""Stored embeddings, read in batches from wherever they are: opened by the kinds that are known, or are added."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from inspect import signature
from pathlib import Path

from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch, EmbeddingSource
from st_keytokens.bulk.sources.files import IPC, PARQUET, ArrowSource, FaissSource, NpySource, SafetensorsSource
from st_keytokens.bulk.sources.stores import LanceDBSource, PgvectorSource, QdrantSource
from st_keytokens.shared.checks import check_choice

__all__ = ["EmbeddingBatch", "EmbeddingSource", "kind_of", "open_source", "register_source"]

_GROUP = "st_keytokens.sources"  # of entry points

_OPENERS: dict[str, Callable[..., EmbeddingSource]] = {
    "npy": NpySource,
    "safetensors": SafetensorsSource,
    "arrow": ArrowSource,
    "faiss": FaissSource,
    "qdrant": QdrantSource,
    "pgvector": PgvectorSource,
    "lancedb": LanceDBSource,
}
_SCHEMES = {"http": "qdrant", "https": "qdrant", "postgres": "pgvector", "postgresql": "pgvector"}
_ENDINGS = {
    ".npy": "npy",
    ".safetensors": "safetensors",
    **dict.fromkeys((*PARQUET, *IPC), "arrow"),
    ".faiss": "faiss",
    ".index": "faiss",
}


def open_source(
    location: str | Path,
    *,
    kind: str | None = None,
    table: str | None = None,
    id_column: str | None = None,
    vector_column: str | None = None,
    text_column: str | None = None,
) -> EmbeddingSource:
    """Opens stored embeddings.

    Args:
        location: A file, a directory, or the URL of a Qdrant server or a PostgreSQL database; or what a kind of
            :func:`register_source` takes.
        kind: What it is: ``npy``, ``safetensors``, ``arrow`` (Parquet too), ``faiss``, ``qdrant``, ``pgvector``,
            ``lancedb``, or one of :func:`register_source`. None: by the ending or scheme; of a directory, by what is
            in it.
        table: Name of a table or collection; only those of Qdrant, pgvector and LanceDB have one.
        id_column: Column, or field of a payload, of the ids. None: ``id``; of Qdrant, the points' ids.
        vector_column: Column, tensor or named vector. None: ``embedding``, of LanceDB ``vector``; of safetensors and
            Qdrant, the only one.
        text_column: Column, or field of a payload, of the texts. None: no texts.

    Returns:
        The source.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If a package that it needs is not installed.
        ValueError: If the kind is not known, an argument is not for that kind, or the source cannot be read.
    """
    place = str(location)
    kind = kind_of(place) if kind is None else kind
    _find(kind)
    check_choice("kind", kind, _OPENERS)
    if kind in _ENDINGS.values():
        _check_exists(place)
    opener = _OPENERS[kind]
    columns = {"id_column": id_column, "vector_column": vector_column, "text_column": text_column}
    given = {name: value for name, value in {"table": table, **columns}.items() if value is not None}
    parameters = signature(opener).parameters
    if wrong := [name for name in given if name not in parameters]:
        raise ValueError(f"{wrong[0]} must not be given for a source of kind {kind}, got {given[wrong[0]]!r}.")
    if table is None and "table" in parameters and parameters["table"].default is parameters["table"].empty:
        raise ValueError(f"table must be the name of one in {_hidden(place)}, got none.")
    return opener(place, **given)


def register_source(kind: str, opener: Callable[..., EmbeddingSource]) -> None:
    """Adds a kind of source, which :func:`open_source` opens by ``kind``, and by URLs whose scheme it is.

    A package adds one without being imported, for the command line too, by an entry point of the group
    ``st_keytokens.sources`` whose name is the kind.

    Args:
        kind: Its name, as ``"parts"`` for ``parts://...``.
        opener: A class, or a function, that gives an :class:`EmbeddingSource`. It takes the location as a string and,
            of the keyword arguments ``table``, ``id_column``, ``vector_column`` and ``text_column``, those that it
            names; others are refused, and one that is not given is left to its default.

    Raises:
        ValueError: If there is another source of that kind, or the scheme is that of another kind.
    """
    if _OPENERS.get(kind, opener) is not opener or _SCHEMES.get(kind, kind) != kind:
        raise ValueError(f"kind must be a new one, got {kind!r}, which there is. Choose another name.")
    _OPENERS[kind] = opener
    _SCHEMES[kind] = kind


def kind_of(location: str) -> str:
    """What is at a place, as far as its name, or what is in a directory, tells.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it cannot be told.

    >>> kind_of("postgresql://localhost/texts")
    'pgvector'
    """
    scheme, _, rest = location.partition("://")
    if rest and scheme not in _SCHEMES:
        _find(scheme)
    if rest and scheme in _SCHEMES:
        return _SCHEMES[scheme]
    path = _check_exists(location)
    found = _kind_of_folder(path) if path.is_dir() else _ENDINGS.get(path.suffix.lower())
    if found is None:
        raise ValueError(
            f"embeddings must be a file that ends in {', '.join(_ENDINGS)}, a directory of Parquet or Arrow files, "
            f"of Qdrant or of LanceDB, or a URL, got {location!r}. Name its kind: {', '.join(_OPENERS)}."
        )
    return found


def _find(kind: str) -> None:
    """Registers the kind, if it is not known yet and an installed package adds it."""
    if kind not in _OPENERS:
        for point in entry_points(group=_GROUP, name=kind):
            register_source(kind, point.load())


def _kind_of_folder(folder: Path) -> str | None:
    if (folder / "meta.json").is_file() and (folder / "collection").is_dir():
        return "qdrant"
    endings = {path.suffix for path in folder.iterdir()}
    return "lancedb" if ".lance" in endings else "arrow" if endings & {*PARQUET, *IPC} else None


def _check_exists(location: str) -> Path:
    path = Path(location)
    if not path.exists():
        raise FileNotFoundError(f"embeddings must be a file or directory that exists, got {_hidden(location)!r}.")
    return path


def _hidden(location: str) -> str:
    """A location without a password, for messages."""
    scheme, separator, rest = location.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else location
