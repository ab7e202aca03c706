"""Encodes texts with Ray Data into sharded Parquet, and goes on where a killed run stopped.

pip install "st-keytokens[bulk]" "ray[data]" aiohttp
python examples/distributed/ray_encode.py --output sparse-texts

Workers encode; this process alone writes, in the order of the input, so that no row is there twice whatever dies: Ray
runs the batches of a dead worker again, and a new run of this script begins after the last whole shard. On a cluster
the input is a directory that all nodes see, --device is cuda, and --workers the number of its GPUs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import ray
from abstracts import MODEL, write_input
from tqdm.auto import tqdm

from st_keytokens.bulk import KeyTokenBatchEncoder, Manifest, ShardWriter
from st_keytokens.bulk.shards import arrow_schema, from_arrow


def encoded_tables(arguments: argparse.Namespace, files: list[str]) -> Iterator[arrow.Table]:
    """The rows of the files, encoded by the workers, in the order of the files."""
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    texts = ray.data.read_parquet(files).select_columns(["id", "text"])
    texts = texts.repartition(target_num_rows_per_block=arguments.shard_rows)  # what a worker has done at a time
    rows = texts.map_batches(
        KeyTokenBatchEncoder,
        fn_constructor_args=[arguments.model],
        fn_constructor_kwargs={"device": arguments.device, "batch_size": arguments.batch_size},
        batch_size=4 * arguments.batch_size,  # a few forward passes, so that texts can be sorted by length
        compute=ray.data.ActorPoolStrategy(size=arguments.workers),
        num_cpus=1,
        num_gpus=1 if arguments.device == "cuda" else 0,
    )
    for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield table.select(arrow_schema().names).cast(arrow_schema())


def encode(arguments: argparse.Namespace) -> Manifest:
    files = sorted(str(path) for path in Path(arguments.input).glob("*.parquet"))
    counts = [parquet.read_metadata(file).num_rows for file in files]
    encoder = KeyTokenBatchEncoder(arguments.model, device="cpu").encoder
    vocab_size = encoder.vocabulary.vocab_size
    with ShardWriter(
        arguments.output,
        vocab_size=vocab_size,
        fingerprint=encoder.fingerprint,
        source={"files": [[Path(file).name, count] for file, count in zip(files, counts, strict=True)]},
        shard_rows=arguments.shard_rows,
    ) as writer:
        if writer.is_complete:
            return writer.manifest
        there = writer.rows
        while counts and there >= counts[0]:  # files whose rows are all there are not read again
            there -= counts.pop(0)
            files.pop(0)
        with tqdm(total=sum(counts) - there, unit="text") as bar:
            for table in encoded_tables(arguments, files) if files else ():
                skipped = min(there, len(table))
                there -= skipped
                ids, sparse = from_arrow(table.slice(skipped), vocab_size)
                writer.add(ids, sparse)
                bar.update(len(ids))
        return writer.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--input", help="directory of Parquet files with the columns id and text")
    parser.add_argument("--output", required=True, help="directory of the shards")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32, help="texts a forward pass")
    parser.add_argument("--shard-rows", type=int, default=500)
    arguments = parser.parse_args()
    if arguments.input is None:
        arguments.input = f"{arguments.output}-input"
        if not Path(arguments.input).exists():
            write_input(Path(arguments.input))
    if "RAY_ADDRESS" in os.environ:
        ray.init()
    else:  # the tasks that read need slots besides those of the workers, or nothing ever runs
        ray.init(num_cpus=arguments.workers + 3, include_dashboard=False)
    manifest = encode(arguments)
    print(f"{manifest.rows} rows, {manifest.terms} terms, {len(manifest.shards)} shards in {arguments.output}")


if __name__ == "__main__":
    main()
