"""Which terms of a document are worth keeping where only so many may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from st_keytokens.sparse_embeddings import SparseEmbeddings

# Found on the collections of docs/results/quality.md, where .1 to .2, .5 to .75 and 1.5 to 3 differ by less than 1 %.
_EARLINESS = 0.15  # the hundredth term of a text is worth half of the first
_RARITY = 0.6  # of idf: rare terms are asked for less often than their weight makes them count
_LACKING = 2.0  # a query has many more decoded terms than literal ones, so each is more often asked for


def term_importance(
    texts: Sequence[np.ndarray], literal: SparseEmbeddings, decoded: SparseEmbeddings, idf: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """How much a term is worth keeping: its weight, divided by powers of its idf and of its place in the text.

    A weight says what a term is worth once a query asks for it, and this how often that may be. What a text is about
    stands at its beginning. A term that the text lacks has the place of its middle.

    Args:
        texts: Literal terms of each text in order, with repetition.
        literal: Their weights, to which their decoded weights are added.
        decoded: Weights of the decoded terms that the texts lack.
        idf: Inverse document frequency of each term; None: all alike.

    Returns:
        float32, a value for each weight of ``literal.add(decoded)``.

    >>> text, weights = [np.array([4, 2, 2])], SparseEmbeddings.from_dicts([{2: 1.5, 4: 1.0}], vocab_size=5)
    >>> term_importance(text, weights, SparseEmbeddings.empty(1, 5), np.array([1, 1, 4, 1, 1], np.float32)).round(2)
    array([0.59, 1.  ], dtype=float32)
    """
    places = np.concatenate([np.unique(terms, return_index=True)[1] for terms in texts]) + 1.0 if len(texts) else 1.0
    middles = np.repeat([max(1.0, len(terms) / 2) for terms in texts], decoded.active_dims)
    early = literal.with_values(literal.values / places**_EARLINESS)
    total = early.add(decoded.with_values(_LACKING * decoded.values / middles**_EARLINESS))
    return total.values if idf is None else total.values / idf[total.indices] ** _RARITY
