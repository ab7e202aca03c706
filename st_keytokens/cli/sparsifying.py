"""The command sparsify: stored dense embeddings to a sparse matrix, or to shards."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import scipy.sparse

from st_keytokens.bulk.conversion import TextReader, convert, sparse_rows
from st_keytokens.bulk.sources import EmbeddingSource, open_source
from st_keytokens.cli.console import Console, UserError
from st_keytokens.cli.inputs import reading_options
from st_keytokens.cli.models import load_encoder
from st_keytokens.decoding.head_parts import DTYPES
from st_keytokens.document_files import Record, read_documents
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.sparse_embeddings import SparseEmbeddings

_BATCH_SIZES = {"cuda": 2048}  # rows decoded at a time
_BATCH_SIZE = 256


def sparsify(arguments: Namespace, console: Console) -> None:
    """Turns stored dense embeddings into sparse ones."""
    source = open_source(
        arguments.embeddings,
        kind=arguments.kind,
        table=arguments.table,
        id_column=arguments.id_column,
        vector_column=arguments.vector_column,
        text_column=arguments.text_column,
    )
    with _texts(arguments, source) as texts:
        encoder = _load(arguments)
        write = _to_matrix if Path(arguments.output).suffix == ".npz" else _to_shards
        write(arguments, console, encoder, source, texts)


def _load(arguments: Namespace) -> KeyTokenEncoder:
    """The encoder, its LM head in the dtype that was asked for; the batch size by its device, if none was."""
    encoder = load_encoder(arguments)
    lm_head = encoder.head.lm_head
    if arguments.dtype is not None and lm_head is not None:
        encoder.head.lm_head = lm_head.sharing(compute_dtype=DTYPES[arguments.dtype])
    if arguments.batch_size is None:
        arguments.batch_size = _BATCH_SIZES.get(encoder.model.device.type, _BATCH_SIZE)
    return encoder


def _to_matrix(
    arguments: Namespace,
    console: Console,
    encoder: KeyTokenEncoder,
    source: EmbeddingSource,
    texts: TextReader | None,
) -> None:
    """All rows as one ``.npz`` file, without ids."""
    output, began = Path(arguments.output), time.perf_counter()
    parts = [SparseEmbeddings.empty(0, encoder.vocabulary.vocab_size)]
    rows = sparse_rows(
        encoder,
        source,
        texts=texts,
        role=arguments.role,
        batch_size=arguments.batch_size,
        show_progress_bar=console.has_progress,
    )
    parts += [batch.sparse for batch in rows]
    sparse = SparseEmbeddings.concatenate(parts)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            scipy.sparse.save_npz(file, sparse.to_scipy())
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    made = Made(len(sparse), sparse.vocab_size, sparse.nnz, len(sparse), time.perf_counter() - began)
    console.result({"output": str(output), **made.fields()}, made.lines(f"in {output}"))


def _to_shards(
    arguments: Namespace,
    console: Console,
    encoder: KeyTokenEncoder,
    source: EmbeddingSource,
    texts: TextReader | None,
) -> None:
    """All rows with their ids as Parquet shards."""
    output = Path(arguments.output)
    converted = convert(
        encoder,
        source,
        output,
        texts=texts,
        role=arguments.role,
        batch_size=arguments.batch_size,
        shard_rows=arguments.shard_rows,
        show_progress_bar=console.has_progress,
    )
    manifest = converted.manifest
    made = Made(manifest.rows, manifest.vocab_size, manifest.terms, converted.rows, converted.seconds)
    shards, megabytes = len(manifest.shards), manifest.bytes / 1e6
    console.result(
        {"output": str(output), **made.fields(), "shards": shards, "bytes": manifest.bytes},
        made.lines(f"in {output}: {shards:,} shard{'s' * (shards != 1)}, {megabytes:,.1f} MB"),
    )


@dataclass(frozen=True)
class Made:
    """What the output holds, and what this run did.

    Attributes:
        rows: Rows of the output.
        vocab_size: Its columns.
        terms: Its weights.
        new_rows: Rows that this run made.
        seconds: Time that they took.
    """

    rows: int
    vocab_size: int
    terms: int
    new_rows: int
    seconds: float

    def fields(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "rows_per_second": self._throughput}

    def lines(self, place: str) -> list[str]:
        """For people."""
        mean = self.terms / self.rows if self.rows else 0.0
        lines = [f"Saved {self.rows:,} rows of {mean:.1f} terms on average, out of {self.vocab_size:,}, {place}."]
        if self.new_rows < self.rows:
            lines.append(f"{self.rows - self.new_rows:,} of them were there.")
        if self.new_rows:
            lines.append(f"{self.new_rows:,} rows in {self.seconds:.1f} s, {self._throughput:,.0f} a second.")
        return lines

    @property
    def _throughput(self) -> float:
        return self.new_rows / self.seconds if self.seconds else 0.0


@contextmanager
def _texts(arguments: Namespace, source: EmbeddingSource) -> Iterator[TextReader | None]:
    """What reads the texts, if there are any, which have been read through once to find a wrong line early.

    Standard input is kept in a temporary file.
    """
    if arguments.texts is None:
        yield None
        return
    options, path = reading_options(arguments), arguments.texts
    with tempfile.TemporaryDirectory(prefix="keytokens-") as folder:
        if path == "-":
            path, options["name"] = str(Path(folder, "input")), "standard input"
            with open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)

        def read() -> Iterator[Record]:
            return read_documents(path, **options)

        count = sum(1 for _ in read())
        if not source.has_ids and count != source.rows:
            raise UserError(
                f"--texts must be one for each embedding, got {count} texts for {source.rows} rows of {source.name}."
            )
        yield read
