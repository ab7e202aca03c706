"""A calibration fitted elsewhere, on fewer texts, and on few that are all there are: nDCG@10 of key tokens.

python examples/benchmarks/transfer.py DATA/collections/* --model tiny-embedder --cache vectors

Every collection is searched with the calibration of every other one, by its ridge decoder and by the LM head; with one
on some of its own documents; and, where --arxiv names a file of pairs, with one on so many other abstracts from it.
Parts of a collection are searched with a calibration on just the documents of the part. Below a thousand texts there
is also the ridge decoder that is not shrunk towards the LM head ("unshrunk"). --parts and --counts measure some of it,
and leave what the file of results has of the rest. Takes the vectors that quality_tokens.py keeps, and
keeps those of the other abstracts there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ablation import Variant, score
from environment import RESULTS, write_results
from quality_tokens import load

from st_keytokens import Calibration, KeyTokenEncoder
from st_keytokens.calibration.calibration import ENOUGH_DOCUMENTS
from st_keytokens.encoder.pooled_vectors import pooled_vectors
from st_keytokens.evaluation import Collection, read_collection
from st_keytokens.evaluation.encoded import EncodedCollection, encode_collection, with_settings
from st_keytokens.shared.document_files import Record, read_documents

Encoded = dict[str, EncodedCollection]
Measurement = tuple[str, str, dict[str, float]]  # the collection, what the calibration was fitted on, what was found

PARTS = ("transfer", "curves", "other_abstracts", "small")
NUM_SMALL = 8  # parts of a collection that are searched, where it has so many
COUNTS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)


def measured(encoded: EncodedCollection, calibration: Calibration | None) -> dict[str, float]:
    """nDCG@10 with a calibration, by each decoder, and its trust."""
    own, weighting = encoded.encoder, encoded.encoder.weighting
    settings, encoders = own.head.get_config_dict(), {}
    if calibration is not None:
        encoders["ridge"] = with_settings(own, weighting, calibration, **{**settings, "decode_with": "ridge"})
        if calibration.document_count < ENOUGH_DOCUMENTS:
            encoders["unshrunk"] = Variant(ridge={"lm_head_shrinkage": 0.0}).encoder(encoders["ridge"])
    encoders["lm_head"] = with_settings(own, weighting, calibration, **{**settings, "decode_with": "lm_head"})
    found = {name: round(score(encoded, encoder)[0], 5) for name, encoder in encoders.items()}
    return found if calibration is None else {**found, "trust": round(calibration.corpus.decoded_trust, 3)}


def by_hash(encoded: EncodedCollection) -> list[int]:
    """Positions of a collection's documents in an order that is chance, and always the same."""
    documents = encoded.collection.documents
    return sorted(range(len(documents)), key=lambda row: hashlib.sha256(documents[row].encode()).digest())


def sample(encoded: EncodedCollection, rows: list[int]) -> Calibration:
    """A calibration on some of a collection's documents."""
    texts = [encoded.collection.documents[row] for row in rows]
    return Calibration.fit(encoded.encoder, texts, embeddings=encoded.document_pooled[rows], show_progress_bar=False)


def part_of(encoded: EncodedCollection, rows: list[int]) -> EncodedCollection:
    """Some documents of a collection as one of their own, with the queries that ask for one of them."""
    whole = encoded.collection
    documents = [Record(whole.doc_ids[row], whole.documents[row]) for row in rows]
    queries = [Record(name, text) for name, text in zip(whole.query_ids, whole.queries, strict=True)]
    judgements = [(query, doc, value) for query, found in whole.qrels.items() for doc, value in found.items()]
    kept = {record.id for record in documents}
    part = Collection.build(whole.name, documents, queries, [found for found in judgements if found[1] in kept])
    asked = [whole.query_ids.index(name) for name in part.query_ids]
    return replace(
        encoded,
        collection=part,
        document_pooled=encoded.document_pooled[rows],
        query_pooled=encoded.query_pooled[asked],
        document_dense=encoded.document_dense[rows],
        query_dense=encoded.query_dense[asked],
    )


def transfer(encoded: Encoded) -> Iterator[Measurement]:
    """Every collection with the calibration of every one, and with none."""
    for name, target in encoded.items():
        yield name, "none", measured(target, None)
        for source, other in encoded.items():
            yield name, source, measured(target, other.encoder.calibration)


def curves(encoded: Encoded, counts: list[int]) -> Iterator[Measurement]:
    """Every collection with calibrations on some of its documents, and on all."""
    for name, target in encoded.items():
        order = by_hash(target)
        for count in (count for count in counts if count < len(order)):
            yield name, str(count), measured(target, sample(target, order[:count]))
        yield name, str(len(order)), measured(target, target.encoder.calibration)


def small(encoded: Encoded, counts: list[int]) -> Iterator[Measurement]:
    """Parts of every collection, each with a calibration on all that it has: means over the queries."""
    for name, whole in encoded.items():
        order = by_hash(whole)
        for count in (count for count in counts if count < ENOUGH_DOCUMENTS):
            sums, num_queries = Counter[str](), 0
            for part in range(min(NUM_SMALL, len(order) // count)):
                searched = part_of(whole, order[part * count : (part + 1) * count])
                asked = len(searched.collection.queries)
                num_queries += asked
                for decoder, value in measured(searched, sample(searched, [*range(count)])).items():
                    sums[decoder] += value * asked
            yield name, str(count), {decoder: round(value / num_queries, 5) for decoder, value in sums.items()}


def other_abstracts(
    encoded: Encoded, counts: list[int], encoder: KeyTokenEncoder, path: Path, limit: int, cache: Path
) -> Iterator[Measurement]:
    """Every collection with calibrations on the first abstracts of arXiv papers in a file of pairs."""
    records = read_documents(path, text_field="positive")
    found = (record.text for record in records if record.metadata["source"].startswith("arxiv"))
    texts = list(islice(found, limit))
    pooled, _ = pooled_vectors(encoder, texts, path=cache / f"abstracts-{encoder.model_name}", show_progress_bar=True)
    for count in sorted({min(count, len(texts)) for count in counts}):
        calibration = Calibration.fit(encoder, texts[:count], embeddings=pooled[:count], show_progress_bar=False)
        for name, target in encoded.items():
            yield name, str(count), measured(target, calibration)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--model", choices=["tiny-embedder", "all-MiniLM-L6-v2"], required=True)
    parser.add_argument("--cache", type=Path, required=True, help="where quality_tokens.py keeps the embeddings")
    parser.add_argument("--arxiv", type=Path, help="JSON Lines of pairs whose positives are abstracts")
    parser.add_argument("--abstracts", type=int, default=max(COUNTS), help="at most so many of them")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--counts", nargs="+", type=int, choices=COUNTS, default=COUNTS, help="of texts to fit on")
    arguments = parser.parse_args()
    encoder = load(arguments.model)
    encoded = {
        path.name: encode_collection(read_collection(path), encoder, cache=arguments.cache)
        for path in arguments.collections
    }
    counts = list(arguments.counts)
    measurements = {"transfer": transfer(encoded), "curves": curves(encoded, counts), "small": small(encoded, counts)}
    if arguments.arxiv is not None:
        measurements["other_abstracts"] = other_abstracts(
            encoded, counts, encoder, arguments.arxiv, arguments.abstracts, arguments.cache
        )
    name = f"transfer-{arguments.model.lower()}"
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results: dict[str, Any] = {"model": arguments.model, **{part: kept.get(part, {}) for part in PARTS}}
    for part in (part for part in arguments.parts if part in measurements):
        before = results[part] if counts != list(COUNTS) else {}
        results[part] = {collection: before.get(collection, {}) for collection in encoded}
        for collection, fitted_on, found in measurements[part]:
            results[part][collection][fitted_on] = found
            print(f"{part}, {collection}, {fitted_on}: {found}", flush=True)
            write_results(name, results)


if __name__ == "__main__":
    main()
