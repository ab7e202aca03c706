"""What decoding costs: on top of encoding, and over stored vectors against the bare matrix product.

python examples/benchmarks/decoding.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import write_results
from qwen3_shape import DIMENSION, TINY, calibrated, qwen3_shaped, sample_embeddings
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from st_keytokens import KeyTokenEncoder

TEXT_TOKENS = 128
MEMORY_SCRIPT = Path(__file__).with_name("sparsify_memory.py")


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


def texts_of(count: int) -> list[str]:
    """Texts of 130 tokens, which fill the model's length and little more."""
    return [f"{i} " + "genes encode proteins and stars form from gas " * 16 for i in range(count)]


def on_top_of_encoding(model: SentenceTransformer, batch: int, repeats: int) -> dict:
    """Time of the model's own encode, of the same pass with both vectors, and of decoding alone."""
    encoder = calibrated(model)
    texts = texts_of(batch)
    vectors = torch.from_numpy(model.encode(texts, batch_size=batch))

    def decode() -> None:
        with torch.inference_mode():
            encoder.head.decode(vectors)

    parts = {
        "encode": lambda: model.encode(texts, batch_size=batch),
        "both": lambda: encoder.encode(texts, batch_size=batch),
        "decode": decode,
    }
    seconds = interleaved(parts, repeats)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "batch": batch,
        **{name: summary(values) for name, values in seconds.items()},
        "decode_over_encode": medians["decode"] / medians["encode"],
        "both_over_encode": medians["both"] / medians["encode"],
    }


def sparsify_throughput(encoder: KeyTokenEncoder, batch: int, rows: int, repeats: int) -> dict:
    """Rows a second of ``sparsify``, decoded terms only, against the bare product of the same sizes and dtype."""
    vectors = sample_embeddings(rows, DIMENSION)
    matrix = encoder.model[0].auto_model.get_input_embeddings().weight
    cast = torch.from_numpy(vectors).to(matrix.dtype)

    def product() -> None:
        with torch.inference_mode():
            for block in torch.split(cast, batch):
                block @ matrix.T

    parts = {"product": product, "sparsify": lambda: encoder.sparsify(vectors, batch_size=batch)}
    seconds = interleaved(parts, repeats)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "dtype": str(matrix.dtype).removeprefix("torch."),
        "batch": batch,
        "rows": rows,
        "terms": encoder.head.max_active_dims,
        **{name: summary(values) for name, values in seconds.items()},
        "share_of_product_throughput": medians["product"] / medians["sparsify"],
        "rows_per_second": rows / medians["sparsify"],
    }


def sparsify_memory(rows: int) -> dict:
    """Peak memory in a process of its own."""
    command = [sys.executable, str(MEMORY_SCRIPT), "--rows", str(rows)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, default=1024, help="stored vectors")
    parser.add_argument("--memory-rows", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--batch", type=int, default=8, help="texts a batch of the Qwen3-shaped model")
    parser.add_argument("--only-sparsify", action="store_true", help="print the first two tables, write nothing")
    arguments = parser.parse_args()
    throughput = []
    for dtype in (torch.bfloat16, torch.float32):
        encoder = calibrated(qwen3_shaped(dtype, TEXT_TOKENS, layers=1))
        for batch in (256, 1024):
            throughput.append(sparsify_throughput(encoder, batch, arguments.rows, arguments.repeats))
        del encoder
    memory = [sparsify_memory(rows) for rows in arguments.memory_rows]
    print("| stored vectors, d = 1024, V = 151,936 | batch | share of the bare product | rows a second |")
    print("|---|---|---|---|")
    for row in throughput:
        share, rate = row["share_of_product_throughput"], row["rows_per_second"]
        print(f"| {row['dtype']} | {row['batch']} | {share:.0%} | {rate:.0f} |")
    print(
        "\n| memory of sparsify | batch | at its peak | of which result | all scores would be |\n|---|---|---|---|---|"
    )
    for row in memory:
        sizes = (f"{row[name]:.0f} MB" for name in ("peak_mb", "of_which_result_mb", "all_scores_would_be_mb"))
        print(f"| {row['rows']} rows, {row['dtype']} | {row['batch']} | {' | '.join(sizes)} |")
    if arguments.only_sparsify:
        return
    tiny = SentenceTransformer(str(TINY), device="cpu")
    tiny.max_seq_length = TEXT_TOKENS
    on_top = {
        "tiny embedder": on_top_of_encoding(tiny, 32, 20),
        "Qwen3-0.6B-shaped, bfloat16": on_top_of_encoding(
            qwen3_shaped(torch.bfloat16, TEXT_TOKENS), arguments.batch, arguments.repeats
        ),
    }
    print("\n| 128-token texts, of the time of `encode` | decoding | both vectors |\n|---|---|---|")
    for name, row in on_top.items():
        print(f"| {name} | {row['decode_over_encode']:.1%} | {row['both_over_encode']:.1%} |")
    results = {"sparsify": throughput, "sparsify_memory": memory, "on_top_of_encoding": on_top}
    print(f"\n{write_results('decoding', results)}")


if __name__ == "__main__":
    main()
