"""What measuring contributions gives: tokens in two parts, for each text and on average, and a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from st_keytokens.analysis.tables import markdown_table
from st_keytokens.checks import check_choice
from st_keytokens.vocabulary import Vocabulary

__all__ = ["Contribution", "Part", "TextContribution", "TokenContribution", "best_tokens"]

Part = Literal["logit", "first", "rest"]
_SHOWN = 60  # characters of a text in a table


@dataclass(frozen=True)
class TokenContribution:
    """A token's logit in two parts.

    Attributes:
        token_id: Row of the LM head.
        token: Readable.
        logit: ``first + rest``.
        first: What the first component adds to it.
        rest: The logit of the embedding without its first component.
    """

    token_id: int
    token: str
    logit: float
    first: float
    rest: float


@dataclass(frozen=True)
class TextContribution:
    """The tokens that a text decodes to, and those that either part of its embedding alone decodes to, best first.

    Attributes:
        text: The text; None for a stored embedding without one.
        projection: Of the embedding on the first component, in embedding units.
        tokens: Of the whole embedding.
        first_tokens: Of the first component alone.
        rest_tokens: Of the rest alone.
    """

    text: str | None
    projection: float
    tokens: tuple[TokenContribution, ...]
    first_tokens: tuple[TokenContribution, ...]
    rest_tokens: tuple[TokenContribution, ...]


@dataclass(frozen=True, eq=False)
class Contribution:
    """What the first component and the rest of embeddings feed to the LM head, by token.

    Attributes:
        count: Number of texts.
        top_k: Tokens of each text that are looked at.
        texts: The first texts in detail.
        mean_projection: Of all embeddings on the first component, in embedding units.
        mean_first: Mean contribution of the first component to each token's logit, float64, shape ``(V,)``.
        mean_rest: The same of the rest.
        counts: For ``"logit"``, ``"first"`` and ``"rest"``, in how many texts each term is among the ``top_k`` that
            the whole embedding, or this part alone, decodes to; int64, shape ``(V,)``.
        overlaps: For ``"first"`` and ``"rest"``, the mean share of a text's ``top_k`` decoded terms that are among
            the ``top_k`` of this part alone.
        vocabulary: Whose rows the tokens are.
    """

    count: int
    top_k: int
    texts: tuple[TextContribution, ...]
    mean_projection: float
    mean_first: NDArray[np.float64]
    mean_rest: NDArray[np.float64]
    counts: dict[Part, NDArray[np.int64]]
    overlaps: dict[Part, float]
    vocabulary: Vocabulary

    def mean_tokens(self, part: Part = "first") -> tuple[TokenContribution, ...]:
        """The ``top_k`` tokens that a part feeds most on average, with their mean logits, best first.

        Args:
            part: ``"first"``, ``"rest"``, or ``"logit"`` for both together.

        Raises:
            ValueError: If there is no such part.
        """
        check_choice("part", part, get_args(Part))
        return best_tokens(part, self.mean_first, self.mean_rest, self.vocabulary, self.top_k)

    def frequency_correlations(self, frequencies: NDArray[np.int64]) -> dict[Part, float]:
        """Spearman's rank correlation of the terms' frequencies with what they are fed on average.

        Args:
            frequencies: In how many texts each term occurs, shape ``(V,)``; terms that do not occur are left out.

        Returns:
            For each part the correlation with the mean of the term's own token; NaN for fewer than two terms.

        Raises:
            ValueError: If the shape is wrong.
        """
        if np.shape(frequencies) != self.mean_first.shape:
            raise ValueError(
                f"frequencies must have shape {self.mean_first.shape}, got {np.shape(frequencies)}. Count the terms "
                "of this vocabulary."
            )
        occurs = (frequencies > 0) & ~self.vocabulary.is_masked
        means: dict[Part, NDArray[np.float64]] = {
            "logit": self.mean_first + self.mean_rest,
            "first": self.mean_first,
            "rest": self.mean_rest,
        }
        if occurs.sum() < 2:
            return dict.fromkeys(means, float("nan"))
        return {part: float(spearmanr(mean[occurs], frequencies[occurs]).statistic) for part, mean in means.items()}

    def to_dict(self) -> dict[str, Any]:
        """Averages, counts and texts as JSON values, the ``top_k`` tokens of each."""
        parts: tuple[Part, ...] = get_args(Part)
        return {
            "count": self.count,
            "top_k": self.top_k,
            "mean_projection": self.mean_projection,
            "overlaps": self.overlaps,
            "mean_tokens": {part: [asdict(token) for token in self.mean_tokens(part)] for part in parts},
            "most_texts": {
                part: {self.vocabulary.strings[term]: count for term, count in _most(self.counts[part], self.top_k)}
                for part in parts
            },
            "texts": [asdict(text) for text in self.texts],
        }

    def table(self) -> str:
        """What is decoded as a whole and from either part, on average and for the texts in detail, as Markdown."""
        rows: list[list[object]] = [
            ["(average)", *(_names(self.mean_tokens(part)) for part in get_args(Part))],
        ]
        for number, text in enumerate(self.texts, 1):
            name = f"(text {number})" if text.text is None else text.text
            name = name if len(name) <= _SHOWN else f"{name[: _SHOWN - 1]}…"
            rows.append([name, *(_names(tokens) for tokens in (text.tokens, text.first_tokens, text.rest_tokens))])
        return markdown_table(["text", "decoded", "first component alone", "rest alone"], rows)


def best_tokens(
    part: Part, first: NDArray[np.floating], rest: NDArray[np.floating], vocabulary: Vocabulary, k: int
) -> tuple[TokenContribution, ...]:
    """The k tokens with the highest value of a part; of tokens that fold into one term only the best one.

    Args:
        part: What they are ordered by.
        first: The first component's contribution to each token, shape ``(V,)``.
        rest: The rest's.
        vocabulary: Whose rows the tokens are. Masked ones are left out.
        k: How many.

    Returns:
        Best first, the smaller id first among equals.

    >>> vocabulary = Vocabulary(["<s>", "a", "Ġa", "b"], kind="byte-level", special_ids=[0])
    >>> found = best_tokens("first", np.array([9.0, 3.0, 4.0, 1.0]), np.zeros(4), vocabulary, 2)
    >>> [(token.token_id, token.logit) for token in found]
    [(2, 4.0), (3, 1.0)]
    """
    values = {"logit": first + rest, "first": first, "rest": rest}[part]
    order = np.argsort(-values, kind="stable")
    order = order[~vocabulary.is_masked[order]]
    _, places = np.unique(vocabulary.terms[order], return_index=True)
    return tuple(
        TokenContribution(i, vocabulary.strings[i], float(first[i] + rest[i]), float(first[i]), float(rest[i]))
        for i in order[np.sort(places)[:k]].tolist()
    )


def _most(counts: NDArray[np.int64], k: int) -> list[tuple[int, int]]:
    return [(term, int(counts[term])) for term in np.argsort(-counts, kind="stable")[:k].tolist() if counts[term]]


def _names(tokens: tuple[TokenContribution, ...]) -> str:
    return ", ".join(token.token for token in tokens)
