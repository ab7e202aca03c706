"""From terms to weights: what a document's and a query's sparse vector are made of.

A *literal* term is a token of the text itself, a *decoded* term comes from the embedding. The score of a document is
the dot product of the two vectors, so that the literal parts alone give BM25, and the decoded parts add what the
embedder knows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from st_keytokens.sparse_embeddings import SparseEmbeddings

Terms = Literal["both", "literal", "decoded"]
DEFAULT_LENGTH = 150.0  # literal terms of a text, where no calibration has counted them: about one abstract


@dataclass(frozen=True)
class Weighting:
    """How literal and decoded terms become one sparse vector, for documents and for queries.

    Args:
        document_terms: Which terms a document's vector holds.
        query_terms: Which terms a query's vector holds.
        k1: Saturation of a literal term's frequency in a document.
        b: How strongly a document's length divides its term frequencies, 0 to 1.
        document_decoded_weight: Weight of the strongest decoded term of a document, relative to a literal term that
            occurs once in a document of average length. 0: no decoded terms.
        query_decoded_weight: Weight of the strongest decoded term of a query, relative to its strongest literal one.
        is_binary_query: Query terms count 1 each, literal and decoded alike, whatever their weights.
        is_scaled: Decoded weights are divided by the row's largest; otherwise they are used as the head gives them.

    Raises:
        ValueError: If a value is out of its range.
    """

    document_terms: Terms = "both"
    query_terms: Terms = "both"
    k1: float = 1.2
    b: float = 0.75
    document_decoded_weight: float = 0.5
    query_decoded_weight: float = 0.1
    is_binary_query: bool = False
    is_scaled: bool = True

    def __post_init__(self) -> None:
        for name in ("document_terms", "query_terms"):
            if getattr(self, name) not in get_args(Terms):
                raise ValueError(f"{name} must be 'both', 'literal' or 'decoded', got {getattr(self, name)!r}.")
        if not 0 <= self.b <= 1:
            raise ValueError(f"b must be between 0 and 1, got {self.b}.")
        for name in ("k1", "document_decoded_weight", "query_decoded_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, and finite, got {getattr(self, name)}.")

    def document(
        self, literal: Sequence[np.ndarray], decoded: SparseEmbeddings | None, vocab_size: int, average_length: float
    ) -> SparseEmbeddings:
        """Sparse vectors of documents.

        Args:
            literal: Term ids of each text, with repetition.
            decoded: Decoded terms of the same texts, or None.
            vocab_size: Width of the vectors.
            average_length: Mean number of literal terms of the corpus's texts.

        Returns:
            One row a text.
        """
        counts = count_terms(literal, vocab_size)
        lengths = np.array([len(terms) for terms in literal], dtype=np.float64)
        norms = self.k1 * (1 - self.b + self.b * lengths / max(average_length, 1.0))
        frequencies = counts.values.astype(np.float64)
        saturated = frequencies * (self.k1 + 1) / (frequencies + np.repeat(norms, counts.active_dims))
        literal_part = counts.with_values(saturated)
        if decoded is None or self.document_terms == "literal":
            return literal_part
        decoded = self._scaled(decoded)
        if self.document_terms == "decoded":
            return decoded
        return literal_part.add(decoded, other_weight=self.document_decoded_weight)

    def query(
        self, literal: Sequence[np.ndarray], decoded: SparseEmbeddings | None, vocab_size: int, idf: np.ndarray | None
    ) -> SparseEmbeddings:
        """Sparse vectors of queries.

        Args:
            literal: Term ids of each text, with repetition.
            decoded: Decoded terms of the same texts, or None for a query without a forward pass.
            vocab_size: Width of the vectors.
            idf: Inverse document frequency of each term, ``(vocab_size,)``, or None to weigh all terms alike.

        Returns:
            One row a text.
        """
        literal_part = count_terms(literal, vocab_size)
        if idf is not None:
            literal_part = literal_part.with_values(literal_part.values * idf[literal_part.indices])
        if decoded is None or self.query_terms == "literal":
            combined = literal_part
        elif self.query_terms == "decoded":
            combined = self._scaled(decoded)
        else:
            largest = row_maxima(literal_part)
            scaled = _scale_rows(self._scaled(decoded), np.where(largest > 0, largest, 1.0))
            combined = literal_part.add(scaled, other_weight=self.query_decoded_weight)
        return combined.with_values(np.ones_like(combined.values)) if self.is_binary_query else combined

    def _scaled(self, decoded: SparseEmbeddings) -> SparseEmbeddings:
        if not self.is_scaled:
            return decoded
        largest = row_maxima(decoded)
        return _scale_rows(decoded, 1.0 / np.where(largest > 0, largest, 1.0))


@dataclass(frozen=True)
class Method:
    """A weighting together with the settings of the head that it needs."""

    weighting: Weighting = Weighting()
    head: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "default": Method(),
    "literal": Method(Weighting(document_terms="literal", query_terms="literal")),
    "decoded": Method(Weighting(document_terms="decoded", query_terms="decoded")),
    # Nie et al. 2025, sparse retrieval: a document's decoded terms with their scores against a binary query of literal
    # and decoded terms. Its numbers of terms are not published; these are of the reported order.
    "nie2025": Method(
        Weighting(document_terms="decoded", is_binary_query=True, is_scaled=False),
        {"max_active_dims": 3000, "query_max_active_dims": 50, "correction": "none", "standardize": False},
    ),
}
"""Methods by name, for ``KeyTokenEncoder(method=...)``."""


def check_method(method: str) -> None:
    """Raises ValueError if there is no method of that name."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")


def count_terms(literal: Sequence[np.ndarray], vocab_size: int) -> SparseEmbeddings:
    """Term counts as sparse rows.

    Args:
        literal: Term ids of each text, with repetition.
        vocab_size: Width of the rows.

    Returns:
        Rows whose weights are the counts.

    >>> count_terms([np.array([3, 1, 3]), np.array([], dtype=int)], 5).to_dicts()
    [{1: 1.0, 3: 2.0}, {}]
    """
    rows = [sorted(Counter(terms.tolist()).items()) for terms in literal]  # for short texts faster than numpy
    pairs = [pair for row in rows for pair in row]
    return SparseEmbeddings.trusted(
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.array([term for term, _ in pairs], dtype=np.int32),
        np.array([count for _, count in pairs], dtype=np.float32),
        vocab_size,
    )


def row_maxima(embeddings: SparseEmbeddings) -> np.ndarray:
    """Largest weight of each row, float32 ``(N,)``; 0 for an empty row."""
    maxima = np.zeros(len(embeddings), dtype=np.float32)
    rows = np.repeat(np.arange(len(embeddings)), embeddings.active_dims)
    np.maximum.at(maxima, rows, embeddings.values)
    return maxima


def _scale_rows(embeddings: SparseEmbeddings, factors: np.ndarray) -> SparseEmbeddings:
    return embeddings.with_values(embeddings.values * np.repeat(factors, embeddings.active_dims))
