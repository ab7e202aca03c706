"""Opening stored embeddings by where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from st_keytokens.bulk.sources.embedding_source import EmbeddingSource
from st_keytokens.bulk.sources.files import IPC, PARQUET, ArrowSource, FaissSource, NpySource, SafetensorsSource
from st_keytokens.bulk.sources.stores import LanceDBSource, PgvectorSource, QdrantSource
from st_keytokens.checks import check_choice

SourceKind = Literal["npy", "safetensors", "arrow", "faiss", "qdrant", "pgvector", "lancedb"]
KINDS: tuple[SourceKind, ...] = get_args(SourceKind)
TABLES: tuple[SourceKind, ...] = ("qdrant", "pgvector", "lancedb")

_ENDINGS: dict[str, SourceKind] = {
    ".npy": "npy",
    ".safetensors": "safetensors",
    **dict.fromkeys((*PARQUET, *IPC), "arrow"),
    ".faiss": "faiss",
    ".index": "faiss",
}
_SCHEMES: dict[str, SourceKind] = {
    "http": "qdrant",
    "https": "qdrant",
    "postgres": "pgvector",
    "postgresql": "pgvector",
}


def open_source(
    location: str | Path,
    *,
    kind: SourceKind | None = None,
    table: str | None = None,
    id_column: str | None = None,
    vector_column: str | None = None,
    text_column: str | None = None,
) -> EmbeddingSource:
    """Opens stored embeddings.

    Args:
        location: A file, a directory, or the URL of a Qdrant server or a PostgreSQL database.
        kind: What it is. None: by the ending or scheme; of a directory, by what is in it.
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
    if kind is None:
        kind = kind_of(str(location))
    check_choice("kind", kind, KINDS)
    columns = {"id_column": id_column, "vector_column": vector_column, "text_column": text_column}
    given = {name: value for name, value in {"table": table, **columns}.items() if value is not None}
    allowed = set(columns) if kind in ("arrow", *TABLES) else {"vector_column"} if kind == "safetensors" else set()
    if wrong := [name for name in given if name not in allowed and not (name == "table" and kind in TABLES)]:
        raise ValueError(f"{wrong[0]} must not be given for a source of kind {kind}, got {given[wrong[0]]!r}.")
    given.pop("table", None)
    if kind in TABLES:
        if table is None:
            raise ValueError(f"table must be the name of one in {_hidden(str(location))}, got none.")
        if kind == "pgvector":
            return PgvectorSource(str(location), table, **given)
        if kind == "lancedb":
            return LanceDBSource(str(location), table, **given)
        return QdrantSource(
            str(location), table, vector_name=vector_column, id_field=id_column, text_field=text_column
        )
    path = Path(location)
    if not path.exists():
        raise FileNotFoundError(f"embeddings must be a file or directory that exists, got {str(path)!r}.")
    if kind == "arrow":
        return ArrowSource(path, **given)
    if kind == "safetensors":
        return SafetensorsSource(path, vector_column)
    return NpySource(path) if kind == "npy" else FaissSource(path)


def kind_of(location: str) -> SourceKind:
    """What is at a place, as far as its name, or what is in a directory, tells.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it cannot be told.

    >>> kind_of("postgresql://localhost/texts")
    'pgvector'
    """
    scheme, _, rest = location.partition("://")
    if rest and scheme in _SCHEMES:
        return _SCHEMES[scheme]
    path = Path(location)
    if not path.exists():
        raise FileNotFoundError(f"embeddings must be a file or directory that exists, got {_hidden(location)!r}.")
    found = _kind_of_folder(path) if path.is_dir() else _ENDINGS.get(path.suffix.lower())
    if found is None:
        raise ValueError(
            f"embeddings must be a file that ends in {', '.join(_ENDINGS)}, a directory of Parquet or Arrow files, "
            f"of Qdrant or of LanceDB, or a URL, got {location!r}. Name its kind: {', '.join(KINDS)}."
        )
    return found


def _kind_of_folder(folder: Path) -> SourceKind | None:
    if (folder / "meta.json").is_file() and (folder / "collection").is_dir():
        return "qdrant"
    endings = {path.suffix for path in folder.iterdir()}
    return "lancedb" if ".lance" in endings else "arrow" if endings & {*PARQUET, *IPC} else None


def _hidden(location: str) -> str:
    """A location without a password, for messages."""
    scheme, separator, rest = location.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else location
