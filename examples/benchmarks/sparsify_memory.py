"""Prints, as JSON, how much memory sparsify takes beyond model and vectors (Linux).

python examples/benchmarks/sparsify_memory.py --rows 8192
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch
from qwen3_shape import DIMENSION, VOCAB_SIZE, calibrated, qwen3_shaped, sample_embeddings

MEGABYTE = 1e6


def resident(name: str) -> float:
    """Resident memory of this process in MB: ``VmRSS`` now, ``VmHWM`` the largest since the last reset."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status must hold {name}.")
    return int(found[1]) * 1024 / MEGABYTE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    encoder = calibrated(qwen3_shaped(getattr(torch, arguments.dtype), 128, layers=1))
    vectors = sample_embeddings(arguments.rows, DIMENSION)
    encoder.sparsify(vectors[:1])  # statistics of the logits are computed once
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    sparse = encoder.sparsify(vectors, batch_size=arguments.batch)
    result = sum(array.nbytes for array in (sparse.indptr, sparse.indices, sparse.values))
    print(
        json.dumps(
            {
                **vars(arguments),
                "peak_mb": resident("VmHWM") - before,
                "of_which_result_mb": result / MEGABYTE,
                "all_scores_would_be_mb": 4 * arguments.rows * VOCAB_SIZE / MEGABYTE,
            }
        )
    )


if __name__ == "__main__":
    main()
