"""Stored embeddings to a directory of sparse ones, in constant memory, going on where an earlier run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from tqdm.auto import tqdm

from st_keytokens.bulk.manifest import Manifest
from st_keytokens.bulk.pipeline import SparseBatch, sparsify_batches
from st_keytokens.bulk.shard_writer import ShardWriter
from st_keytokens.bulk.sources.embedding_source import EmbeddingSource
from st_keytokens.bulk.text_join import text_index, texts_by_id, texts_by_number
from st_keytokens.checks import check_choice, checked_int
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.forward_pass import Role
from st_keytokens.readers import Record

TextReader = Callable[[], Iterable[Record]]


@dataclass(frozen=True)
class Converted:
    """What a run did.

    Attributes:
        manifest: What the directory holds now.
        rows: Rows that this run made; the others were there.
        seconds: From the first batch that was read to the last shard, without loading the model.
    """

    manifest: Manifest
    rows: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Throughput of this run."""
        return self.rows / self.seconds if self.seconds else 0.0


def convert(
    encoder: KeyTokenEncoder,
    source: EmbeddingSource,
    path: str | PathLike[str],
    *,
    texts: TextReader | None = None,
    role: Role = "document",
    batch_size: int = 256,
    shard_rows: int = 100_000,
    show_progress_bar: bool = False,
) -> Converted:
    """Makes stored embeddings sparse and writes them as shards; run again, it goes on after the last whole shard.

    Args:
        encoder: Of the model that made the embeddings.
        source: Of :func:`~st_keytokens.bulk.sources.open_source`.
        path: The directory, new or begun earlier.
        texts: Gives the texts from the first one on, for the literal terms: joined by id, or one after the other
            where the source has no ids. None: those of the source, if it was opened with a column of texts.
        role: Of the embeddings.
        batch_size: Rows decoded at a time.
        shard_rows: Rows of a shard; an interruption loses no more.
        show_progress_bar: Whether to show one.

    Returns:
        What was done.

    Raises:
        ImportError: If pyarrow is not installed.
        OSError: If something cannot be read or written.
        TypeError: If the embeddings are no floating-point numbers.
        ValueError: If an argument is out of range, a row cannot be decoded, a text is missing, or the directory is
            of another encoder, source or role.
    """
    check_choice("role", role, get_args(Role))
    checked_int("batch_size", batch_size, minimum=1)
    about = {"rows_from": source.identity, "role": role, "has_text_file": texts is not None}
    with ShardWriter(
        path,
        vocab_size=encoder.vocabulary.vocab_size,
        fingerprint=encoder.fingerprint,
        source=about,
        shard_rows=shard_rows,
    ) as writer:
        start = writer.rows
        began = time.perf_counter()
        if not writer.is_complete:
            rows = sparse_rows(
                encoder,
                source,
                texts=texts,
                role=role,
                batch_size=batch_size,
                start=start,
                position=writer.position,
                folder=Path(path),
                show_progress_bar=show_progress_bar,
            )
            for batch in rows:
                writer.add(batch.ids, batch.sparse, batch.position)
        manifest = writer.finish()
        return Converted(manifest, manifest.rows - start, time.perf_counter() - began)


def sparse_rows(
    encoder: KeyTokenEncoder,
    source: EmbeddingSource,
    *,
    texts: TextReader | None = None,
    role: Role = "document",
    batch_size: int = 256,
    start: int = 0,
    position: Any = None,
    folder: Path | None = None,
    show_progress_bar: bool = False,
) -> Iterator[SparseBatch]:
    """The rows of a source, sparse and with their texts joined in, as an iterator.

    Args:
        encoder: See :func:`convert`.
        source: See :func:`convert`.
        texts: See :func:`convert`.
        role: See :func:`convert`.
        batch_size: See :func:`convert`.
        start: Number of the first row.
        position: Where the source is read on from. None: from its first row.
        folder: Where a temporary index of texts is put. None: where temporary files are.
        show_progress_bar: Whether to show one.

    Returns:
        An iterator of batches.

    Raises:
        ValueError: See :func:`convert`.
    """
    with ExitStack() as stack:
        batches = source.batches(batch_size, position)
        if texts is not None and source.has_ids:
            index = stack.enter_context(text_index(texts(), folder, "texts"))
            batches = texts_by_id(batches, index, "texts")
        elif texts is not None:
            batches = texts_by_number(batches, texts(), "texts", start)
        bar = stack.enter_context(
            tqdm(total=source.rows, initial=start, unit="row", desc="Sparsifying", disable=not show_progress_bar)
        )
        for batch in stack.enter_context(closing(sparsify_batches(encoder, batches, role=role, start=start))):
            yield batch
            bar.update(len(batch.ids))
