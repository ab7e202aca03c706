"""Parquet files that a cluster has written, brought under a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from st_keytokens.bulk.arrow_tables import COLUMNS, check_columns, from_arrow, open_parquet
from st_keytokens.bulk.manifest import MANIFEST, Manifest, described, write_manifest
from st_keytokens.optional import imported


def collect_shards(
    path: str | PathLike[str], *, vocab_size: int, fingerprint: str, source: Mapping[str, Any] | None = None
) -> Manifest:
    """Reads the Parquet files below a directory, checks every row, and writes the manifest that makes them shards.

    The files stay as they are. Run it when all jobs have ended; whatever is there is taken for the whole.

    Args:
        path: The directory.
        vocab_size: Columns of the rows.
        fingerprint: Of the encoder that made them.
        source: See :class:`~st_keytokens.bulk.ShardWriter`.

    Returns:
        The manifest, whose shards are in the order of their paths.

    Raises:
        FileNotFoundError: If there is no Parquet file.
        ImportError: If pyarrow is not installed.
        ValueError: If a file is damaged or its rows break the contract, or the directory has a manifest.
    """
    folder = Path(path)
    if (folder / MANIFEST).exists():
        raise ValueError(f"{path} must have no {MANIFEST}, got one. Delete it to collect the shards again.")
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet"))
    names = [name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))]
    if not names:
        raise FileNotFoundError(f"{path} must hold Parquet files, got none.")
    shards = []
    for name in names:
        rows = terms = 0
        try:
            with open_parquet(folder / name) as file:
                check_columns(file.schema_arrow)
                for batch in file.iter_batches(8192, columns=list(COLUMNS)):
                    _, sparse = from_arrow(batch, vocab_size)
                    rows, terms = rows + len(sparse), terms + sparse.nnz
        except (imported("pyarrow").ArrowException, ValueError) as err:
            raise ValueError(f"{folder / name}: {err}") from err
        shards.append(described(folder, name, rows, terms))
    manifest = Manifest(vocab_size, fingerprint, tuple(shards), is_complete=True, source=dict(source or {}))
    write_manifest(folder, manifest)
    return manifest
