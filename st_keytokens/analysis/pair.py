"""Why two texts match: their dense similarity by key tokens, for one embedder or several, and their sparse score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Normalize

from st_keytokens.calibration.ridge import RidgeDecoder
from st_keytokens.decoding.decoding import Decoding, prepared
from st_keytokens.decoding.first_component import correct, remove
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder.encoder import KeyTokenEncoder, Query, without_silent
from st_keytokens.encoder.forward_pass import Role, as_sparse
from st_keytokens.index.documents import MatchedTerm
from st_keytokens.index.search import matched_terms
from st_keytokens.index.segments import Postings
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.shared.markdown import markdown_table
from st_keytokens.terms.literal_terms import check_texts

__all__ = [
    "PairComparison",
    "PairExplanation",
    "SparseExplanation",
    "TokenShare",
    "compare_pair",
    "explain_pair",
    "explain_sparse_pair",
    "orthogonal_coordinates",
]

Similarity = Literal["cosine", "dot"]
_COMMON = {"remove": "first component", "center": "mean", "shift": "shift", "none": "nothing"}
_RANK_TOLERANCE = 1e-6  # of the largest eigenvalue: below it, rows of float32 are the same


def explain_pair(
    encoder: KeyTokenEncoder,
    text: str,
    other: str,
    *,
    top_k: int = 10,
    similarity: Similarity | None = None,
    role: Role = "document",
    other_role: Role | None = None,
) -> PairExplanation:
    """Attributes the dense similarity of two texts to their key tokens.

    Args:
        encoder: The encoder, whose head says what the key tokens are and what is corrected before.
        text: A text.
        other: Another one.
        top_k: Key tokens of each text, whose union is looked at.
        similarity: ``"cosine"`` or ``"dot"`` of the pooled vectors, not truncated; of length 1 where the model
            normalises them. None: the model's.
        role: ``"document"`` or ``"query"``: decides the text's prompt.
        other_role: That of the other text; None: the same.

    Returns:
        The explanation. A text without a token has the similarity 0 with every other.

    Raises:
        TypeError: If a text is not a string, or ``top_k`` no integer.
        ValueError: If an argument is not one of its choices, or the head cannot tell directions: where more than a
            normalisation follows pooling, or a transform comes before the LM head's product.
    """
    text, other = check_texts([text, other])
    top_k = checked_int("top_k", top_k, minimum=1)
    similarity = encoder.model.similarity_fn_name if similarity is None else similarity
    check_choice("similarity", similarity, get_args(Similarity))
    roles: list[Role] = [role, role if other_role is None else other_role]
    after = [type(module).__name__ for module in encoder.forward_pass.after if not isinstance(module, Normalize)]
    if after:
        raise ValueError(
            f"encoder must compare pooled vectors, but in this model {', '.join(after)} follows pooling, and what it "
            "gives has no LM head. Explain another model's pair."
        )
    with encoder.lock, torch.inference_mode():
        decoding = encoder.head.decoding()
        pooled = torch.cat([encoder.forward_pass.pooled([t], r) for t, r in zip((text, other), roles, strict=True)])
        decoded = as_sparse(encoder.head.decode(pooled, max_active_dims=top_k), encoder.vocabulary)
        decoded = without_silent(decoded, encoder.literal_terms([text, other]))
        terms = np.unique(decoded.indices).astype(np.int64)
        vectors = prepared(pooled, decoding.is_normalizing).cpu()
        corrected = _corrected(decoding, vectors).double().numpy()
        coordinates = orthogonal_coordinates(_directions(decoding, pooled, terms), corrected)
    is_unit = similarity == "cosine" or len(encoder.forward_pass.after) > 0
    lengths, wanted = (part.double().norm(dim=1).prod().item() for part in (vectors, pooled))
    scale = (1.0 if is_unit else wanted) / lengths if lengths > 0 else 0.0  # from prepared vectors to the similarity
    value = scale * float(vectors[0].double() @ vectors[1].double())
    inner = scale * float(corrected[0] @ corrected[1])
    contributions = scale * coordinates.prod(axis=0)
    rows = decoded.to_dicts()
    shares = [
        TokenShare(term, encoder.vocabulary.strings[term], *(row.get(term, 0.0) for row in rows), *values)
        for term, values in zip(terms.tolist(), np.vstack([coordinates, contributions]).T.tolist(), strict=True)
    ]
    part = _COMMON["center" if isinstance(decoding.decoder, RidgeDecoder) else decoding.correction]
    return PairExplanation(
        text,
        other,
        similarity,
        value,
        common=0.0 if part == "nothing" else value - inner,
        common_part=part,
        tokens=tuple(sorted(shares, key=lambda share: (-abs(share.contribution), share.term_id))),
        remainder=inner - float(contributions.sum()),
    )


def compare_pair(
    encoders: Mapping[str, KeyTokenEncoder],
    text: str,
    other: str,
    *,
    top_k: int = 10,
    similarity: Similarity | None = "cosine",
) -> PairComparison:
    """Explains a pair with each of several embedders, see :func:`~st_keytokens.analysis.pair.explain_pair`.

    Args:
        encoders: By name.
        text: A text.
        other: Another one.
        top_k: Key tokens of each text.
        similarity: Of the dense vectors; None: each model's own.

    Returns:
        The comparison.

    Raises:
        ValueError: If there is no embedder, or see ``explain_pair``.
    """
    if not encoders:
        raise ValueError("encoders must hold at least one, got none.")
    explanations = {
        name: explain_pair(encoder, text, other, top_k=top_k, similarity=similarity)
        for name, encoder in encoders.items()
    }
    first = next(iter(explanations.values()))
    return PairComparison(first.text, first.other, explanations)


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


@dataclass(frozen=True)
class PairExplanation:
    """A dense similarity in parts: ``value = common + sum of the tokens' contributions + remainder``.

    Attributes:
        text: The text.
        other: The other text.
        similarity: ``"cosine"`` or ``"dot"``.
        value: The similarity.
        common: What comes from the part of the vectors that the head's correction takes away before it decodes.
        common_part: Which part that is: ``"first component"``, ``"mean"``, ``"shift"`` or ``"nothing"``.
        tokens: Key tokens of either text, the largest contribution by size first.
        remainder: What comes from directions that no token among them points to.
    """

    text: str
    other: str
    similarity: Similarity
    value: float
    common: float
    common_part: str
    tokens: tuple[TokenShare, ...]
    remainder: float

    @property
    def explained(self) -> float:
        """What the tokens account for together."""
        return float(sum(share.contribution for share in self.tokens))

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "tokens": [asdict(share) for share in self.tokens], "explained": self.explained}

    def table(self) -> str:
        """The parts as Markdown, the tokens first; a share is of the similarity."""
        rows: list[list[object]] = [
            [s.token, s.contribution, _share(s.contribution, self.value), s.weight or None, s.other_weight or None]
            for s in self.tokens
        ]
        parts = {f"({self.common_part})": self.common, "(other directions)": self.remainder, "(sum)": self.value}
        if self.common_part == "nothing":
            del parts["(nothing)"]
        rows += [[name, value, _share(value, self.value), None, None] for name, value in parts.items()]
        return markdown_table(["token", self.similarity, "share", "weight in text", "weight in other"], rows)


@dataclass(frozen=True)
class TokenShare:
    """What a key token accounts for.

    Attributes:
        term_id: Its id.
        token: Readable.
        weight: Of the token among the text's key tokens; 0 where it is none of them.
        other_weight: The same of the other text.
        coordinate: Of the text at the token's direction.
        other_coordinate: Of the other text.
        contribution: To the similarity: the coordinates' product.
    """

    term_id: int
    token: str
    weight: float
    other_weight: float
    coordinate: float
    other_coordinate: float
    contribution: float


@dataclass(frozen=True)
class PairComparison:
    """A pair as several embedders see it.

    Attributes:
        text: The text.
        other: The other text.
        explanations: By name of the embedder.
    """

    text: str
    other: str
    explanations: Mapping[str, PairExplanation]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "text": self.text,
            "other": self.other,
            "embedders": {name: explanation.to_dict() for name, explanation in self.explanations.items()},
        }

    def table(self) -> str:
        """One line an embedder as Markdown: the similarity, its parts, and the tokens with their contributions."""
        rows: list[list[object]] = [
            [
                name,
                found.value,
                found.common,
                found.explained,
                found.remainder,
                " ".join(f"{share.token} {share.contribution:+.3f}" for share in found.tokens),
            ]
            for name, found in self.explanations.items()
        ]
        return markdown_table(
            ["embedder", "similarity", "common part", "tokens", "other directions", "token by token"], rows
        )


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


def orthogonal_coordinates(directions: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates of vectors along directions that have been made orthonormal, all alike.

    Args:
        directions: Shape ``(n, dimension)``, of any length, in any order; may depend on one another, or be zero.
        vectors: Shape ``(m, dimension)``.

    Returns:
        Shape ``(m, n)``. Products of two rows sum to the product of the vectors' projections onto the directions'
        span, and no coordinate exceeds its vector's length.

    Source:
        Löwdin 1950, "On the non-orthogonality problem connected with the use of atomic wave functions in the theory
        of molecules and crystals": ``V' = (V Vᵀ)^(-1/2) V`` with rows of length 1, here with the pseudo-inverse.

    Example:
        Two directions at 60°: the orthonormal pair nearest to them has both turned by 15°.

        >>> directions = np.array([[1.0, 0.0], [0.5, 0.75**0.5]])
        >>> orthogonal_coordinates(directions, np.array([[1.0, 0.0]])).round(3).tolist()
        [[0.966, 0.259]]
    """
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    units = np.divide(directions, lengths, out=np.zeros_like(directions), where=lengths > 0)
    values, vectors_of = np.linalg.eigh(units @ units.T)
    is_kept = values > _RANK_TOLERANCE * values.max(initial=0.0)
    kept = vectors_of[:, is_kept]
    inverse_root: NDArray[np.float64] = kept / np.sqrt(values[is_kept]) @ kept.T
    coordinates: NDArray[np.float64] = vectors @ units.T @ inverse_root
    return coordinates


def _corrected(decoding: Decoding, vectors: torch.Tensor) -> torch.Tensor:
    """What the product with the decoder's rows sees of prepared vectors."""
    if isinstance(decoding.decoder, RidgeDecoder):
        return vectors - decoding.decoder.mean.cpu()
    direction, mean = (None if part is None else part.cpu() for part in (decoding.direction, decoding.mean))
    return correct(vectors, decoding.correction, direction=direction, mean=mean, amount=decoding.shift)


def _directions(decoding: Decoding, pooled: torch.Tensor, terms: NDArray[np.int64]) -> NDArray[np.float64]:
    """The decoder's row of each term: of several tokens that fold into it, the one that scores best in either text."""
    decoder = decoding.decoder
    if isinstance(decoder, LMHead) and decoder.parts.transform is not None:
        raise ValueError(
            "lm_head must multiply the embedding itself to have a direction for each token, got one with a transform. "
            "Use KeyTokenHead(LMHead.from_input_embeddings(model[0].auto_model))."
        )
    if not isinstance(decoder, LMHead | RidgeDecoder):
        raise ValueError(f"decoder must have a row for each token, got {type(decoder).__name__}.")
    scores = decoding.scores(pooled).amax(dim=0).cpu().numpy()
    term_of = decoding.terms.cpu().numpy()
    candidates = np.flatnonzero(np.isin(term_of, terms))
    candidates = candidates[np.lexsort((-scores[candidates], term_of[candidates]))]
    _, first = np.unique(term_of[candidates], return_index=True)
    rows = decoder.weight[torch.from_numpy(candidates[first]).to(decoder.weight.device)].float().cpu()
    if decoding.correction == "remove" and decoding.direction is not None:
        rows = remove(rows, decoding.direction.cpu())
    return rows.double().numpy()


def _share(part: float, whole: float) -> str | None:
    return f"{part / whole:.1%}" if abs(whole) > 1e-9 else None
