"""How far an embedder can be trusted beside literal terms: a search for documents by one of their own sentences.

Nothing is labelled: a sentence is taken out of a document, and asked for what is left of it. The embedder and BM25
search the same few hundred documents. How much better one does than the other hardly depends on their number.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import regex
from numpy.typing import NDArray

from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.terms.weighting import Corpus, Weighting

_SAMPLE, _FEWEST = 300, 30  # documents; with fewer than that nothing is said
_SENTENCE, _REST = range(16, 401), 16  # characters of a sentence that is taken, and at least of what is left
_RANGE = 0.05, 2.0  # an embedder that is useless still breaks ties; literal terms stay
_BOUNDARY = regex.compile(r"(?V1)(?<=[\p{SB=ATerm}\p{SB=STerm}])\s+|(?<=[。\uff01\uff1f])|\n+")
_LITERAL = Weighting(document_terms="literal", query_terms="literal")


class KnownItemEncoder(Protocol):
    """What the search needs of an encoder."""

    def embed(self, texts: list[str], *, role: Any, batch_size: int) -> NDArray[np.float32]:
        """As in ``KeyTokenEncoder``."""

    def literal_terms(self, texts: list[str]) -> list[NDArray[Any]]:
        """As in ``KeyTokenEncoder``."""


class KnownItems:
    """A sample of the documents that have a sentence to spare, the same in whatever order they come.

    Example:
        >>> sample = KnownItems()
        >>> len(list(sample.watch(["One sentence only.", "The first of two. The second, to be left."])))
        2
        >>> sample.pairs
        [('The first of two.', 'The second, to be left.')]
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []  # the smallest hashes, negated

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        """Passes texts on, and remembers some of them."""
        for text in texts:
            if isinstance(text, str):
                item = -int.from_bytes(_digest(text)[:8], "big"), text
                if len(self._heap) < _SAMPLE:
                    if item not in self._heap and _split(text) is not None:
                        heapq.heappush(self._heap, item)
                elif item > self._heap[0] and item not in self._heap and _split(text) is not None:
                    heapq.heapreplace(self._heap, item)
            yield text

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """A sentence of each document, and the rest of it."""
        return [pair for _, text in sorted(self._heap) if (pair := _split(text)) is not None]


def decoded_trust(
    encoder: KnownItemEncoder, pairs: Sequence[tuple[str, str]], corpus: Corpus, vocab_size: int, batch_size: int = 32
) -> float | None:
    """The odds that the embedder finds a document by a sentence of it, divided by those of BM25.

    Odds are those of the mean nDCG@10, with one relevant document a sentence.

    Args:
        encoder: The embedder with its terms.
        pairs: Sentences and the documents without them, see :class:`KnownItems`.
        corpus: Its idf and average length.
        vocab_size: Of the terms.
        batch_size: Texts a forward pass at most.

    Returns:
        The ratio, between 0.05 and 2, about 1 where both do equally well; None for fewer than 30 pairs.
    """
    if len(pairs) < _FEWEST:
        return None
    sentences, rests = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    queries, documents = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for rows in (
            encoder.embed(sentences, role="query", batch_size=batch_size),
            encoder.embed(rests, role="document", batch_size=batch_size),
        )
    )
    asked: SparseEmbeddings = _LITERAL.query(encoder.literal_terms(sentences), None, vocab_size, corpus)
    ours, bm25 = (
        _odds(scores)
        for scores in (
            queries @ documents.T,
            asked.scores(_LITERAL.document(encoder.literal_terms(rests), None, vocab_size, corpus)),
        )
    )
    return float(np.clip(ours / bm25, *_RANGE))


def _odds(scores: NDArray[np.float32]) -> float:
    """Odds of the mean nDCG@10 where the diagonal is relevant; tied documents share their ranks."""
    own = np.diag(scores)[:, None]
    ranks = 1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)
    share = (gains.sum() + 0.5) / (len(gains) + 1)
    return float(share / (1 - share))


def _split(text: str) -> tuple[str, str] | None:
    """One sentence of a text, chosen by its hash, and the text without it."""
    sentences = [sentence for sentence in _BOUNDARY.split(text) if sentence.strip()]
    fitting = [place for place, sentence in enumerate(sentences) if len(sentence) in _SENTENCE]
    if len(sentences) < 2 or not fitting:
        return None
    place = fitting[_digest(text)[8] % len(fitting)]
    rest = " ".join(sentences[:place] + sentences[place + 1 :])
    return (sentences[place], rest) if len(rest) >= _REST else None


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
