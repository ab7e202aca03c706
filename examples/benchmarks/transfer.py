"""A calibration fitted elsewhere, and on fewer texts: nDCG@10 of key tokens.

python examples/benchmarks/transfer.py ../shared/data/collections/* --model tiny-embedder --cache vectors

Every collection is searched with the calibration of every other one, by its ridge decoder and by the LM head; with one
on some of its own documents; and, where --arxiv names a file of pairs, with one on so many other abstracts from it.
Takes the vectors that quality.py keeps, and keeps those of the other abstracts there.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ablation import score
from environment import write_results
from quality import load

from st_keytokens import Calibration, KeyTokenEncoder
from st_keytokens.evaluation import read_collection
from st_keytokens.evaluation.encoded import EncodedCollection, encode_collection, with_settings
from st_keytokens.pooled_vectors import pooled_vectors
from st_keytokens.readers import read_documents

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


def other_abstracts(encoder: KeyTokenEncoder, path: Path, cache: Path) -> Iterator[tuple[int, Calibration]]:
    """Calibrations on the first abstracts of arXiv papers in a file of pairs, for each of the counts."""
    records = read_documents(path, text_field="positive")
    found = (record.text for record in records if record.metadata["source"].startswith("arxiv"))
    texts = list(islice(found, max(COUNTS)))
    pooled, _ = pooled_vectors(encoder, texts, path=cache / f"abstracts-{encoder.model_name}", show_progress_bar=True)
    for count in sorted({min(count, len(texts)) for count in COUNTS}):
        yield (
            count,
            Calibration.fit(encoder, texts[:count], embeddings=pooled[:count], show_progress_bar=False),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--model", choices=["tiny-embedder", "all-MiniLM-L6-v2"], required=True)
    parser.add_argument("--cache", type=Path, required=True, help="where quality.py keeps the embeddings")
    parser.add_argument("--arxiv", type=Path, help="JSON Lines of pairs whose positives are abstracts")
    arguments = parser.parse_args()
    encoder = load(arguments.model)
    encoded = {
        path.name: encode_collection(read_collection(path), encoder, cache=arguments.cache)
        for path in arguments.collections
    }
    transfer: dict[str, dict[str, dict[str, float]]] = {}
    curves: dict[str, dict[str, dict[str, float]]] = {}
    abstracts: dict[str, dict[str, dict[str, float]]] = {name: {} for name in encoded}

    def save() -> None:
        results = {"model": arguments.model, "transfer": transfer, "curves": curves, "other_abstracts": abstracts}
        write_results(f"transfer-{arguments.model.lower()}", results)

    for name, target in encoded.items():
        transfer[name] = {"none": measured(target, None)}
        for source, other in encoded.items():
            transfer[name][source] = measured(target, other.encoder.calibration)
            print(f"{name} calibrated on {source}: {transfer[name][source]}", flush=True)
        save()
    for name, target in encoded.items():
        curves[name] = {}
        for count in COUNTS:
            if count < len(target.collection.documents):
                curves[name][str(count)] = measured(target, sample(target, count))
                print(f"{name} calibrated on {count}: {curves[name][str(count)]}", flush=True)
        curves[name][str(len(target.collection.documents))] = transfer[name][name]
        save()
    if arguments.arxiv is None:
        return
    for count, calibration in other_abstracts(encoder, arguments.arxiv, arguments.cache):
        for name, target in encoded.items():
            abstracts[name][str(count)] = measured(target, calibration)
            print(f"{name} calibrated on {count} other abstracts: {abstracts[name][str(count)]}", flush=True)
        save()


if __name__ == "__main__":
    main()
