"""The manifest of a directory of shards: what is in it, whose vectors they are, and how each file is checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from st_keytokens.atomic_files import write_atomically

FORMAT = "st-keytokens sparse embeddings"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_BLOCK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class Shard:
    """One Parquet file.

    Attributes:
        name: Its path in the directory, with ``/``.
        rows: Rows in it.
        terms: Weights in it.
        bytes: Its size.
        sha256: Of its content, 64 hexadecimal digits.
    """

    name: str
    rows: int
    terms: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards holds.

    Attributes:
        vocab_size: Columns of the sparse vectors.
        fingerprint: Of the encoder that made them.
        shards: The files, in the order of the rows.
        is_complete: Whether all rows of the source are in.
        source: What the rows were made of, as the writer was told.
        position: Where the source is to be read on from, while it is not complete.
    """

    vocab_size: int
    fingerprint: str
    shards: tuple[Shard, ...] = ()
    is_complete: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    position: Any = None

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def terms(self) -> int:
        """Weights of all shards."""
        return sum(shard.terms for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


def read_manifest(path: str | PathLike[str]) -> Manifest:
    """Reads ``manifest.json`` of a directory of shards; the shards themselves are not looked at.

    Args:
        path: The directory.

    Returns:
        The manifest, also of a directory that is not complete.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is malformed, or of another format version.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{path} must be a directory of sparse embeddings with {MANIFEST}, got none.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found, version = content["format"], content["format_version"]
    except (ValueError, KeyError, TypeError) as err:
        raise _malformed(file) from err
    if found != FORMAT or version != FORMAT_VERSION:
        raise ValueError(
            f"{file} must be of format {FORMAT!r} in version {FORMAT_VERSION}, got {found!r} in version {version!r}. "
            "Convert again, or use the version of st-keytokens that wrote it."
        )
    try:
        shards = tuple(Shard(**shard) for shard in content["shards"])
        names = ("vocab_size", "fingerprint", "is_complete", "source", "position")
        manifest = Manifest(shards=shards, **{name: content[name] for name in names})
        sums = {name: content[name] == getattr(manifest, name) for name in ("rows", "terms", "bytes")}
        is_inside = [_is_inside(shard.name) for shard in shards]
    except (KeyError, TypeError) as err:
        raise _malformed(file) from err
    if not all((*sums.values(), *is_inside)):
        raise _malformed(file)
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replaces the manifest of a directory, atomically."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **{name: getattr(manifest, name) for name in ("rows", "terms", "bytes")},
        **asdict(manifest),
    }
    write_atomically(path / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def described(path: Path, name: str, rows: int, terms: int) -> Shard:
    """The entry of a file of the directory that has been written whole."""
    file = path / name
    return Shard(name, rows, terms, file.stat().st_size, sha256_of(file))


def check_shard(path: Path, shard: Shard, is_hashing: bool = True) -> Path:
    """Check that a shard is as its manifest says.

    Args:
        path: The directory.
        shard: The entry.
        is_hashing: Whether the content is compared as well as the size.

    Returns:
        The shard's file.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If its size or its content differs.
    """
    file, advice = path / shard.name, "Copy the directory again, or delete it and convert again."
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be there as the manifest says, got none. {advice}")
    size = file.stat().st_size
    if size != shard.bytes:
        raise ValueError(f"{file} must have {shard.bytes} bytes as the manifest says, got {size}. {advice}")
    if is_hashing and (found := sha256_of(file)) != shard.sha256:
        raise ValueError(f"{file} must have the SHA-256 {shard.sha256} of the manifest, got {found}. {advice}")
    return file


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _malformed(file: Path) -> ValueError:
    return ValueError(f"{file} must be a manifest as it was written, got something else. Copy it again.")
