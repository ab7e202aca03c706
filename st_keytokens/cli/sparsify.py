"""The command sparsify: stored dense embeddings to a sparse matrix, or to shards."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_keytokens.cli.console import Console, UserError
from st_keytokens.cli.inputs import kept_input
from st_keytokens.cli.options import (
    INPUT,
    add_command,
    add_input_options,
    add_model,
    add_model_options,
    add_role,
    check_exists,
    check_output,
    positive,
    run_again,
)

if TYPE_CHECKING:
    from st_keytokens.bulk.conversion import TextReader
    from st_keytokens.bulk.sources import EmbeddingSource
    from st_keytokens.encoder.encoder import KeyTokenEncoder

_BATCH_SIZES = {"cuda": 2048}  # rows decoded at a time
_BATCH_SIZE = 256


def add_sparsify_command(commands: Any) -> None:
    """Adds the command ``sparsify``."""
    command = add_command(
        commands,
        "sparsify",
        "turn stored dense embeddings into sparse ones, without embedding anything",
        "st-keytokens sparsify MODEL embeddings.parquet --text-column text --output sparse",
        _run,
        _check,
        how_to_go_on=lambda arguments: (
            "nothing of a .npz file is kept" if arguments.output.endswith(".npz") else run_again(arguments)
        ),
    )
    add_model(command)
    command.add_argument(
        "embeddings",
        metavar="EMBEDDINGS",
        help="file ending in .npy, .safetensors, .parquet, .arrow or .faiss, directory of Parquet or Arrow files, of "
        "LanceDB or of Qdrant, or URL of a Qdrant server or a PostgreSQL database with pgvector",
    )
    command.add_argument(
        "--kind",
        metavar="KIND",
        help="what EMBEDDINGS is: npy, safetensors, arrow, faiss, qdrant, pgvector, lancedb or a registered kind "
        "(default: by its name)",
    )
    command.add_argument("--table", metavar="NAME", help="table or collection, where EMBEDDINGS has several")
    command.add_argument(
        "--id-column", metavar="NAME", help="column of the ids (default: id; Qdrant: the points' ids)"
    )
    command.add_argument(
        "--vector-column",
        metavar="NAME",
        help="column, tensor or named vector (default: embedding; LanceDB: vector; others: the only one)",
    )
    command.add_argument(
        "--text-column", metavar="NAME", help="column of the texts, for their own words (default: none)"
    )
    command.add_argument(
        "--texts", metavar="FILE", help=f"the texts from elsewhere, by id or, where there are none, in order: {INPUT}"
    )
    command.add_argument(
        "--output",
        metavar="PATH",
        required=True,
        help=".npz file, a CSR matrix for scipy.sparse; or directory of Parquet shards, where a run that was "
        "interrupted goes on",
    )
    command.add_argument(
        "--shard-rows", metavar="N", type=positive, default=100_000, help="rows of a shard (default: 100000)"
    )
    add_role(command)
    command.add_argument(
        "--batch-size", metavar="N", type=positive, help="rows decoded at a time (default: 256; on CUDA 2048)"
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the product with the LM head, part of the fingerprint (default: the LM head's own)",
    )
    add_input_options(command)
    add_model_options(command)


def _check(arguments: Namespace) -> None:
    if arguments.texts not in (None, "-"):
        check_exists("--texts", arguments.texts)
    if "://" not in arguments.embeddings:
        check_exists("embeddings", arguments.embeddings)
    check_output("--output", arguments.output, Path(arguments.output).suffix and ".npz")


def _run(arguments: Namespace, console: Console) -> None:
    """Turns stored dense embeddings into sparse ones."""
    from st_keytokens.bulk.sources import open_source

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
    from st_keytokens.cli.encoders import load_encoder
    from st_keytokens.decoding.head_parts import DTYPES

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
    import scipy.sparse

    from st_keytokens.bulk.conversion import sparse_rows
    from st_keytokens.sparse_embeddings import SparseEmbeddings

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
    made = _Made(len(sparse), sparse.vocab_size, sparse.nnz, len(sparse), time.perf_counter() - began)
    console.result({"output": str(output), **made.fields()}, made.lines(f"in {output}"))


def _to_shards(
    arguments: Namespace,
    console: Console,
    encoder: KeyTokenEncoder,
    source: EmbeddingSource,
    texts: TextReader | None,
) -> None:
    """All rows with their ids as Parquet shards."""
    from st_keytokens.bulk.conversion import convert

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
    made = _Made(manifest.rows, manifest.vocab_size, manifest.terms, converted.rows, converted.seconds)
    shards, megabytes = len(manifest.shards), manifest.bytes / 1e6
    console.result(
        {"output": str(output), **made.fields(), "shards": shards, "bytes": manifest.bytes},
        made.lines(f"in {output}: {shards:,} shard{'s' * (shards != 1)}, {megabytes:,.1f} MB"),
    )


@dataclass(frozen=True)
class _Made:
    """What the output holds, and what this run did."""

    rows: int
    vocab_size: int
    terms: int  # weights above zero
    new_rows: int  # those that this run made
    seconds: float  # that these took

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
    """What reads the texts, if there are any; they are read through once, to find a wrong line early."""
    if arguments.texts is None:
        yield None
        return
    with kept_input(arguments.texts, arguments) as read:
        count = sum(1 for _ in read())
        if not source.has_ids and count != source.rows:
            raise UserError(
                f"--texts must be one for each embedding, got {count} texts for {source.rows} rows of {source.name}."
            )
        yield read
