"""A pair as several embedders see it: the same texts, decoded and explained by each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from st_keytokens.analysis.pair import PairExplanation, Similarity, explain_pair
from st_keytokens.analysis.tables import markdown_table
from st_keytokens.encoder import KeyTokenEncoder

__all__ = ["PairComparison", "compare_pair"]


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
