"""The view of a text or a pair: literal tokens shaded, decoded tokens as bars, what two texts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from st_keytokens.analysis.html_bars import bar_table, explanation_table, sparse_table
from st_keytokens.analysis.html_page import HtmlView, escaped
from st_keytokens.analysis.html_spans import Span, literal_spans
from st_keytokens.analysis.pair import explain_pair
from st_keytokens.analysis.pair_scores import explain_sparse_pair
from st_keytokens.checks import check_choice, checked_int
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.forward_pass import Role, as_sparse
from st_keytokens.texts import check_texts

__all__ = ["html_view"]

Shading = Literal["decoded", "sparse"]
_STYLES = 4  # colours and lines of shared tokens, which repeat
_MAX_SHARED = 12
_NOTES = {
    "decoded": "The stronger the shade of a token, the more strongly the embedding says it.",
    "sparse": "The stronger the shade of a token, the more it weighs in the sparse vector.",
}


@dataclass(frozen=True)
class _Side:
    """A text and its weights by term."""

    text: str
    spans: list[Span]
    decoded: dict[int, float]
    shading: dict[int, float]

    @property
    def terms(self) -> dict[int, float]:
        """Terms that are seen: of the text, where shaded, and decoded; each with its weight beside the largest."""
        own = {term: self.shading[term] for span in self.spans for term in span.terms if term in self.shading}
        return {
            term: weight / largest
            for weights in (own, self.decoded)
            if (largest := max(weights.values(), default=0.0)) > 0
            for term, weight in weights.items()
        }


def html_view(
    encoder: KeyTokenEncoder,
    text: str,
    other: str | None = None,
    *,
    top_k: int = 12,
    shading: Shading = "decoded",
    role: Role = "document",
    title: str | None = None,
) -> HtmlView:
    """Shows what the embedding of a text says, or those of two texts side by side and why they match.

    Tokens that both texts hold or say have one number, one colour and one line in both. With two texts, the dense
    similarity is explained token by token, and the sparse score of the first as a query for the second.

    Args:
        encoder: The encoder.
        text: A text.
        other: Another one.
        top_k: Decoded tokens of each text, at most.
        shading: What shades the literal tokens: the ``"decoded"`` weight of each, as far as the head keeps it, or its
            weight in the ``"sparse"`` vector.
        role: ``"document"`` or ``"query"``: decides the prompt, which is never shown.
        title: Heading of the view; None: one that tells what it is.

    Returns:
        The view. A notebook shows it; ``save(path)`` and ``str()`` give a page without scripts that needs no network.

    Raises:
        TypeError: If a text is not a string, or ``top_k`` no integer.
        ValueError: If an argument is not one of its choices, or see
            :func:`~st_keytokens.analysis.pair.explain_pair` with two texts.
    """
    texts = check_texts([text] if other is None else [text, other])
    top_k = checked_int("top_k", top_k, minimum=1)
    check_choice("shading", shading, get_args(Shading))
    sides = _sides(encoder, texts, top_k, shading, role)
    shared = _shared(sides) if len(sides) > 1 else {}
    parts = [f'<p class="note">{_NOTES[shading]}{" Numbers link tokens that both share." if shared else ""}</p>']
    names = ["Text"] if other is None else ["First text", "Second text"]
    columns = [_column(encoder, name, side, shared) for name, side in zip(names, sides, strict=True)]
    parts.append(f'<div class="texts">{"".join(columns)}</div>')
    if len(texts) == 2:
        parts.append(explanation_table(explain_pair(encoder, *texts, top_k=top_k, role=role)))
        parts.append(sparse_table(explain_sparse_pair(encoder, *texts)))
    return HtmlView(title or ("Key tokens" if other is None else "Key tokens of a pair"), "".join(parts))


def _sides(encoder: KeyTokenEncoder, texts: list[str], top_k: int, shading: Shading, role: Role) -> list[_Side]:
    with encoder.lock, torch.inference_mode():
        pooled = encoder.forward_pass.pooled(texts, role)
        decoded = as_sparse(encoder.head.decode(pooled), encoder.vocabulary)
        best = as_sparse(encoder.head.decode(pooled, max_active_dims=top_k), encoder.vocabulary)
    shades = (decoded if shading == "decoded" else encoder.encode(texts, role=role).sparse).to_dicts()
    is_silent = [not len(terms) for terms in encoder.literal_terms(texts)]
    return [
        _Side(text, literal_spans(encoder, text), {} if silent else own, {} if silent else shade)
        for text, own, shade, silent in zip(texts, best.to_dicts(), shades, is_silent, strict=True)
    ]


def _shared(sides: Sequence[_Side]) -> dict[int, int]:
    """Numbers, from 1, of the terms that both sides show, the strongest first."""
    first, second = (side.terms for side in sides)
    both = sorted(first.keys() & second.keys(), key=lambda term: (-min(first[term], second[term]), term))
    return {term: number for number, term in enumerate(both[:_MAX_SHARED], start=1)}


def _column(encoder: KeyTokenEncoder, name: str, side: _Side, shared: Mapping[int, int]) -> str:
    strings = encoder.vocabulary.strings
    own = {term for span in side.spans for term in span.terms}
    ranked = sorted(side.decoded.items(), key=lambda item: (-item[1], item[0]))
    bars = [(_label(strings[t], shared.get(t)), weight, "" if t in own else "other") for t, weight in ranked]
    caption = "Decoded key tokens; striped: not in the text" if own else "Decoded key tokens"
    in_order = dict.fromkeys(term for span in side.spans for term in span.terms)
    shaded = [(_label(strings[t], None), side.shading[t], "") for t in in_order if t in side.shading]
    numbers = bar_table("Weights of the text's own tokens", shaded)
    return (
        f'<section><h2>{name}</h2><p class="words" dir="auto" lang="">{_words(side, shared)}</p>'
        + (bar_table(caption, bars) if bars else '<p class="note">No key tokens.</p>')
        + (f"<details><summary>Weights of the text's own tokens</summary>{numbers}</details>" if shaded else "")
        + "</section>"
    )


def _words(side: _Side, shared: Mapping[int, int]) -> str:
    """The text with its spans marked."""
    largest = max((side.shading.get(term, 0.0) for span in side.spans for term in span.terms), default=0.0)
    parts, place = [], 0
    for span in side.spans:
        parts.append(escaped(side.text[place : span.start]))
        weight = max(side.shading.get(term, 0.0) for term in span.terms)
        number = next((shared[term] for term in span.terms if term in shared), None)
        word = escaped(side.text[span.start : span.end])
        if weight > 0 or number is not None:
            style = f' class="shared k{(number - 1) % _STYLES}"' if number is not None else ""
            shade = weight / largest if largest > 0 else 0.0
            word = f'<mark{style} style="--w:{shade:.3f}">{word}</mark>{_number(number)}'
        parts.append(word)
        place = span.end
    return "".join([*parts, escaped(side.text[place:])])


def _label(token: str, number: int | None) -> str:
    return f'<bdi lang="">{escaped(token)}</bdi>{_number(number)}'


def _number(number: int | None) -> str:
    return "" if number is None else f'<sup class="k{(number - 1) % _STYLES}">{number}</sup>'
