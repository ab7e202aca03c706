"""A calibration fitted elsewhere, and on fewer texts: nDCG@10 of key tokens.

python examples/benchmarks/transfer.py ../shared/data/collections/* --model tiny-embedder --cache vectors

Every collection is searched with the calibration of every other one, by its ridge decoder and by the LM head; with one
on some of its own documents; and, where --arxiv names a file of pairs, with one on so many other abstracts from it.
--parts measures some of the three, and leaves what the file of results has of the others. Takes the vectors that
quality.py keeps, and keeps those of the other abstracts there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ablation import score
from environment import RESULTS, write_results
from quality import load

from st_keytokens import Calibration, KeyTokenEncoder
from st_keytokens.evaluation import read_collection
from st_keytokens.evaluation.encoded import EncodedCollection, encode_collection, with_settings
from st_keytokens.pooled_vectors import pooled_vectors
from st_keytokens.readers import read_documents

Encoded = dict[str, EncodedCollection]
Measurement = tuple[str, str, dict[str, float]]  # the collection, what the calibration was fitted on, what was found

PARTS = ("transfer", "curves", "other_abstracts")
COUNTS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)


def measured(encoded: EncodedCollection, calibration: Calibration | None) -> dict[str, float]:
    """nDCG@10 with a calibration, by each decoder and without a forward pass, and its trust."""
    own, found = encoded.encoder, {}
    settings = own.head.get_config_dict()
    for name, decode_with in (("ridge", "ridge"), ("lm_head", "lm_head")):
        if calibration is None and decode_with == "ridge":
            continue
        encoder = with_settings(own, own.weighting, calibration, **{**settings, "decode_with": decode_with})
        found[name] = round(score(encoded, encoder)[0], 5)
    if calibration is not None:
        found["trust"] = round(calibration.corpus.decoded_trust, 3)
    return found


def sample(encoded: EncodedCollection, count: int) -> Calibration:
    """A calibration on some of a collection's documents, the same ones whatever their order."""
    documents = encoded.collection.documents
    order = sorted(range(len(documents)), key=lambda row: hashlib.sha256(documents[row].encode()).digest())[:count]
    texts = [documents[row] for row in order]
    return Calibration.fit(encoded.encoder, texts, embeddings=encoded.document_pooled[order], show_progress_bar=False)


def transfer(encoded: Encoded) -> Iterator[Measurement]:
    """Every collection with the calibration of every one, and with none."""
    for name, target in encoded.items():
        yield name, "none", measured(target, None)
        for source, other in encoded.items():
            yield name, source, measured(target, other.encoder.calibration)


def curves(encoded: Encoded) -> Iterator[Measurement]:
    """Every collection with calibrations on some of its documents, and on all."""
    for name, target in encoded.items():
        size = len(target.collection.documents)
        for count in (count for count in COUNTS if count < size):
            yield name, str(count), measured(target, sample(target, count))
        yield name, str(size), measured(target, target.encoder.calibration)


def other_abstracts(
    encoded: Encoded, encoder: KeyTokenEncoder, path: Path, limit: int, cache: Path
) -> Iterator[Measurement]:
    """Every collection with calibrations on the first abstracts of arXiv papers in a file of pairs."""
    records = read_documents(path, text_field="positive")
    found = (record.text for record in records if record.metadata["source"].startswith("arxiv"))
    texts = list(islice(found, limit))
    pooled, _ = pooled_vectors(encoder, texts, path=cache / f"abstracts-{encoder.model_name}", show_progress_bar=True)
    for count in sorted({min(count, len(texts)) for count in COUNTS}):
        calibration = Calibration.fit(encoder, texts[:count], embeddings=pooled[:count], show_progress_bar=False)
        for name, target in encoded.items():
            yield name, str(count), measured(target, calibration)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--model", choices=["tiny-embedder", "all-MiniLM-L6-v2"], required=True)
    parser.add_argument("--cache", type=Path, required=True, help="where quality.py keeps the embeddings")
    parser.add_argument("--arxiv", type=Path, help="JSON Lines of pairs whose positives are abstracts")
    parser.add_argument("--abstracts", type=int, default=max(COUNTS), help="at most so many of them")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    encoder = load(arguments.model)
    encoded = {
        path.name: encode_collection(read_collection(path), encoder, cache=arguments.cache)
        for path in arguments.collections
    }
    measurements = {"transfer": transfer(encoded), "curves": curves(encoded)}
    if arguments.arxiv is not None:
        measurements["other_abstracts"] = other_abstracts(
            encoded, encoder, arguments.arxiv, arguments.abstracts, arguments.cache
        )
    name = f"transfer-{arguments.model.lower()}"
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results: dict[str, Any] = {"model": arguments.model, **{part: kept.get(part, {}) for part in PARTS}}
    for part in (part for part in arguments.parts if part in measurements):
        results[part] = {collection: {} for collection in encoded}
        for collection, fitted_on, found in measurements[part]:
            results[part][collection][fitted_on] = found
            print(f"{part}, {collection}, {fitted_on}: {found}", flush=True)
            write_results(name, results)


if __name__ == "__main__":
    main()
