"""What decoding costs: on top of encoding, and over stored vectors against the bare matrix product.

    python examples/benchmarks/decoding.py

A randomly initialised Qwen3-0.6B-shaped model stands for a real embedder: its speed does not depend on its weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from environment import write_results
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tqdm import tqdm
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from st_keytokens import Calibration, KeyTokenEncoder, KeyTokenHead, LMHead, Vocabulary

HERE = Path(__file__).resolve().parent
TINY = HERE.parent / "tiny-embedder" / "embedder"
VOCAB_SIZE, DIMENSION = 151_936, 1024
TEXT_TOKENS = 128


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


def large_vocabulary() -> Vocabulary:
    """As many tokens as Qwen3's, a third of them variants in case or space of another."""
    words = [f"w{i}" for i in range(VOCAB_SIZE // 3 + 1)]
    tokens = [form for word in words for form in ("Ġ" + word, "Ġ" + word.upper(), f"{word}x")][:VOCAB_SIZE]
    return Vocabulary(tokens, kind="byte-level")


def qwen3_shaped(folder: Path, dtype: torch.dtype) -> SentenceTransformer:
    """The shape of Qwen3-Embedding-0.6B, 16-bit weights, with the tiny embedder's tokenizer in front."""
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=DIMENSION,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    transformer = Transformer(str(folder), model_kwargs={"dtype": dtype})
    transformer.max_seq_length = TEXT_TOKENS
    return SentenceTransformer(modules=[transformer, Pooling(DIMENSION, "lasttoken"), Normalize()], device="cpu")


def texts_of(count: int) -> list[str]:
    """Texts of about a hundred words, which fill the model's length and little more."""
    return [f"{i} " + "genes encode proteins and stars form from gas " * 13 for i in range(count)]


def sample_embeddings(dimension: int) -> np.ndarray:
    sample = np.random.default_rng(0).normal(size=(2000, dimension)).astype(np.float32)
    return sample / np.linalg.norm(sample, axis=1, keepdims=True)


def on_top_of_encoding(model: SentenceTransformer, batch: int, repeats: int) -> dict:
    """Time of the model's own encode, of the same pass with both vectors, and of decoding alone."""
    encoder = KeyTokenEncoder(model, cache_size=0)
    encoder.head.set_calibration(
        Calibration.fit_embeddings(sample_embeddings(encoder.head.lm_head_dimension), show_progress_bar=False)
    )
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


def sparsify_throughput(vocabulary: Vocabulary, dtype: torch.dtype, batch: int, repeats: int) -> dict:
    """Rows a second of ``decode`` against the bare product of the same sizes and dtype."""
    embedding = torch.nn.Embedding(VOCAB_SIZE, DIMENSION).to(dtype)
    sample = sample_embeddings(DIMENSION)
    calibration = Calibration.fit_embeddings(sample, show_progress_bar=False)
    head = KeyTokenHead(LMHead(embedding), vocabulary, calibration).eval()
    vectors = torch.from_numpy(sample[:batch])
    cast = vectors.to(dtype)

    def product() -> None:
        with torch.inference_mode():
            cast @ embedding.weight.T

    def decode() -> None:
        with torch.inference_mode():
            head.decode(vectors)

    seconds = interleaved({"product": product, "decode": decode}, repeats)
    ratio = statistics.median(seconds["product"]) / statistics.median(seconds["decode"])
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "terms": head.max_active_dims,
        **{k: summary(v) for k, v in seconds.items()},
        "share_of_product_throughput": ratio,
        "rows_per_second": batch / statistics.median(seconds["decode"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8, help="texts a batch of the Qwen3-shaped model")
    arguments = parser.parse_args()
    vocabulary = large_vocabulary()
    results: dict = {"sparsify": [], "on_top_of_encoding": {}}
    for dtype in (torch.bfloat16, torch.float32):
        for batch in (256, 1024):
            results["sparsify"].append(sparsify_throughput(vocabulary, dtype, batch, arguments.repeats))
    tiny = SentenceTransformer(str(TINY), device="cpu")
    tiny.max_seq_length = TEXT_TOKENS
    results["on_top_of_encoding"]["tiny embedder"] = on_top_of_encoding(tiny, 32, 20)
    with tempfile.TemporaryDirectory() as folder:
        model = qwen3_shaped(Path(folder), torch.bfloat16)
        results["on_top_of_encoding"]["Qwen3-0.6B-shaped, bfloat16"] = on_top_of_encoding(
            model, arguments.batch, arguments.repeats
        )
    path = write_results("decoding", results)
    print("| stored vectors, d = 1024, V = 151,936 | batch | share of the bare product | rows a second |")
    print("|---|---|---|---|")
    for row in results["sparsify"]:
        share, rate = row["share_of_product_throughput"], row["rows_per_second"]
        print(f"| {row['dtype']} | {row['batch']} | {share:.0%} | {rate:.0f} |")
    print("\n| 128-token texts, of the time of `encode` | decoding | both vectors |\n|---|---|---|")
    for name, row in results["on_top_of_encoding"].items():
        print(f"| {name} | {row['decode_over_encode']:.1%} | {row['both_over_encode']:.1%} |")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
