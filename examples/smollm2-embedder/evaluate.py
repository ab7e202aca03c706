"""Measures dense retrieval by steps of training: nDCG@10 of the untuned model and of each adapter that was kept.

    python examples/smollm2-embedder/evaluate.py --base models/smollm2-135m --adapters /tmp/smollm2/adapter-* \
        --data ../shared/data --collections cranfield scifact --output examples/smollm2-embedder/steps.json

What is in the output already is kept, so that adapters are measured as they come.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from merge import load
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from st_keytokens.evaluation import Collection, read_collection
from st_keytokens.evaluation.measures import measure_collection
from st_keytokens.evaluation.runs import dense_run, tie_order

MAX_SEQ_LENGTH = 256


def dense_quality(model: SentenceTransformer, collection: Collection) -> float:
    documents = model.encode(collection.documents, batch_size=16, normalize_embeddings=True, show_progress_bar=True)
    queries = model.encode(collection.queries, batch_size=16, normalize_embeddings=True)
    run = dense_run(model, documents, queries, tie_order(collection.doc_ids), 100)
    return float(measure_collection(collection, run.rankings)["nDCG@10"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, nargs="*", default=[])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds collections/")
    parser.add_argument("--collections", nargs="+", default=["cranfield"])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    found = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    adapters: dict[int, Path | None] = {0: None}
    adapters |= {json.loads((path / "training.json").read_text())["step"]: path for path in arguments.adapters}
    for step, adapter in sorted(adapters.items()):
        row = found.setdefault(str(step), {})
        wanted = [name for name in arguments.collections if name not in row]
        model = load(arguments.base, adapter) if wanted else None
        if model is not None:
            model.max_seq_length = MAX_SEQ_LENGTH
        for name in wanted:
            began = time.monotonic()
            row[name] = round(dense_quality(model, read_collection(arguments.data / "collections" / name)), 4)
            arguments.output.write_text(json.dumps(found, indent=2) + "\n")
            tqdm.write(f"step {step}: {name} {row[name]:.4f} ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
