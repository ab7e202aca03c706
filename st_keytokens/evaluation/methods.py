"""The methods of a comparison. All start from the same vectors of one pass over documents and queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.bm25 import bm25_vectors, split_words
from st_keytokens.evaluation.encoded import EncodedCollection, Stopwatch, with_settings
from st_keytokens.evaluation.runs import Run, dense_run, fused_run, sparse_run, tie_order
from st_keytokens.index.fusion import FUSIONS, FusionName
from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.terms.weighting import METHODS

__all__ = ["COMPARED_METHODS", "ComparedMethod", "in_text_weights", "run_methods"]

GetRun = Callable[[str], Run]


class Depths(NamedTuple):
    """How many documents are ranked for a query, and how many of each part are fused."""

    ranked: int
    fused: int


@dataclass(frozen=True)
class ComparedMethod:
    """One method of a comparison.

    Attributes:
        description: What it is, in a sentence.
        run: Makes the run of an encoded collection; other methods' runs come from the third argument.
    """

    description: str
    run: Callable[[EncodedCollection, Depths, GetRun], Run]


def run_methods(
    encoded: EncodedCollection,
    names: Sequence[str],
    *,
    depth: int = 1000,
    fusion_depth: int = 1000,
    show_progress_bar: bool = False,
) -> dict[str, Run]:
    """Runs methods on the same vectors.

    Args:
        encoded: The collection after its pass.
        names: Of ``COMPARED_METHODS``.
        depth: How many documents are ranked for a query.
        fusion_depth: How many of each part are fused; at most ``depth`` are there.
        show_progress_bar: Whether to show one.

    Returns:
        A run for each name, in their order.

    Raises:
        ValueError: If a name is unknown, or a depth is below 1.
        ImportError: If a method needs a package that is not installed.
    """
    if unknown := [name for name in names if name not in COMPARED_METHODS]:
        raise ValueError(f"methods must be among {', '.join(COMPARED_METHODS)}, got {unknown[0]!r}.")
    for label, value in (("depth", depth), ("fusion_depth", fusion_depth)):
        if value < 1:
            raise ValueError(f"{label} must be at least 1, got {value}.")
    depths = Depths(depth, fusion_depth)
    runs: dict[str, Run] = {}

    def get(name: str) -> Run:
        if name not in runs:
            runs[name] = COMPARED_METHODS[name].run(encoded, depths, get)
        return runs[name]

    bar = tqdm(names, unit="method", desc="Comparing", disable=not show_progress_bar)
    return {name: get(name) for name in bar}


def in_text_weights(
    encoder: KeyTokenEncoder,
    pooled: NDArray[np.float32],
    texts: Sequence[str],
    *,
    max_active_dims: int = 128,
    batch_size: int = 256,
) -> SparseEmbeddings:
    """PromptReps' weights: the scores of the tokens that occur in the text, as ``log(1 + relu(score))``.

    Args:
        encoder: Whose LM head and vocabulary.
        pooled: Pooled vectors, shape ``(N, pooled_dimension)``.
        texts: Their texts.
        max_active_dims: Terms kept of a text.
        batch_size: Rows decoded at a time; bounds the memory.

    Returns:
        One row a text.

    Source:
        Zhuang et al. 2024 (arXiv 2404.18424). Differs from it in: the vector is an embedder's, not that of a prompt
        that asks for one word; variants of a token are folded, weights are not rounded, and stop words stay.
    """
    head = with_settings(encoder, encoder.weighting, None, decode_with="lm_head").head
    literal, size = encoder.literal_terms(texts), encoder.vocabulary.vocab_size
    rows = [SparseEmbeddings.empty(0, size)]
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            scores = head.decode_scores(torch.from_numpy(pooled[start : start + batch_size]))
            folded = torch.full_like(scores, float("-inf"))
            folded.scatter_reduce_(1, head.terms.expand_as(scores), scores, "amax")
            weights = torch.log1p(torch.relu(folded)).cpu().numpy()
            kept = [np.unique(terms) for terms in literal[start : start + batch_size]]
            dicts = [
                {int(term): float(row[term]) for term in terms if row[term] > 0}
                for terms, row in zip(kept, weights, strict=True)
            ]
            rows.append(SparseEmbeddings.from_dicts(dicts, size))
    return SparseEmbeddings.concatenate(rows).prune(max_active_dims)


def _dense(encoded: EncodedCollection, depths: Depths, get: GetRun) -> Run:
    ties = tie_order(encoded.collection.doc_ids)
    return dense_run(encoded.encoder.model, encoded.document_dense, encoded.query_dense, ties, depths.ranked)


def _bm25(terms: Literal["words", "tokens"]) -> ComparedMethod:
    def run(encoded: EncodedCollection, depths: Depths, get: GetRun) -> Run:
        def split(texts: list[str]) -> list[list[str]]:
            if terms == "words":
                return split_words(texts)
            return [list(map(str, ids)) for ids in encoded.encoder.literal_terms(texts)]

        watch, collection = Stopwatch(), encoded.collection
        with watch.part("weigh_queries"):
            queries = split(collection.queries)
        with watch.part("weigh_documents"):
            vectors = bm25_vectors(split(collection.documents), queries)
        ties = tie_order(collection.doc_ids)
        return sparse_run(*vectors, ties, depths.ranked, forward_passes=0, seconds=watch.seconds)

    of = "words, English stop words left out" if terms == "words" else "the model's own tokens"
    return ComparedMethod(f"BM25 of bm25s over {of}", run)


def _nie2025(correction: str) -> ComparedMethod:
    method = METHODS["nie2025"]

    def run(encoded: EncodedCollection, depths: Depths, get: GetRun) -> Run:
        settings = {**method.head, "correction": correction}
        encoder = with_settings(encoded.encoder, method.weighting, encoded.encoder.calibration, **settings)
        return _key_tokens(encoded, depths, encoder)

    how = "without" if correction == "none" else "with"
    return ComparedMethod(f"Nie et al. 2025, {how} first-component removal", run)


def _promptreps(encoded: EncodedCollection, depths: Depths, get: GetRun) -> Run:
    watch, collection, encoder = Stopwatch(), encoded.collection, encoded.encoder
    with watch.part("weigh_documents"):
        documents = in_text_weights(encoder, encoded.document_pooled, collection.documents)
    with watch.part("weigh_queries"):
        queries = in_text_weights(encoder, encoded.query_pooled, collection.queries)
    return _scored(encoded, depths, documents, queries, 1, watch.seconds)


def _ours(encoded: EncodedCollection, depths: Depths, get: GetRun) -> Run:
    return _key_tokens(encoded, depths, encoded.encoder)


def _ours_lookup(encoded: EncodedCollection, depths: Depths, get: GetRun) -> Run:
    watch = Stopwatch()
    documents, seconds = encoded.documents
    with watch.part("weigh_queries"):
        queries = encoded.encoder.encode_query(encoded.collection.queries, query="lookup").sparse
    return _scored(encoded, depths, documents, queries, 0, {"weigh_documents": seconds, **watch.seconds})


def _ours_pruned(encoded: EncodedCollection, depths: Depths, get: GetRun) -> Run:
    own = encoded.encoder
    weighting = replace(own.weighting, max_document_terms=64)
    return _key_tokens(encoded, depths, with_settings(own, weighting, own.calibration, **own.head.get_config_dict()))


def _ours_by_lm_head(encoded: EncodedCollection, depths: Depths, get: GetRun) -> Run:
    own = encoded.encoder
    settings = {**own.head.get_config_dict(), "decode_with": "lm_head"}
    return _key_tokens(encoded, depths, with_settings(own, own.weighting, own.calibration, **settings))


def _key_tokens(encoded: EncodedCollection, depths: Depths, encoder: KeyTokenEncoder) -> Run:
    watch = Stopwatch()
    if encoder is encoded.encoder:
        documents, watch.seconds["weigh_documents"] = encoded.documents
    else:
        with watch.part("weigh_documents"):
            documents = encoded.sparsify_documents(encoder)
    with watch.part("weigh_queries"):
        queries = encoded.sparsify_queries(encoder)
    return _scored(encoded, depths, documents, queries, 1, watch.seconds)


def _scored(
    encoded: EncodedCollection,
    depths: Depths,
    documents: SparseEmbeddings,
    queries: SparseEmbeddings,
    forward_passes: int,
    seconds: dict[str, float],
) -> Run:
    ties = tie_order(encoded.collection.doc_ids)
    matrices = documents.to_scipy(), queries.to_scipy()
    return sparse_run(*matrices, ties, depths.ranked, forward_passes=forward_passes, seconds=seconds)


def _hybrid(part: str, fusion: FusionName) -> ComparedMethod:
    def run(encoded: EncodedCollection, depths: Depths, get: GetRun) -> Run:
        weights = encoded.encoder.fusion_weights if fusion == "adaptive" else None
        ties = tie_order(encoded.collection.doc_ids)
        return fused_run(get("dense"), get(part), FUSIONS[fusion], ties, depths.ranked, depths.fused, weights)

    how = {
        "rrf": "reciprocal ranks (k = 60)",
        "score": "the sum of min-max normalised scores",
        "adaptive": "min-max normalised scores, weighed by the calibration's trust and the query's lead",
    }
    return ComparedMethod(f"dense and {part} fused by {how[fusion]}", run)


_PARTNERS = ("bm25-words", "bm25-tokens", "key-tokens", "key-tokens-lookup")

COMPARED_METHODS: dict[str, ComparedMethod] = {
    "dense": ComparedMethod("the model's own embeddings and similarity, exact", _dense),
    "bm25-words": _bm25("words"),
    "bm25-tokens": _bm25("tokens"),
    "nie2025": _nie2025("none"),
    "nie2025-remove": _nie2025("remove"),
    "promptreps": ComparedMethod(
        "PromptReps' weighting: scores of the tokens in the text, log(1 + relu)", _promptreps
    ),
    "key-tokens": ComparedMethod("ours, a forward pass for the query", _ours),
    "key-tokens-lookup": ComparedMethod("ours, no forward pass for the query", _ours_lookup),
    "key-tokens-64": ComparedMethod("ours, documents pruned to their 64 most important terms", _ours_pruned),
    "key-tokens-lm-head": ComparedMethod("ours, decoded by the LM head, not the ridge decoder", _ours_by_lm_head),
    **{f"dense+{part}-rrf": _hybrid(part, "rrf") for part in _PARTNERS},
    **{f"dense+{part}-score": _hybrid(part, "score") for part in _PARTNERS},
    **{f"dense+{part}-adaptive": _hybrid(part, "adaptive") for part in _PARTNERS},
}
"""The methods by name."""
