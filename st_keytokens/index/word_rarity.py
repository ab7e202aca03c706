"""What a query's words are worth in an index that the calibration does not know: less, where they are common there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.terms.words import WordVocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.encoder.encoder import KeyTokenEncoder
    from st_keytokens.index.snapshot import Snapshot

_CHANCE = np.log(2)  # a word that is twice as common as it was counted is left as it is
_PRIOR = 10.0  # documents as the calibration knows them, which a small index counts beside its own


def rarity_factors(snapshot: Snapshot, encoder: KeyTokenEncoder, words: NDArray[np.int64]) -> NDArray[np.float32]:
    """How much of its weight a word keeps: its idf in the index over what it would be, were it as common as counted.

    A word that the calibration saw rarely or never has a large idf in every document, "the" as well as a code. Where
    most documents of the index have it, it does not single out any.

    Args:
        snapshot: What is searched.
        encoder: Has the calibration.
        words: Ids of literal terms, int64, shape ``(n,)``.

    Returns:
        float32, shape ``(n,)``, above 0 and at most 1; 1 for a word at most twice as common as it was counted, and
        without a calibration that counted them.
    """
    calibration = encoder.calibration
    counted = None if calibration is None else calibration.document_frequencies
    if calibration is None or counted is None:
        return np.ones(len(words), dtype=np.float32)
    weights = encoder.weighting.least_literal_weight * calibration.idf_values[words].astype(np.float64)
    total, share = len(snapshot) + _PRIOR, counted[words] / max(1, calibration.document_count)
    here = np.array(snapshot.document_frequencies(words.tolist(), weights.tolist())) + _PRIOR * share
    found, expected = (np.log1p((total - df + 0.5) / (df + 0.5)) for df in (here, np.maximum(1.0, total * share)))
    factors: NDArray[np.float32] = np.minimum(1.0, (found + _CHANCE) / expected).astype(np.float32)
    return factors


def own_words(encoder: Any, texts: Sequence[str]) -> list[list[int]] | None:
    """Ids of the words of each query, once each; None where an index does not weigh them."""
    vocabulary = getattr(encoder, "vocabulary", None)
    if not isinstance(vocabulary, WordVocabulary) or encoder.weighting.query_terms == "decoded":
        return None
    return [list(set(terms.tolist())) for terms in encoder.literal_terms(list(texts))]


def fit_queries(
    snapshot: Snapshot, encoder: Any, words: Sequence[Sequence[int]], sparse: SparseEmbeddings
) -> SparseEmbeddings:
    """Queries' sparse vectors with the weights of their own words by :func:`rarity_factors`, which are remembered."""
    known = snapshot.word_factors(encoder.calibration)
    if unknown := sorted({word for own in words for word in own if word not in known}):
        known.update(zip(unknown, rarity_factors(snapshot, encoder, np.array(unknown)).tolist(), strict=True))
    if all(known[word] == 1 for own in words for word in own):
        return sparse
    rows = []
    for number, own in enumerate(words):
        terms, weights = sparse.row(number)
        factors = {word: known[word] for word in own}
        kept = np.array([factors.get(term, 1.0) for term in terms.tolist()], dtype=np.float32)
        rows.append(sparse[number].with_values(weights * kept))
    return SparseEmbeddings.concatenate(rows)
