"""What a calibration with its ridge decoder costs, for stored embeddings of d = 1024 and V = 151,936 (Linux).

python examples/benchmarks/calibration.py --documents 1000 10000 100000 --output docs/results/calibration.json

Embeddings are random, in a memory-mapped file; documents have 150 terms, drawn by Zipf's law over the whole
vocabulary, which makes more different terms than text does. Tokenising and embedding are not part of it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from decoding import interleaved, summary
from environment import environment

from st_keytokens import Calibration, LMHead
from st_keytokens.calibration import RidgeDecoder

VOCAB_SIZE, DIMENSION, LENGTH = 151_936, 1024, 150
PARTS = ("without_decoder", "pass", "solve", "save", "load")


class StoredDocuments:
    """Stands in for an encoder whose texts are numbers of documents."""

    vocab_size, hash, model_name = VOCAB_SIZE, "synthetic", "synthetic"

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        shares = np.cumsum(1 / np.arange(1, VOCAB_SIZE + 1))
        ranks = np.searchsorted(shares / shares[-1], rng.random((count, LENGTH), dtype=np.float32))
        self.terms = rng.permutation(VOCAB_SIZE)[np.minimum(ranks, VOCAB_SIZE - 1)].astype(np.int32)
        self.vocabulary = self

    def prepare_embeddings(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings

    def literal_terms(self, texts: list[str]) -> list[np.ndarray]:
        return [self.terms[int(text)] for text in texts]


def write_embeddings(path: Path, count: int) -> np.ndarray:
    """Random vectors around a mean, of about length 1, in a file."""
    rng = np.random.default_rng(1)
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (count, DIMENSION))
    mean = rng.standard_normal(DIMENSION, dtype=np.float32)
    for start in range(0, count, 4096):
        block = rows[start : start + 4096]
        block[:] = (mean + rng.standard_normal(block.shape, dtype=np.float32)) / (2 * DIMENSION) ** 0.5
    rows.flush()
    return np.load(path, mmap_mode="r")


def peak_gb() -> float:
    """Largest resident memory of this process so far, pages of mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024 / 1e9


def clocks() -> np.ndarray:
    """Seconds that have passed, and that all cores have worked for this process."""
    return np.array([time.perf_counter(), time.process_time()])


def measured(count: int, batch: int, repeats: int) -> dict:
    """Everything for one number of documents, in this process."""
    seconds = {}
    start = clocks()

    def lap(name: str) -> None:
        nonlocal start
        wall, cpu = clocks() - start
        seconds[name], seconds[name.replace("_s", "_cpu_s")] = wall, cpu
        start = clocks()

    with tempfile.TemporaryDirectory() as folder:
        documents, rows = StoredDocuments(count), write_embeddings(Path(folder, "rows.npy"), count)
        texts = [str(number) for number in range(count)]
        start = clocks()
        Calibration.fit(documents, texts, embeddings=rows, fit_decoder=False)
        lap("without_decoder_s")
        calibration = Calibration.fit(documents, texts, embeddings=rows)
        lap("pass_s")
        decoder = calibration.ridge_decoder(show_progress_bar=True)
        lap("solve_s")
        calibration.save(folder)
        lap("save_s")
        peak = peak_gb()
        size = Path(folder, "calibration.safetensors").stat().st_size
        del calibration
        start = clocks()
        Calibration.load(folder)
        lap("load_s")
    return {
        "documents": count,
        "terms": len(decoder.term_ids),
        **seconds,
        "peak_gb": peak,
        "file_mb": size / 1e6,
        "decoding": [decoding(decoder, dtype, batch, repeats) for dtype in (torch.float32, torch.bfloat16)],
    }


def decoding(decoder: RidgeDecoder, dtype: torch.dtype, batch: int, repeats: int) -> dict:
    """Time of the ridge decoder's logits and of the LM head's, for a batch of embeddings."""
    decoder = decoder.to(dtype=dtype)
    head = LMHead(torch.nn.Embedding(VOCAB_SIZE, DIMENSION, dtype=dtype))
    embeddings = torch.randn(batch, DIMENSION)
    parts = {"ridge_decoder": lambda: decoder.logits(embeddings), "lm_head": lambda: head.logits(embeddings)}
    with torch.inference_mode():
        seconds = interleaved(parts, repeats)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        **{name: summary(values) for name, values in seconds.items()},
    }


def in_own_process(count: int, batch: int, repeats: int) -> dict:
    """:func:`measured` where nothing else has used memory."""
    command = [sys.executable, __file__, "--single", str(count), "--batch", str(batch), "--repeats", str(repeats)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def table(results: list[dict]) -> str:
    """The results as Markdown; seconds of all cores in brackets."""
    lines = [
        "| documents | terms | pass without decoder | pass | solve | save | load | peak memory | file "
        "| ridge decoder / LM head, a text |",
        "|" + "---|" * 10,
    ]
    for row in results:
        costs = ", ".join(
            f"{run['dtype']} {1e3 * run['ridge_decoder']['median_s'] / run['batch']:.2f} / "
            f"{1e3 * run['lm_head']['median_s'] / run['batch']:.2f} ms"
            for run in row["decoding"]
        )
        parts = " | ".join(f"{row[f'{name}_s']:.1f} s ({row[f'{name}_cpu_s']:.1f})" for name in PARTS)
        lines.append(
            f"| {row['documents']:,} | {row['terms']:,} | {parts} | {row['peak_gb']:.1f} GB | "
            f"{row['file_mb']:.0f} MB | {costs} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--batch", type=int, default=32, help="texts decoded at once")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of decoding")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--single", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.single is not None:
        print(json.dumps(measured(arguments.single, arguments.batch, arguments.repeats)))
        return
    results = [in_own_process(count, arguments.batch, arguments.repeats) for count in arguments.documents]
    print(table(results))
    if arguments.output is not None:
        content = {"env": environment(), "vocab_size": VOCAB_SIZE, "dimension": DIMENSION, "length": LENGTH}
        arguments.output.write_text(json.dumps({**content, "calibration": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
