"""The methods of a comparison. All start from the same vectors of one pass over documents and queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.bm25 import SPLITTERS, bm25_vectors
from st_keytokens.evaluation.encoded import EncodedCollection, Stopwatch, with_settings
from st_keytokens.evaluation.runs import FUSION_DEPTH, Run, dense_run, fused_run, sparse_run
from st_keytokens.index.fusion import FUSIONS, FusionName
from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.terms.weighting import METHODS

__all__ = ["COMPARED_METHODS", "ComparedMethod"]


@dataclass(frozen=True)
class ComparedMethod:
    """One method of a comparison.

    Attributes:
        description: What it is, in a sentence.
        run: Makes its run of a collection.
    """

    description: str
    run: Callable[[MethodRuns], Run]


class MethodRuns:
    """The runs of methods on one collection, each made once, whichever methods need it."""

    def __init__(self, encoded: EncodedCollection, depth: int, fusion_depth: int) -> None:
        self.encoded, self.depth, self.fusion_depth = encoded, depth, fusion_depth
        self._made: dict[str, Run] = {}

    def __getitem__(self, name: str) -> Run:
        if name not in self._made:
            self._made[name] = COMPARED_METHODS[name].run(self)
        return self._made[name]

    def by_terms(
        self, documents: SparseEmbeddings, queries: SparseEmbeddings, forward_passes: int, seconds: dict[str, float]
    ) -> Run:
        """Ranks by the vectors of a method; see :func:`~st_keytokens.evaluation.runs.sparse_run`."""
        vectors = documents.to_scipy(), queries.to_scipy()
        return sparse_run(*vectors, self.encoded.ties, self.depth, forward_passes=forward_passes, seconds=seconds)


def check_methods(names: Iterable[str], **depths: int) -> None:
    """Raises ValueError if a method is unknown, or a depth below 1."""
    if unknown := [name for name in names if name not in COMPARED_METHODS]:
        raise ValueError(f"methods must be among {', '.join(COMPARED_METHODS)}, got {unknown[0]!r}.")
    for label, value in depths.items():
        if value < 1:
            raise ValueError(f"{label} must be at least 1, got {value}.")


def run_methods(
    encoded: EncodedCollection,
    names: Sequence[str],
    *,
    depth: int = 1000,
    fusion_depth: int = FUSION_DEPTH,
    show_progress_bar: bool = False,
) -> dict[str, Run]:
    """Runs methods of ``COMPARED_METHODS`` on the same vectors; arguments are those of ``run_comparison``."""
    check_methods(names, depth=depth, fusion_depth=fusion_depth)
    runs = MethodRuns(encoded, depth, fusion_depth)
    bar = tqdm(names, unit="method", desc="Comparing", disable=not show_progress_bar)
    return {name: runs[name] for name in bar}


def in_text_weights(
    encoder: KeyTokenEncoder,
    pooled: NDArray[np.float32],
    texts: Sequence[str],
    *,
    max_active_dims: int = 128,
    batch_size: int = 256,
) -> SparseEmbeddings:
    """PromptReps' weights: the scores of the tokens that occur in the text, as ``log(1 + relu(score))``.

    Source:
        Zhuang et al. 2024 (arXiv 2404.18424). Differs from it in: the vector is an embedder's, not that of a prompt
        that asks for one word; variants of a token are folded, weights are not rounded, and stop words stay.
    """
    encoder = encoder.over_tokens()
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


def _dense(runs: MethodRuns) -> Run:
    encoded = runs.encoded
    return dense_run(encoded.encoder.model, encoded.document_dense, encoded.query_dense, encoded.ties, runs.depth)


def _bm25(name: str, of: str) -> ComparedMethod:
    def run(runs: MethodRuns) -> Run:
        watch, encoded, split = Stopwatch(), runs.encoded, SPLITTERS[name]
        with watch.part("weigh_queries"):
            queries = split(encoded.encoder, encoded.collection.queries)
        with watch.part("weigh_documents"):
            vectors = bm25_vectors(split(encoded.encoder, encoded.collection.documents), queries)
        return sparse_run(*vectors, encoded.ties, runs.depth, forward_passes=0, seconds=watch.seconds)

    return ComparedMethod(f"BM25 of bm25s over {of}", run)


def _promptreps(runs: MethodRuns) -> Run:
    watch, encoded = Stopwatch(), runs.encoded
    with watch.part("weigh_documents"):
        documents = in_text_weights(encoded.encoder, encoded.document_pooled, encoded.collection.documents)
    with watch.part("weigh_queries"):
        queries = in_text_weights(encoded.encoder, encoded.query_pooled, encoded.collection.queries)
    return runs.by_terms(documents, queries, 1, watch.seconds)


def _key_tokens(
    description: str,
    changed: Callable[[KeyTokenEncoder], KeyTokenEncoder] | None = None,
    *,
    query: Literal["encode", "lookup", "hybrid"] = "encode",
) -> ComparedMethod:
    """Key tokens with the encoder's own settings, or changed ones; queries with a pass, without, or as in a hybrid."""

    def run(runs: MethodRuns) -> Run:
        watch, encoded = Stopwatch(), runs.encoded
        if changed is None:
            encoder = encoded.encoder
            documents, watch.seconds["weigh_documents"] = encoded.documents
        else:
            encoder = changed(encoded.encoder)
            with watch.part("weigh_documents"):
                documents = encoded.sparsify_documents(encoder)
        with watch.part("weigh_queries"):
            texts = encoded.collection.queries
            if query == "lookup":
                queries = encoder.encode_query(texts, query="lookup").sparse
            else:
                queries = encoded.sparsify_queries(encoder)
                queries = encoder.hybrid_query(texts, queries) if query == "hybrid" else queries
        return runs.by_terms(documents, queries, 0 if query == "lookup" else 1, watch.seconds)

    return ComparedMethod(description, run)


def _nie2025(encoder: KeyTokenEncoder, correction: str) -> KeyTokenEncoder:
    method, encoder = METHODS["nie2025"], encoder.over_tokens()
    return with_settings(encoder, method.weighting, encoder.calibration, **{**method.head, "correction": correction})


def _pruned(encoder: KeyTokenEncoder) -> KeyTokenEncoder:
    weighting = replace(encoder.weighting, max_document_terms=64)
    return with_settings(encoder, weighting, encoder.calibration, **encoder.head.get_config_dict())


def _by_lm_head(encoder: KeyTokenEncoder) -> KeyTokenEncoder:
    settings = {**encoder.head.get_config_dict(), "decode_with": "lm_head"}
    return with_settings(encoder, encoder.weighting, encoder.calibration, **settings)


def _hybrid(part: str, fusion: FusionName) -> ComparedMethod:
    def run(runs: MethodRuns) -> Run:
        weights = runs.encoded.encoder.fusion_weights if fusion == "adaptive" else None
        return fused_run(
            runs["dense"], runs[part], FUSIONS[fusion], runs.encoded.ties, runs.depth, runs.fusion_depth, weights
        )

    return ComparedMethod(f"dense and {part} fused by {_FUSED_BY[fusion]}", run)


_FUSED_BY: dict[FusionName, str] = {
    "rrf": "reciprocal ranks (k = 60)",
    "score": "the sum of min-max normalised scores",
    "adaptive": "min-max normalised scores, weighed by the calibration's trust and the query's lead",
}
_PARTNERS = ("bm25-words", "bm25-stemmed", "bm25-tokens", "key-tokens", "key-tokens-lookup", "key-tokens-hybrid")

COMPARED_METHODS: dict[str, ComparedMethod] = {
    "dense": ComparedMethod("the model's own embeddings and similarity, exact", _dense),
    "bm25-words": _bm25("bm25-words", "words, English stop words left out"),
    "bm25-stemmed": _bm25("bm25-stemmed", "stemmed words, English stop words left out"),
    "bm25-tokens": _bm25("bm25-tokens", "the model's own tokens"),
    "nie2025": _key_tokens(
        "Nie et al. 2025, without first-component removal", lambda encoder: _nie2025(encoder, "none")
    ),
    "nie2025-remove": _key_tokens(
        "Nie et al. 2025, with first-component removal", lambda encoder: _nie2025(encoder, "remove")
    ),
    "promptreps": ComparedMethod(
        "PromptReps' weighting: scores of the tokens in the text, log(1 + relu)", _promptreps
    ),
    "key-tokens": _key_tokens("ours, a forward pass for the query"),
    "key-tokens-lookup": _key_tokens("ours, no forward pass for the query", query="lookup"),
    "key-tokens-hybrid": _key_tokens("ours, the query as in a hybrid: with less of its decoded terms", query="hybrid"),
    "key-tokens-64": _key_tokens("ours, documents pruned to their 64 most important terms", _pruned),
    "key-tokens-lm-head": _key_tokens("ours, decoded by the LM head, not the ridge decoder", _by_lm_head),
    **{f"dense+{part}-{fusion}": _hybrid(part, fusion) for fusion in _FUSED_BY for part in _PARTNERS},
}
"""The methods by name."""
