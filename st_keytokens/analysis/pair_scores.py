"""A sparse score's exact contributions: the terms that a query and a document share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from st_keytokens.analysis.tables import markdown_table
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.headed_model import Query
from st_keytokens.index.documents import MatchedTerm
from st_keytokens.index.postings import Postings
from st_keytokens.index.search import matched_terms

__all__ = ["SparseExplanation", "explain_sparse_pair"]


@dataclass(frozen=True)
class SparseExplanation:
    """A sparse score in parts, which sum to it.

    Attributes:
        query: The query.
        document: The document.
        score: The dot product of their sparse vectors.
        terms: What they share, by falling contribution.
    """

    query: str
    document: str
    score: float
    terms: tuple[MatchedTerm, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "terms": [asdict(term) for term in self.terms]}

    def table(self, max_terms: int = 20) -> str:
        """The terms as Markdown; a share is of the score.

        Args:
            max_terms: Terms shown one by one, the largest contributions; the rest are one line.
        """
        shown, rest = self.terms[:max_terms], self.terms[max_terms:]
        rows: list[list[object]] = [
            [term.token, *self._part(term.contribution), term.query_weight, term.document_weight] for term in shown
        ]
        if rest:
            rows.append([f"({len(rest)} more)", *self._part(sum(term.contribution for term in rest)), None, None])
        rows.append(["(sum)", self.score, None, None, None])
        return markdown_table(["token", "score", "share", "weight in query", "weight in document"], rows)

    def _part(self, contribution: float) -> tuple[float, str]:
        return float(contribution), f"{contribution / self.score:.1%}"


def explain_sparse_pair(
    encoder: KeyTokenEncoder, query: str, document: str, *, mode: Query | None = None
) -> SparseExplanation:
    """Tells which terms a query shares with a document, and what each adds to their sparse score.

    Args:
        encoder: The encoder.
        query: A query.
        document: A document; it need not be in any index. Of one that is, ``HybridIndex.explain`` says the same.
        mode: ``"encode"`` or ``"lookup"`` for the query; None: as the encoder is set.

    Returns:
        The explanation; without terms, and a score of 0, where they share none.

    Raises:
        TypeError: If a text is not a string.
        ValueError: If ``mode`` is neither.
    """
    queries = encoder.encode_query([query], query=mode).sparse
    postings = Postings.from_sparse(encoder.encode_document([document]).sparse)
    terms = matched_terms(postings, 0, queries, encoder.vocabulary.strings)
    return SparseExplanation(query, document, float(sum(term.contribution for term in terms)), tuple(terms))
