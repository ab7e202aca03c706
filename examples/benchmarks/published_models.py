"""What published models cost: loading, memory, both vectors beside the dense one, decoding, a calibration (Linux).

    python examples/benchmarks/published_models.py NAME=FOLDER[:DTYPE] ... --texts COLLECTION

Writes docs/results/published-models.json and docs/results/published_models.md. Models that are in the file and are not
named keep their figures. FOLDER is what sentence-transformers loads, COLLECTION is in the BEIR layout, such as
dbpedia-entity-sub of prepare_collections.py.

Each loading, and the rest of each model, is a process of its own. Times are seconds of the processor, in one thread,
so that other work on the machine counts less. In each round the parts run one after the other on texts that none has
seen, and a ratio is that of a round.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment
from published_models_page import page
from sentence_transformers import SentenceTransformer

from st_keytokens import Calibration, KeyTokenEncoder, KeyTokenHead
from st_keytokens.embedders import load_saved
from st_keytokens.evaluation import read_collection

TOKENS, BATCH = 256, 8
CALL, CALLS = 128, 3  # documents a call, calls that are timed
CALIBRATED = 1000  # texts
OUTPUT = RESULTS / "published-models.json"


def memory() -> dict[str, int]:
    """Resident memory of this process in MB: of its own, of mapped files, and at its largest."""
    status = Path("/proc/self/status").read_text()
    kilobytes = {name: int(re.search(rf"^{name}:\s+(\d+) kB$", status, re.M)[1]) for name in ("VmRSS", "RssAnon")}
    peak = int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)[1])
    return {name: round(n * 1024 / 1e6) for name, n in (*kilobytes.items(), ("VmHWM", peak))}


def plain_model(folder: str, dtype: str) -> SentenceTransformer:
    """The embedder as it was saved, without a head in it."""
    model = load_saved(folder, device="cpu", model_kwargs={"dtype": dtype})
    if any(isinstance(module, KeyTokenHead) for module in model):
        modules = [module for module in model if not isinstance(module, KeyTokenHead)]
        return SentenceTransformer(modules=modules, device="cpu", prompts=model.prompts)
    return model


def loading(part: str, folder: str, dtype: str) -> dict[str, Any]:
    """Seconds and memory of loading the model alone, or the encoder over it."""
    before, start, clock = memory(), time.process_time(), time.perf_counter()
    model = plain_model(folder, dtype)
    if part == "encoder":
        model = KeyTokenEncoder(model)
    taken = {"processor_s": time.process_time() - start, "clock_s": time.perf_counter() - clock}
    return {**taken, "before": before, "after": memory()}


def texts_of(documents: list[str], tokenizer: Any) -> Iterator[str]:
    """Texts of exactly ``TOKENS`` tokens, special ones included, from documents put together."""
    text = ""
    for document in documents:
        text = f"{text} {document}".strip()
        found = tokenizer(text, truncation=True, max_length=TOKENS, return_offsets_mapping=True)
        if len(found["input_ids"]) == TOKENS:
            yield text[: max(end for _, end in found["offset_mapping"])]
            text = ""


class Stopwatch:
    """An encoder whose forward passes are timed."""

    def __init__(self, encoder: KeyTokenEncoder) -> None:
        self.encoder = encoder
        self.passes: list[tuple[int, float]] = []  # texts, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def embed(self, texts: list[str], **settings: Any) -> Any:
        start = time.process_time()
        vectors = self.encoder.embed(texts, **settings)
        self.passes.append((len(texts), time.process_time() - start))
        return vectors


def calibration_cost(encoder: KeyTokenEncoder, texts: list[str]) -> dict[str, Any]:
    """Calibrates; seconds of the texts' passes, of the passes of the search for known items, and of all else."""
    watch = Stopwatch(encoder)
    start = time.process_time()
    calibration = Calibration.fit(watch, texts, batch_size=BATCH, show_progress_bar=False)
    fitted = time.process_time() - start
    start = time.process_time()
    decoder = calibration.ridge_decoder(show_progress_bar=False)
    solved = time.process_time() - start
    encoder.calibration = calibration
    embedding, known = 0.0, 0.0
    seen = 0
    for count, seconds in watch.passes:
        if seen < len(texts):
            embedding, seen = embedding + seconds, seen + count
        else:
            known += seconds
    return {
        "texts": len(texts),
        "tokens_a_text": statistics.mean(len(ids) for ids in encoder.model.tokenizer(texts)["input_ids"]),
        "terms": len(decoder.term_ids),
        "embedding_s": embedding,
        "known_items_s": known,
        "statistics_s": fitted - embedding - known,
        "solve_s": solved,
        "trust": calibration.decoded_trust,
    }


def ratio(parts: dict[str, Callable[[list[str]], object]], rounds: list[list[str]]) -> dict[str, Any]:
    """Seconds of each part and both over dense, a round after the other; the first one warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number, texts in enumerate(rounds):
        for name in sorted(parts, reverse=bool(number % 2)):
            start = time.process_time()
            parts[name](texts)
            if number:
                seconds[name].append(time.process_time() - start)
    ratios = [both / dense for both, dense in zip(seconds["both"], seconds["dense"], strict=True)]
    return {
        "rounds": len(ratios),
        "texts": len(rounds[0]),
        **{f"{name}_s": statistics.median(values) for name, values in seconds.items()},
        "both_over_dense": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
    }


def same_passes(encoder: KeyTokenEncoder, texts: list[str], repeats: int) -> dict[str, Any]:
    """What terms cost: the dense vectors alone, both, and decoding, of batches of equally long texts."""
    vectors = torch.from_numpy(encoder.embed(texts[:BATCH], batch_size=BATCH))

    def dense(batch: list[str]) -> None:
        size = len(next(encoder.forward_pass.passes(sorted(batch, key=len, reverse=True))))
        encoder.model.encode_document(batch, batch_size=size)

    def decode(_: list[str]) -> None:
        with torch.inference_mode():
            encoder.head.decode(vectors)

    parts = {"dense": dense, "both": lambda batch: encoder.encode(batch, batch_size=BATCH), "decode": decode}
    return ratio(parts, in_rounds(texts, BATCH, repeats))


def whole_calls(encoder: KeyTokenEncoder, documents: list[str], repeats: int) -> dict[str, Any]:
    """What a user sees: documents of all lengths, with the default batch size of the model and of the encoder."""
    parts = {"dense": encoder.model.encode_document, "both": encoder.encode}
    return ratio(parts, in_rounds(documents, CALL, repeats))


def in_rounds(texts: list[str], size: int, repeats: int) -> list[list[str]]:
    return [texts[number * size : (number + 1) * size] for number in range(repeats + 1)]


def measured(folder: str, dtype: str, collection: Path, repeats: int) -> dict[str, Any]:
    """All of a model but its loading, in this process."""
    began, sizes = time.perf_counter(), {"imported": memory()}
    model = plain_model(folder, dtype)
    model.max_seq_length = min(TOKENS, model.max_seq_length or TOKENS)
    encoder = KeyTokenEncoder(model, cache_size=0)
    sizes["loaded"] = memory()
    documents = read_collection(collection).documents
    texts = [text for text, _ in zip(texts_of(documents, model.tokenizer), range((repeats + 1) * BATCH), strict=False)]
    result = {"vocab_size": len(model.tokenizer), "dimension": encoder.head.lm_head_dimension}
    result["max_seq_length"] = model.max_seq_length
    if not encoder.needs_calibration:
        result["lm_head"] = same_passes(encoder, texts, repeats)
    result["calibration"] = calibration_cost(encoder, documents[:CALIBRATED])
    sizes["calibrated"] = memory()
    result["ridge_decoder"] = same_passes(encoder, texts, repeats)
    sizes["used"] = memory()
    result["whole_calls"] = whole_calls(encoder, documents, CALLS)
    return {**result, "memory_mb": sizes, "clock_s": time.perf_counter() - began}


def in_own_process(part: str, model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, model, "--texts", str(arguments.texts), "--repeats", str(arguments.repeats)]
    done = subprocess.run([*command, "--part", part], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME=FOLDER[:DTYPE]", help="DTYPE: float32, bfloat16")
    parser.add_argument("--texts", type=Path, required=True, help="collection in the BEIR layout")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of encoding")
    parser.add_argument("--loads", type=int, default=3, help="processes that load the model")
    parser.add_argument("--part", choices=["model", "encoder", "rest"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part is not None:
        _, folder, dtype = split(arguments.models[0])
        if arguments.part == "rest":
            print(json.dumps(measured(folder, dtype, arguments.texts, arguments.repeats)))
        else:
            print(json.dumps(loading(arguments.part, folder, dtype)))
        return
    found = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {"models": {}}
    for model in arguments.models:
        name, folder, dtype = split(model)
        runs = {
            part: [in_own_process(part, model, arguments) for _ in range(arguments.loads)]
            for part in ("model", "encoder")
        }
        loads = {
            part: {
                **{clock: statistics.median(run[clock] for run in all_) for clock in ("processor_s", "clock_s")},
                **{moment: all_[-1][moment] for moment in ("before", "after")},
            }
            for part, all_ in runs.items()
        }
        weights = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
        found["models"][name] = {
            "dtype": dtype,
            "weights_mb": round(weights / 1e6),
            "loading": loads,
            **in_own_process("rest", model, arguments),
            "texts": arguments.texts.name,
            "env": environment(),
        }
        OUTPUT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    OUTPUT.with_name("published_models.md").write_text(page(found), encoding="utf-8")
    print(page(found))


def split(model: str) -> tuple[str, str, str]:
    """Name, folder and dtype of an argument."""
    name, _, place = model.partition("=")
    folder, _, dtype = place.partition(":")
    return name, folder, dtype or "float32"


if __name__ == "__main__":
    main()
