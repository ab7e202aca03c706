"""From terms to weights: what a document's and a query's sparse vector are made of.

A *literal* term is a token of the text itself, a *decoded* term comes from the embedding. The score of a document is
the dot product of the two vectors. A document's literal terms carry their whole BM25 weight, idf included, and a
query's count 1 each, so that the literal parts alone give BM25. A document's decoded terms are those that its text
lacks; a query's are added to its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from st_keytokens.shared.checks import checked_float, checked_int
from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.terms.term_values import TermValues

# The first two were found on the collections of docs/results/quality-tokens.md, where .1 to .2 and .5 to .75 differ by
# under 1 %, the third on those of docs/results/quality.md, from 1, 1.5, 2, 2.5 and 3.
_EARLINESS = 0.15  # the hundredth term of a text is worth half of the first
_RARITY = 0.6  # of idf: rare terms are asked for less often than their weight makes them count
_LACKING = 2.0  # a query has many more decoded terms than literal ones, so each is more often asked for


def term_importance(
    texts: Sequence[np.ndarray],
    literal: SparseEmbeddings,
    decoded: SparseEmbeddings,
    idf: NDArray[np.float32] | TermValues | None,
    query_decoded_weight: float = 1.0,
) -> NDArray[np.float32]:
    """How much a term is worth keeping: its weight, divided by powers of its idf and of its place in the text.

    A weight says what a term is worth once a query asks for it, and this how often that may be. What a text is about
    stands at its beginning. A term that the text lacks has the place of its middle, and is asked for as far as queries
    have decoded terms.

    Args:
        texts: Literal terms of each text in order, with repetition.
        literal: Their weights, to which their decoded weights are added.
        decoded: Weights of the decoded terms that the texts lack.
        idf: Inverse document frequency of each term; None: all alike.
        query_decoded_weight: Length of a query's decoded vector, whose literal terms weigh 1.

    Returns:
        float32, a value for each weight of ``literal.add(decoded)``.

    >>> text, weights = [np.array([4, 2, 2])], SparseEmbeddings.from_dicts([{2: 1.5, 4: 1.0}], vocab_size=5)
    >>> term_importance(text, weights, SparseEmbeddings.empty(1, 5), np.array([1, 1, 4, 1, 1], np.float32)).round(2)
    array([0.59, 1.  ], dtype=float32)
    """
    places = np.concatenate([np.unique(terms, return_index=True)[1] for terms in texts]) + 1.0 if len(texts) else 1.0
    middles = np.repeat([max(1.0, len(terms) / 2) for terms in texts], decoded.active_dims)
    early = literal.with_values(literal.values / places**_EARLINESS)
    total = early.add(_with(decoded, _LACKING * query_decoded_weight * decoded.values / middles**_EARLINESS))
    values = total.values if idf is None else total.values / idf[total.indices] ** _RARITY
    return values.astype(np.float32, copy=False)


K1, B = 1.2, 0.75  # of BM25: how fast a term's frequency saturates, how strongly a document's length divides it
# A text longer than so many means is of another kind than those that were counted. Weighed by its whole length it
# would lose all saturation, and "the" fifty times would outweigh a code that it alone holds.
_LONGEST = 4.0
_LEAST_SEEN = 0.1  # decoded terms of a query of unseen words, in another language perhaps, are all that finds anything

Terms = Literal["both", "literal", "decoded"]

_MAX_FACTOR = 1e12  # leaves room for idf and lengths below the largest weight


@dataclass(frozen=True)
class Corpus:
    """What weights need to know of the corpus; the defaults stand in where no calibration has counted it.

    Args:
        idf: Inverse document frequency of each term, float32 ``(vocab_size,)``, or by term where the vocabulary is
            large. None: all terms count alike.
        average_length: Mean number of literal terms of a document. The default is about one abstract.
        literal_norm: Root mean square length of the documents' literal vectors, which decoded ones are relative to.
        decoded_trust: How far decoded terms can be trusted beside literal ones, about 1 where the embedder finds
            documents as well as terms do, see :func:`~st_keytokens.calibration.trust.decoded_trust`.
    """

    idf: NDArray[np.float32] | TermValues | None = None
    average_length: float = 150.0
    literal_norm: float = 10.0
    decoded_trust: float = 0.5


@dataclass(frozen=True)
class Weighting:
    """How literal and decoded terms become one sparse vector, for documents and for queries.

    Args:
        document_terms: Which terms a document's vector holds.
        query_terms: Which terms a query's vector holds.
        k1: Saturation of a literal term's frequency in a document. It and the two weights are at most 1e12, so that
            no score overflows.
        b: How strongly a document's length divides its term frequencies, 0 to 1. A length counts as four times the
            mean at most.
        document_decoded_weight: Length of a document's decoded vector, in units of the corpus's ``literal_norm``, at a
            ``decoded_trust`` of 1. 0: no decoded terms.
        query_decoded_weight: Length of a query's decoded vector at a ``decoded_trust`` of 1; a literal term weighs 1.
            It is less, down to a tenth, where the calibration has not seen some of the query's words, such as a code.
        max_document_terms: Terms kept of a document in all, literal and decoded. None: every literal one, and as many
            decoded ones as the head gives. What is kept is not just what weighs most, see
            :func:`~st_keytokens.terms.weighting.term_importance`.
        is_binary_query: Query terms count 1 each, literal and decoded alike, whatever their weights.
        is_scaled: Decoded vectors are brought to these lengths; otherwise they are used as the head gives them.

    Raises:
        TypeError: If ``max_document_terms`` is not an integer, or another number none.
        ValueError: If a value is out of its range.
    """

    document_terms: Terms = "both"
    query_terms: Terms = "both"
    k1: float = K1
    b: float = B
    document_decoded_weight: float = 0.5
    query_decoded_weight: float = 1.0
    max_document_terms: int | None = None
    is_binary_query: bool = False
    is_scaled: bool = True

    def __post_init__(self) -> None:
        for name in ("document_terms", "query_terms"):
            if getattr(self, name) not in get_args(Terms):
                raise ValueError(f"{name} must be 'both', 'literal' or 'decoded', got {getattr(self, name)!r}.")
        checked_float("b", self.b, minimum=0, maximum=1)
        for name in ("k1", "document_decoded_weight", "query_decoded_weight"):
            value = getattr(self, name)
            is_number = isinstance(value, Real)
            if is_number and not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative, and finite, got {value}.")
            checked_float(name, value, minimum=0, maximum=_MAX_FACTOR)
        if self.max_document_terms is not None:
            checked_int("max_document_terms", self.max_document_terms, minimum=1)

    @property
    def least_literal_weight(self) -> float:
        """What a literal term that occurs once in the longest text weighs, in units of its idf."""
        return (self.k1 + 1) / (1 + self.k1 * (1 - self.b + self.b * _LONGEST))

    def document(
        self, literal: Sequence[np.ndarray], decoded: SparseEmbeddings | None, vocab_size: int, corpus: Corpus
    ) -> SparseEmbeddings:
        """Sparse vectors of documents.

        Args:
            literal: Term ids of each text, with repetition.
            decoded: Decoded terms of the same texts, or None.
            vocab_size: Width of the vectors.
            corpus: Where they come from.

        Returns:
            One row a text.
        """
        if decoded is not None and self.is_scaled:
            decoded = _of_length(decoded, self.document_decoded_weight * corpus.decoded_trust * corpus.literal_norm)
        if decoded is not None and self.document_terms == "decoded":
            return decoded if self.max_document_terms is None else decoded.prune(self.max_document_terms)
        counts = count_terms(literal, vocab_size)
        lengths = np.array([len(terms) for terms in literal], dtype=np.float64)
        relative = np.minimum(lengths / max(corpus.average_length, 1.0), _LONGEST)
        norms = self.k1 * (1 - self.b + self.b * relative)
        frequencies = counts.values.astype(np.float64)
        weights = frequencies * (self.k1 + 1) / (frequencies + np.repeat(norms, counts.active_dims))
        literal_part = _with(counts, weights if corpus.idf is None else weights * corpus.idf[counts.indices])
        if decoded is None or self.document_terms == "literal":
            if self.max_document_terms is None:
                return literal_part
            decoded = SparseEmbeddings.empty(len(literal), vocab_size)
        lacking = _without(decoded, literal_part)
        both = _joined(literal_part, lacking)
        if self.max_document_terms is None:
            return both
        known = literal_part.add(_without(decoded, lacking))
        asked = self.query_decoded_weight * corpus.decoded_trust
        importance = term_importance(literal, known, lacking, corpus.idf, asked)
        return both.prune(self.max_document_terms, by=importance)

    def query(
        self, literal: Sequence[np.ndarray], decoded: SparseEmbeddings | None, vocab_size: int, corpus: Corpus
    ) -> SparseEmbeddings:
        """Sparse vectors of queries.

        Args:
            literal: Term ids of each text, with repetition.
            decoded: Decoded terms of the same texts, or None for a query without a forward pass.
            vocab_size: Width of the vectors.
            corpus: What is searched.

        Returns:
            One row a text.
        """
        if decoded is not None and self.is_scaled:
            length = self.query_decoded_weight * corpus.decoded_trust
            decoded = _of_length(decoded, length * np.maximum(seen_shares(literal, corpus), _LEAST_SEEN))
        if decoded is None or self.query_terms == "literal":
            combined = count_terms(literal, vocab_size)
        elif self.query_terms == "decoded":
            combined = decoded
        else:
            combined = count_terms(literal, vocab_size).add(decoded)
        return combined.with_values(np.ones_like(combined.values)) if self.is_binary_query else combined


@dataclass(frozen=True)
class Method:
    """A weighting together with the settings of the head that it needs, and what its terms are."""

    weighting: Weighting = Weighting()
    head: Mapping[str, Any] = field(default_factory=dict)
    terms: Literal["words", "tokens"] = "words"


METHODS: dict[str, Method] = {
    "default": Method(),
    "literal": Method(Weighting(document_terms="literal", query_terms="literal")),
    "decoded": Method(Weighting(document_terms="decoded", query_terms="decoded")),
    # Nie et al. 2025, sparse retrieval: a document's decoded terms with their scores against a binary query of literal
    # and decoded terms. Its numbers of terms are not published; these are of the reported order.
    "nie2025": Method(
        Weighting(document_terms="decoded", is_binary_query=True, is_scaled=False),
        {"max_active_dims": 3000, "query_max_active_dims": 50, "correction": "none", "standardize": False},
        terms="tokens",
    ),
}
"""Methods by name, for ``KeyTokenEncoder(method=...)``."""


def check_method(method: str) -> None:
    """Raises ValueError if there is no method of that name."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")


def seen_shares(literal: Sequence[np.ndarray], corpus: Corpus) -> NDArray[np.float64]:
    """How much of each text the decoder can know of: the part of its words, by idf, that the corpus has.

    Args:
        literal: Term ids of each text, with repetition.
        corpus: Where the decoder was fitted.

    Returns:
        float64, 0 to 1 for each text; 1 where no words are counted.

    >>> corpus = Corpus(idf=TermValues(np.array([2, 5]), np.array([1.0, 2.0], np.float32), 3.0))
    >>> seen_shares([np.array([2, 5]), np.array([5, 8, 2]), np.array([8])], corpus)
    array([1. , 0.5, 0. ])
    """
    idf = corpus.idf
    if not isinstance(idf, TermValues):
        return np.ones(len(literal))
    weights = [idf[terms].astype(np.float64) for terms in literal]
    seen = [float(w[idf.has(terms)].sum()) for w, terms in zip(weights, literal, strict=True)]
    return np.array([part / w.sum() if len(w) else 1.0 for part, w in zip(seen, weights, strict=True)])


def with_less_decoded(
    query: SparseEmbeddings, literal: SparseEmbeddings, share: float, idf: NDArray[np.float32] | TermValues | None
) -> SparseEmbeddings:
    """Queries with a share of their decoded weights, times the part of their own words, by idf, that is among these.

    An embedding that does not say a query's own words again says little of what else it asks for.

    Args:
        query: Literal and decoded terms, each weight of ``literal`` within that of the same term here.
        literal: The literal terms alone.
        share: Of the decoded weights of a query all of whose words are decoded as well; a tenth of it at the least.
        idf: Inverse document frequency of each term; None: all alike.

    Returns:
        One row a query.

    >>> both = SparseEmbeddings.from_dicts([{1: 1.5, 2: 1.0, 3: 0.5}], vocab_size=5)
    >>> with_less_decoded(both, SparseEmbeddings.from_dicts([{1: 1.0, 2: 1.0}], vocab_size=5), 0.4, None).to_dicts()
    [{1: 1.100000023841858, 2: 1.0, 3: 0.10000000149011612}]
    """
    own = np.zeros(query.nnz)
    own[np.searchsorted(_places(query), _places(literal))] = literal.values
    decoded = query.values - own
    rows = np.repeat(np.arange(len(query)), query.active_dims)
    worth = (own > 0) * (1.0 if idf is None else idf[query.indices].astype(np.float64))
    words, recovered = (np.bincount(rows, weights, len(query)) for weights in (worth, worth * (decoded > 0)))
    part = np.maximum(np.divide(recovered, words, out=np.ones(len(query)), where=words > 0), _LEAST_SEEN)
    return _with(query, own + share * part[rows] * decoded)


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
    indptr, indices, values = [0], [], []
    for terms in literal:
        counts = Counter(terms.tolist())  # for short texts faster than numpy
        for term in sorted(counts):
            indices.append(term)
            values.append(counts[term])
        indptr.append(len(indices))
    return SparseEmbeddings.trusted(
        np.array(indptr, np.int64), np.array(indices, np.int32), np.array(values, np.float32), vocab_size
    )


def _with(embeddings: SparseEmbeddings, weights: NDArray[Any]) -> SparseEmbeddings:
    """The same terms with other weights, which are positive but for rounding; ValueError if one is too large."""
    with np.errstate(over="ignore"):
        values = weights.astype(np.float32)
    return embeddings.with_values(np.maximum(values, np.finfo(np.float32).tiny))


def _joined(one: SparseEmbeddings, other: SparseEmbeddings) -> SparseEmbeddings:
    """Rows of two, which have no term in common."""
    places = np.concatenate([_places(one), _places(other)])
    order = np.argsort(places, kind="stable")
    indices = np.concatenate([one.indices, other.indices])[order]
    values = np.concatenate([one.values, other.values])[order]
    return SparseEmbeddings.trusted(one.indptr + other.indptr, indices, values, one.vocab_size)


def _places(embeddings: SparseEmbeddings) -> NDArray[np.int64]:
    """Where each weight stands in the whole matrix."""
    counts = np.diff(embeddings.indptr)
    rows: NDArray[np.int64] = np.repeat(np.arange(len(counts), dtype=np.int64) * embeddings.vocab_size, counts)
    return rows + embeddings.indices


def _of_length(embeddings: SparseEmbeddings, lengths: float | NDArray[np.float64]) -> SparseEmbeddings:
    """Rows scaled to Euclidean lengths, to one or to one each; an empty row stays empty."""
    if not np.any(lengths):
        return SparseEmbeddings.empty(len(embeddings), embeddings.vocab_size)
    counts = np.diff(embeddings.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    squares = np.bincount(rows, weights=embeddings.values.astype(np.float64) ** 2, minlength=len(counts))
    factors = lengths / np.sqrt(np.where(squares > 0, squares, 1.0))
    return _with(embeddings, embeddings.values * factors[rows])


def _without(embeddings: SparseEmbeddings, others: SparseEmbeddings) -> SparseEmbeddings:
    """Rows without the terms that the same rows of ``others`` hold."""
    is_kept = np.isin(_places(embeddings), _places(others), invert=True)
    indptr = np.concatenate([[0], np.cumsum(is_kept)])[embeddings.indptr]
    kept = embeddings.indices[is_kept], embeddings.values[is_kept]
    return SparseEmbeddings.trusted(indptr, *kept, embeddings.vocab_size)
