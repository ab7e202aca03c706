"""Reading shards: verified, and in batches."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from st_keytokens.bulk.arrow_tables import COLUMNS, from_arrow, open_parquet
from st_keytokens.bulk.manifest import Manifest, check_shard, read_manifest
from st_keytokens.checks import checked_int
from st_keytokens.optional import imported
from st_keytokens.sparse_embeddings import SparseEmbeddings


def read_batches(
    path: str | PathLike[str], batch_size: int = 1000, *, start: int = 0, is_verifying: bool = True
) -> Iterator[tuple[list[str], SparseEmbeddings]]:
    """Reads a directory of shards in batches, in order, with little more in memory than one of them.

    Args:
        path: The directory.
        batch_size: Rows of a batch at the most; the last one of a shard may have fewer.
        start: Rows that are passed over; whole shards of them are not opened.
        is_verifying: Whether each shard's SHA-256 is compared before it is read; its size always is.

    Returns:
        An iterator of ids and as many rows.

    Raises:
        FileNotFoundError: If there is no manifest; while reading, if a shard is missing.
        ImportError: If pyarrow is not installed.
        ValueError: If an argument is out of range, or the directory is not complete; while reading, if a shard has
            been changed or truncated, or its rows break the contract.
    """
    checked_int("batch_size", batch_size, minimum=1)
    imported("pyarrow.parquet")
    manifest = read_manifest(path)
    if not manifest.is_complete:
        raise ValueError(
            f"{path} must be complete, got the first {manifest.rows} rows. Run what writes it again, which goes on."
        )
    checked_int("start", start, minimum=0, maximum=manifest.rows)
    return _batches(Path(path), manifest, batch_size, start, is_verifying)


def verify(path: str | PathLike[str]) -> Manifest:
    """Reads a directory of shards whole and checks everything that its manifest says.

    Args:
        path: The directory.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: See :func:`read_batches`.
        ImportError: See :func:`read_batches`.
        ValueError: See :func:`read_batches`.
    """
    for _ in read_batches(path, 8192):
        pass
    return read_manifest(path)


def _batches(
    path: Path, manifest: Manifest, batch_size: int, start: int, is_verifying: bool
) -> Iterator[tuple[list[str], SparseEmbeddings]]:
    lost = imported("pyarrow").ArrowException
    first = 0
    for shard in manifest.shards:
        passed, first = max(0, start - first), first + shard.rows
        if passed >= shard.rows:
            continue
        file = check_shard(path, shard, is_verifying)
        rows = terms = 0
        try:
            with open_parquet(file) as content:
                for batch in content.iter_batches(batch_size, columns=list(COLUMNS)):
                    ids, sparse = from_arrow(batch, manifest.vocab_size)
                    skipped, rows, terms = min(len(ids), max(0, passed - rows)), rows + len(ids), terms + sparse.nnz
                    if skipped < len(ids):
                        yield ids[skipped:], sparse[skipped:]
        except (lost, ValueError) as err:
            raise ValueError(f"{file}: {err}") from err
        if (rows, terms) != (shard.rows, shard.terms):
            raise ValueError(
                f"{file} must have {shard.rows} rows and {shard.terms} terms as the manifest says, got {rows} and "
                f"{terms}. Convert again."
            )
