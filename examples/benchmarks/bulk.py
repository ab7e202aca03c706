"""Bulk conversion against the same work done one step after the other, and against the bare matrix product.

python examples/benchmarks/bulk.py
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import torch
from environment import write_results
from qwen3_shape import DIMENSION, TINY, VOCAB_SIZE, calibrated, qwen3_shaped, sample_embeddings
from tqdm import tqdm

from st_keytokens import KeyTokenEncoder
from st_keytokens.bulk import ShardWriter, convert, open_source, read_batches, verify
from st_keytokens.shared.document_files import read_documents

CORPUS = Path(__file__).resolve().parents[1] / "data" / "arxiv-abstracts" / "corpus.jsonl"


def interleaved(parts: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every part, each round running all of them once, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for round_ in tqdm(range(repeats + 1), leave=False):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}


def write_vectors(path: Path, rows: int, dimension: int) -> None:
    """Ids and vectors as a user's Parquet file."""
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(sample_embeddings(rows, dimension).ravel()), dimension)
    table = arrow.table({"id": [f"doc-{i}" for i in range(rows)], "embedding": vectors})
    parquet.write_table(table, path, row_group_size=1024)


def conversion(encoder: KeyTokenEncoder, rows: int, batch: int, repeats: int) -> dict:
    """Parquet to shards, with overlap and without, ``sparsify`` alone, and the product alone."""
    folder = Path(tempfile.mkdtemp())
    write_vectors(folder / "dense.parquet", rows, DIMENSION)
    vectors = sample_embeddings(rows, DIMENSION)
    matrix = encoder.model[0].auto_model.get_input_embeddings().weight
    cast = torch.from_numpy(vectors).to(matrix.device, matrix.dtype)
    options = {"vocab_size": VOCAB_SIZE, "fingerprint": encoder.fingerprint}

    def product() -> None:
        with torch.inference_mode():
            for block in torch.split(cast, batch):
                block @ matrix.T
            if matrix.is_cuda:
                torch.cuda.synchronize()

    def one_after_the_other() -> None:
        shutil.rmtree(folder / "plain", ignore_errors=True)
        with ShardWriter(folder / "plain", **options) as writer:
            for part in open_source(folder / "dense.parquet").batches(batch):
                writer.add(part.ids, encoder.sparsify(part.embeddings, batch_size=batch), part.position)
            writer.finish()

    def side_by_side() -> None:
        shutil.rmtree(folder / "bulk", ignore_errors=True)
        convert(encoder, open_source(folder / "dense.parquet"), folder / "bulk", batch_size=batch)

    parts = {
        "product": product,
        "sparsify": lambda: encoder.sparsify(vectors, batch_size=batch),
        "one_after_the_other": one_after_the_other,
        "convert": side_by_side,
    }
    try:
        seconds = interleaved(parts, repeats)
        manifest, plain = verify(folder / "bulk"), verify(folder / "plain")
        if [shard.sha256 for shard in manifest.shards] != [shard.sha256 for shard in plain.shards]:
            raise RuntimeError("both ways must write the same files, got others")
    finally:
        shutil.rmtree(folder)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "device": str(matrix.device),
        "dtype": str(matrix.dtype).removeprefix("torch."),
        "rows": rows,
        "batch": batch,
        "terms": encoder.head.max_active_dims,
        **{name: summary(values) for name, values in seconds.items()},
        "rows_per_second": rows / medians["convert"],
        "time_over_one_after_the_other": medians["convert"] / medians["one_after_the_other"],
        "time_over_sparsify": medians["convert"] / medians["sparsify"],
        "share_of_product_throughput": medians["product"] / medians["convert"],
        "bytes_per_row": manifest.bytes / manifest.rows,
        "bytes_per_term": manifest.bytes / manifest.terms,
    }


def shards(encoder: KeyTokenEncoder, rows: int, repeats: int) -> dict:
    """Rows a second that one process writes and reads, hashes included, on one thread of Python."""
    folder = Path(tempfile.mkdtemp())
    sparse = encoder.sparsify(sample_embeddings(256, DIMENSION))
    ids = [f"document-{i}" for i in range(256)]

    def write() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        with ShardWriter(folder / "out", vocab_size=VOCAB_SIZE, fingerprint="benchmark") as writer:
            for _ in range(rows // 256):
                writer.add(ids, sparse)
            writer.finish()

    def read() -> None:
        for _ in read_batches(folder / "out"):
            pass

    try:
        seconds = interleaved({"write": write, "read": read}, repeats)
    finally:
        shutil.rmtree(folder)
    found = {name: summary(values) for name, values in seconds.items()}
    written = rows // 256 * 256
    rates = {f"{name}_rows_per_second": written / part["median_s"] for name, part in found.items()}
    return {"rows": written, "terms": sparse.nnz / 256, **found, **rates}


def abstracts(count: int) -> dict:
    """What real texts take on the disk: terms a text and bytes a term."""
    encoder = KeyTokenEncoder.from_pretrained(TINY, model_arguments={"device": "cpu"}, cache_size=0)
    records = list(islice(read_documents(CORPUS), count))
    sparse = encoder.encode([record.text for record in records]).sparse
    with tempfile.TemporaryDirectory() as folder:
        vocab_size, fingerprint = encoder.vocabulary.vocab_size, encoder.fingerprint
        with ShardWriter(folder, vocab_size=vocab_size, fingerprint=fingerprint) as writer:
            writer.add([record.id for record in records], sparse)
            manifest = writer.finish()
    return {
        "texts": count,
        "terms_per_text": manifest.terms / count,
        "bytes_per_term": manifest.bytes / manifest.terms,
        "bytes_per_text": manifest.bytes / count,
    }


def peak_memory(folder: Path, rows: int) -> float:
    """Megabytes that a process of its own has in memory at the most while it converts rows of the tiny embedder."""
    path = folder / f"dense-{rows}.parquet"
    encoder = KeyTokenEncoder.from_pretrained(TINY, model_arguments={"device": "cpu"}, cache_size=0)
    write_vectors(path, rows, encoder.head.lm_head_dimension)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(converted_peak, path, folder / f"sparse-{rows}").result()


def converted_peak(path: Path, output: Path) -> float:
    torch.set_num_threads(1)
    encoder = KeyTokenEncoder.from_pretrained(TINY, model_arguments={"device": "cpu"}, cache_size=0)
    convert(encoder, open_source(path), output, shard_rows=10_000)
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage counts the parent's memory in, too
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory(sizes: list[int]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        return [{"rows": rows, "peak_mb": peak_memory(Path(folder), rows)} for rows in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], help="of the product")
    parser.add_argument("--memory-rows", type=int, nargs="+", default=[20_000, 100_000])
    arguments = parser.parse_args()
    results: dict = {
        "abstracts": abstracts(500),
        "memory": memory(arguments.memory_rows),
        "conversion": [],
    }
    for dtype in arguments.dtypes:
        model = qwen3_shaped(getattr(torch, dtype), 128, layers=1).to(arguments.device)
        encoder = calibrated(model)
        results["conversion"].append(conversion(encoder, arguments.rows, arguments.batch, arguments.repeats))
        if "shards" not in results:
            results["shards"] = shards(encoder, 64 * arguments.rows, arguments.repeats)
        del encoder, model
    print(
        "| Parquet to shards, d = 1024, V = 151,936 | rows a second | time of one step after the other "
        "| time of `sparsify` alone | throughput of the bare product |"
    )
    print("|---|---|---|---|---|")
    for row in results["conversion"]:
        ratios = (row["time_over_one_after_the_other"], row["time_over_sparsify"], row["share_of_product_throughput"])
        shown = " | ".join(f"{ratio:.0%}" for ratio in ratios)
        print(f"| {row['device']}, {row['dtype']} | {row['rows_per_second']:.0f} | {shown} |")
    rate, texts = results["shards"], results["abstracts"]
    print(
        f"\none process writes {rate['write_rows_per_second']:,.0f} rows a second of {rate['terms']:.0f} terms and "
        f"reads {rate['read_rows_per_second']:,.0f}; abstracts have {texts['terms_per_text']:.0f} terms of "
        f"{texts['bytes_per_term']:.2f} bytes"
    )
    for row in results["memory"]:
        print(f"{row['rows']:,} rows converted with a peak of {row['peak_mb']:,.0f} MB")
    print(write_results("bulk", results))


if __name__ == "__main__":
    main()
