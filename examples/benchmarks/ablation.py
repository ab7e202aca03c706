"""Each ingredient of the default method off, one at a time, and every constant over a range: nDCG@10.

python examples/benchmarks/ablation.py DATA/collections/* --model tiny-embedder --cache vectors

Takes the vectors that quality_tokens.py keeps: only the sentences of the known-item search are embedded.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from environment import write_results
from quality_tokens import load

from st_keytokens import Calibration, KeyTokenEncoder
from st_keytokens.calibration import RidgeDecoder
from st_keytokens.evaluation import read_collection
from st_keytokens.evaluation.encoded import EncodedCollection, encode_collection, with_settings
from st_keytokens.evaluation.measures import measure_collection
from st_keytokens.evaluation.runs import sparse_run, tie_order


class _AsSolved(RidgeDecoder):
    """A decoder whose terms keep the lengths that the regression gave them."""

    def with_normalized_terms(self) -> RidgeDecoder:
        return self


@dataclass(frozen=True)
class Variant:
    """What differs from the default."""

    weighting: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    ridge: dict[str, Any] = field(default_factory=dict)
    trust: float | None = None
    has_normalized_terms: bool = True

    def encoder(self, own: KeyTokenEncoder) -> KeyTokenEncoder:
        """The encoder with these differences, for decoding what ``own`` has embedded."""
        calibration = copy.copy(own.calibration)
        if not isinstance(calibration, Calibration):
            raise SystemExit("The encoder has no calibration.")
        if self.trust is not None:
            calibration.decoded_trust = self.trust
        if self.ridge or not self.has_normalized_terms:
            calibration.ridge_decoder = partial(self._decoder, calibration.ridge_decoder)  # type: ignore[method-assign]
        settings = {**own.head.get_config_dict(), **self.head}
        return with_settings(own, replace(own.weighting, **self.weighting), calibration, **settings)

    def _decoder(self, solve: Callable[..., RidgeDecoder], **arguments: Any) -> RidgeDecoder:
        decoder = solve(**{**arguments, **self.ridge})
        if self.has_normalized_terms:
            return decoder
        return _AsSolved(decoder.term_ids, decoder.weight, decoder.mean)


INGREDIENTS = {
    "default": Variant(),
    "literal terms only (BM25)": Variant({"document_terms": "literal", "query_terms": "literal"}),
    "decoded terms only": Variant({"document_terms": "decoded", "query_terms": "decoded"}),
    "documents: literal terms only": Variant({"document_terms": "literal"}),
    "queries: literal terms only (no forward pass)": Variant({"query_terms": "literal"}),
    "decoded by the LM head": Variant(head={"decode_with": "lm_head"}),
    "decoded by the LM head, not standardised": Variant(head={"decode_with": "lm_head", "standardize": False}),
    "trust in decoded terms fixed at 1": Variant(trust=1.0),
    "trust in decoded terms fixed at 0.5": Variant(trust=0.5),
    "no flattening of the spectrum": Variant(ridge={"spectral_power": 1.0}),
    "terms of the decoder not normalised": Variant(has_normalized_terms=False),
}
SENSITIVITY = {
    "regularization": [Variant(ridge={"regularization": v}) for v in (0.03, 0.1, 1.0, 3.0)],
    "spectral_power": [Variant(ridge={"spectral_power": v}) for v in (0.0, 0.25, 0.75)],
    "max_active_dims": [Variant(head={"max_active_dims": v}) for v in (32, 64, 128, 512)],
    "query_max_active_dims": [Variant(head={"query_max_active_dims": v}) for v in (16, 32, 64, 192)],
    "document_decoded_weight": [Variant({"document_decoded_weight": v}) for v in (0.25, 0.35, 0.7, 1.0)],
    "query_decoded_weight": [Variant({"query_decoded_weight": v}) for v in (0.5, 0.7, 1.4, 2.0)],
    "k1": [Variant({"k1": v}) for v in (0.9, 1.5, 2.0)],
    "b": [Variant({"b": v}) for v in (0.4, 0.6, 0.9)],
    "max_document_terms": [Variant({"max_document_terms": v}) for v in (32, 64, 96, 128, 192, 256)],
}


def variants() -> dict[str, Variant]:
    """All of them by name."""
    named = dict(INGREDIENTS)
    for setting, found in SENSITIVITY.items():
        for variant in found:
            values = {**variant.weighting, **variant.head, **variant.ridge}
            named[f"{setting} = {values[setting]}"] = variant
    return named


def score(encoded: EncodedCollection, encoder: KeyTokenEncoder) -> tuple[float, float]:
    """nDCG@10 of key tokens with this encoder, and the terms of a document."""
    documents = encoded.sparsify_documents(encoder)
    queries = encoded.sparsify_queries(encoder)
    ties = tie_order(encoded.collection.doc_ids)
    run = sparse_run(documents.to_scipy(), queries.to_scipy(), ties, 100, forward_passes=1, seconds={})
    measured = measure_collection(encoded.collection, run.rankings)["nDCG@10"]
    return float(np.mean(measured)), float(documents.active_dims.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--model", choices=["tiny-embedder", "all-MiniLM-L6-v2"], required=True)
    parser.add_argument("--cache", type=Path, required=True, help="where quality_tokens.py keeps the embeddings")
    arguments = parser.parse_args()
    encoder = load(arguments.model)
    results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in variants()}
    for path in arguments.collections:
        encoded = encode_collection(read_collection(path), encoder, cache=arguments.cache)
        for name, variant in variants().items():
            found, terms = score(encoded, variant.encoder(encoded.encoder))
            results[name][path.name] = {"nDCG@10": round(found, 5), "terms_a_document": round(terms, 1)}
            print(f"{path.name}: {name}: {found:.4f}", flush=True)
        write_results(f"ablation-{arguments.model.lower()}", {"model": arguments.model, "variants": results})


if __name__ == "__main__":
    main()
