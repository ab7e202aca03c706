"""What a query's words are worth in an index that the calibration does not know: less, where they are common there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_keytokens.terms.term_values import TermValues
from st_keytokens.terms.words import WordVocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.encoder.encoder import KeyTokenEncoder
    from st_keytokens.index.snapshot import Snapshot
    from st_keytokens.sparse_embeddings import SparseEmbeddings

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
        float32, shape ``(n,)``, above 0 and at most 1; 1 for a word at most twice as common as it was counted, where
        terms are not words, and without a calibration that counted them.
    """
    calibration = encoder.calibration
    counted = None if calibration is None else calibration.document_frequencies
    if calibration is None or counted is None or not isinstance(encoder.vocabulary, WordVocabulary) or not len(words):
        return np.ones(len(words), dtype=np.float32)
    weights = encoder.weighting.least_literal_weight * calibration.idf_values[words].astype(np.float64)
    total, share = len(snapshot) + _PRIOR, counted[words] / max(1, calibration.document_count)
    here = np.array(snapshot.document_frequencies(words.tolist(), weights.tolist())) + _PRIOR * share
    found, expected = (np.log1p((total - df + 0.5) / (df + 0.5)) for df in (here, np.maximum(1.0, total * share)))
    factors: NDArray[np.float32] = np.minimum(1.0, (found + _CHANCE) / expected).astype(np.float32)
    return factors


def fit_query(
    snapshot: Snapshot, encoder: KeyTokenEncoder, words: NDArray[np.int64], query: SparseEmbeddings
) -> SparseEmbeddings:
    """One query's sparse vector, with the weights of its own words by :func:`rarity_factors`."""
    factors = rarity_factors(snapshot, encoder, words)
    if not (factors < 1).any():
        return query
    return query.with_values(query.values * TermValues(words, factors, 1.0)[query.indices])
