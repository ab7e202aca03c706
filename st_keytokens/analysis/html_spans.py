"""Where a text's literal terms stand in it."""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import Tokenizer

from st_keytokens.encoder import KeyTokenEncoder

__all__ = ["Span", "literal_spans"]


class Span(NamedTuple):
    """Characters ``text[start:end]`` and the terms that they are: several where a character takes several tokens."""

    start: int
    end: int
    terms: tuple[int, ...]


def literal_spans(encoder: KeyTokenEncoder, text: str) -> list[Span]:
    """Finds the characters of each literal term of a text.

    Args:
        encoder: Whose tokenizer.
        text: The text, without lone surrogates.

    Returns:
        Spans in order that do not overlap and hold no white space at their ends; none where the tokenizer, as a slow
        one, does not say which characters a token is made of.
    """
    backend = getattr(encoder.model.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return []
    backend = Tokenizer.from_str(backend.to_str())  # a copy: the model's own is told to truncate and to pad
    backend.no_truncation()
    backend.no_padding()
    wanted, stripped = encoder.literal_terms([text])[0].tolist(), text.lstrip()
    for prefix in ("", " "):  # literal terms are found after a space where the tokenizer adds none itself
        encoding = backend.encode(prefix + stripped, add_special_tokens=False)
        found = [encoder.vocabulary.term_ids([token]).tolist() for token in encoding.ids]
        if [term for terms in found for term in terms] == wanted:
            moved = len(text) - len(stripped) - len(prefix)
            offsets = [(start + moved, end + moved) for start, end in encoding.offsets]
            return _joined(text, [Span(*ends, tuple(t)) for ends, t in zip(offsets, found, strict=True) if t])
    return []


def _joined(text: str, spans: list[Span]) -> list[Span]:
    """Spans without white space at their ends, those of the same characters in one."""
    joined: list[Span] = []
    for start, end, terms in spans:
        start = max(start, 0)
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if joined and start < joined[-1].end:
            last = joined.pop()
            joined.append(Span(last.start, max(last.end, end), last.terms + terms))
        elif start < end:
            joined.append(Span(start, end, terms))
    return joined
