"""Pages that need no other file: a text's tokens shaded and decoded, why two texts match, or tables and pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from tokenizers import Tokenizer

from st_keytokens.analysis.pair import PairExplanation, SparseExplanation, explain_pair, explain_sparse_pair
from st_keytokens.encoder.encoder import KeyTokenEncoder, without_silent
from st_keytokens.encoder.forward_pass import Role, as_sparse
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.shared.markdown import printable, table_cells
from st_keytokens.terms.literal_terms import check_texts
from st_keytokens.terms.words import Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["HtmlView", "html_report", "html_view"]

Shading = Literal["decoded", "sparse"]
_MAX_TERMS = 20  # of a sparse score, which are shown one by one
_STYLES = 4  # colours and lines of shared tokens, which repeat
_MAX_SHARED = 12
_NOTES = {
    "decoded": "The stronger the shade of a token, the more strongly the embedding says it.",
    "sparse": "The stronger the shade of a token, the more it weighs in the sparse vector.",
}

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # no script and no network, whatever slips in

_STYLE = """
.keytokens{--back:#fff;--text:#1b1b1b;--faint:#5c5c5c;--line:#cfcfcf;--heat:0,114,178;--for:#0072b2;--against:#b34700;
--other:#7a7a7a;--c0:#0072b2;--c1:#b34700;--c2:#007a59;--c3:#a8447f;background:var(--back);color:var(--text);
font:15px/1.55 system-ui,sans-serif;padding:1rem;max-width:75rem;margin:0 auto;box-sizing:border-box}
@media(prefers-color-scheme:dark){.keytokens{--back:#16181c;--text:#ececec;--faint:#b0b0b0;--line:#454a52;
--heat:86,180,233;--for:#56b4e9;--against:#f08a3c;--other:#9a9a9a;--c0:#56b4e9;--c1:#f08a3c;--c2:#3ccfa3;--c3:#e79cc4}}
.keytokens h1{font-size:1.25rem;margin:0 0 .6rem}.keytokens h2{font-size:1rem;margin:1.2rem 0 .3rem}
.keytokens .texts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1.5rem}
.keytokens .words{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--line);border-radius:4px;
padding:.6rem .7rem;margin:.3rem 0;line-height:1.9;background:none;color:inherit}
.keytokens mark{background:rgba(var(--heat),calc(var(--w)*.5));color:inherit;border-radius:2px;padding:.08em 0;
-webkit-print-color-adjust:exact;print-color-adjust:exact}
.keytokens .shared{border-bottom:3px solid}.keytokens sup{font-size:.7em;font-weight:700;line-height:1}
.keytokens mark.k0{border-color:var(--c0)}.keytokens mark.k1{border-color:var(--c1);border-bottom-style:dashed}
.keytokens mark.k2{border-color:var(--c2);border-bottom-style:dotted}
.keytokens mark.k3{border-color:var(--c3);border-bottom-style:double}
.keytokens sup.k0{color:var(--c0)}.keytokens sup.k1{color:var(--c1)}
.keytokens sup.k2{color:var(--c2)}.keytokens sup.k3{color:var(--c3)}
.keytokens table{border-collapse:collapse;width:100%;font-size:.9em;background:none;color:inherit}
.keytokens caption{text-align:start;color:var(--faint);padding:.2rem 0}
.keytokens th,.keytokens td{padding:.1rem .5rem .1rem 0;text-align:start;vertical-align:middle;
font-weight:400;background:none;color:inherit;border:0}
.keytokens thead th,.keytokens thead td{color:var(--faint);border-bottom:1px solid var(--line)}
.keytokens tbody tr{background:none}
.keytokens .number{text-align:end;font-variant-numeric:tabular-nums;white-space:nowrap;width:1%}
.keytokens .token{width:1%;white-space:nowrap;max-width:14rem;overflow:hidden;text-overflow:ellipsis}
.keytokens .bar{display:flex;direction:ltr;height:.8em;min-width:6rem}
.keytokens .bar i{display:block;height:100%;background:var(--for);-webkit-print-color-adjust:exact;
print-color-adjust:exact}
.keytokens .bar i.gap{background:none}.keytokens .bar i.rest{background:var(--other)}
.keytokens .bar i.other,.keytokens .bar i.against{background:repeating-linear-gradient(135deg,var(--against) 0 4px,
transparent 4px 6px)}
.keytokens .note{color:var(--faint);font-size:.9em;margin:.3rem 0}
.keytokens details{margin:.4rem 0}.keytokens summary{cursor:pointer;color:var(--faint)}
.keytokens summary:focus-visible{outline:2px solid var(--for)}
.keytokens img{margin-top:1rem;max-width:100%;height:auto;background:#fff;border-radius:4px}
.keytokens .wide{overflow-x:auto}
"""

_PAGE_STYLE = "body{margin:0;background:#fff}@media(prefers-color-scheme:dark){body{background:#16181c}}"  # no frame


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


def html_report(title: str, tables: Sequence[tuple[str, str]], figures: Sequence[tuple[str, Figure]] = ()) -> HtmlView:
    """A page of tables and pictures.

    Args:
        title: Of the page.
        tables: Heading and Markdown of each, as the results' ``table()`` gives it.
        figures: What each picture shows, in words, and the picture.

    Returns:
        The view; pictures are part of it.
    """
    parts = [
        f'<section><h2>{escaped(heading)}</h2><div class="wide">{_table(markdown)}</div></section>'
        for heading, markdown in tables
    ]
    parts += [f'<section><img alt="{escaped(words)}" src="{_picture(figure)}"></section>' for words, figure in figures]
    return HtmlView(title, "".join(parts))


@dataclass(frozen=True)
class HtmlView:
    """A view for notebooks, which show it as it is, and for files.

    Attributes:
        title: Of the page.
        body: HTML without anything that needs escaping.
    """

    title: str
    body: str

    def _repr_html_(self) -> str:
        heading = f"<h1>{escaped(self.title)}</h1>"
        return f'<style>{_STYLE}</style><article class="keytokens">{heading}{self.body}</article>'

    def __str__(self) -> str:
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{escaped(self.title)}</title><style>{_PAGE_STYLE}</style></head>"
            f"<body>{self._repr_html_()}</body></html>\n"
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a page that needs no other file and no network.

        Args:
            path: The file; an existing one is replaced.

        Raises:
            OSError: If it cannot be written.
        """
        Path(path).write_text(str(self), encoding="utf-8", newline="\n")


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


def _sides(encoder: KeyTokenEncoder, texts: list[str], top_k: int, shading: Shading, role: Role) -> list[_Side]:
    with encoder.lock, torch.inference_mode():
        pooled = encoder.forward_pass.pooled(texts, role)
        found = [encoder.head.decode(pooled, max_active_dims=most) for most in (top_k, None)]
    literal = encoder.literal_terms(texts)
    best, decoded = (without_silent(as_sparse(pairs, encoder.vocabulary), literal) for pairs in found)
    shades = decoded if shading == "decoded" else encoder.encode(texts, role=role).sparse
    spans = [literal_spans(encoder, text) for text in texts]
    return list(map(_Side, texts, spans, best.to_dicts(), shades.to_dicts()))


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
    shaded = [(_label(strings[t]), side.shading[t], "") for t in in_order if t in side.shading]
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


def _label(token: str, number: int | None = None) -> str:
    return f'<bdi lang="">{escaped(token)}</bdi>{_number(number)}'


def _number(number: int | None) -> str:
    return "" if number is None else f'<sup class="k{(number - 1) % _STYLES}">{number}</sup>'


def escaped(text: str) -> str:
    """A text as HTML shows it: markup escaped, and what has no shape as U+FFFD, one by one."""
    return html.escape(printable(text))


def bar_table(
    caption: str, rows: Sequence[tuple[str, float, str]], head: tuple[str, str] = ("token", "weight")
) -> str:
    """Rows of label (HTML), value and class of the bar: ``""``, ``"other"`` or ``"rest"``; each bar has its number."""
    highest = max([0.0, *(value for _, value, _ in rows)])
    lowest = min([0.0, *(value for _, value, _ in rows)])
    span = highest - lowest or 1.0
    lines = [
        f'<tr><th scope="row" class="token">{label}</th><td aria-hidden="true"><span class="bar">'
        f'<i class="gap" style="width:{100 * (min(value, 0.0) - lowest) / span:.2f}%"></i>'
        f'<i class="{kind if value >= 0 else "against"}" style="width:{100 * abs(value) / span:.2f}%"></i></span></td>'
        f'<td class="number">{value:.3f}</td></tr>'
        for label, value, kind in rows
    ]
    return (
        f'<table><caption>{escaped(caption)}</caption><thead><tr><th scope="col">{head[0]}</th>'
        f'<td aria-hidden="true"></td><th scope="col" class="number">{head[1]}</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def explanation_table(explanation: PairExplanation) -> str:
    """A dense similarity in parts, as a section."""
    rows = [(_label(share.token), share.contribution, "") for share in explanation.tokens]
    if explanation.common_part != "nothing":
        rows.append((f"({explanation.common_part})", explanation.common, "rest"))
    rows.append(("(other directions)", explanation.remainder, "rest"))
    caption = (
        "What each key token of either text accounts for; grey: what was taken away before decoding, and what none of "
        f"them points to. All parts sum to {explanation.value:.3f}."
    )
    table = bar_table(caption, rows, ("token", explanation.similarity))
    return f"<section><h2>Dense similarity: {explanation.similarity} {explanation.value:.3f}</h2>{table}</section>"


def sparse_table(explanation: SparseExplanation) -> str:
    """A sparse score in parts, as a section."""
    shown, rest = explanation.terms[:_MAX_TERMS], explanation.terms[_MAX_TERMS:]
    rows = [(_label(str(term.token)), term.contribution, "") for term in shown]
    if rest:
        rows.append((f"({len(rest)} more)", sum(term.contribution for term in rest), "rest"))
    caption = (
        "Terms of the first text, as a query, that the second holds, as a document; they sum to "
        f"{explanation.score:.3f}."
    )
    none = '<p class="note">The sparse vectors share no term.</p>'
    table = bar_table(caption, rows, ("term", "score")) if rows else none
    return f"<section><h2>Sparse score: {explanation.score:.3f}</h2>{table}</section>"


def _table(markdown: str) -> str:
    """A Markdown table as HTML."""
    head, is_number, rows = table_cells(markdown)
    kinds = ['class="number"' if number else "" for number in is_number]
    names = "".join(f'<th scope="col" {kind}>{escaped(text)}</th>' for text, kind in zip(head, kinds, strict=True))
    cells = ["".join(f"<td {kind}>{escaped(t)}</td>" for t, kind in zip(row, kinds, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def _picture(figure: Figure) -> str:
    from st_keytokens.analysis.plots import save_figure

    with TemporaryDirectory() as folder:
        path = Path(folder, "figure.svg")
        save_figure(figure, path)
        return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


class Span(NamedTuple):
    """Characters ``text[start:end]`` and the terms that they are: several where a character takes several tokens."""

    start: int
    end: int
    terms: tuple[int, ...]


def literal_spans(encoder: KeyTokenEncoder, text: str) -> list[Span]:
    """The characters of a text's terms, in order; none where the tokenizer, as a slow one, does not tell them."""
    backend = getattr(encoder.model.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return []
    if isinstance(encoder.literal_terms, Words):
        return [Span(start, end, (term,)) for term, start, end in encoder.literal_terms.spans(text)]
    vocabulary = encoder.head.token_vocabulary
    backend = Tokenizer.from_str(backend.to_str())  # a copy: the model's own is told to truncate and to pad
    backend.no_truncation()
    backend.no_padding()
    wanted, stripped = encoder.literal_terms([text])[0].tolist(), text.lstrip()
    for prefix in ("", " "):  # literal terms are found after a space where the tokenizer adds none itself
        encoding = backend.encode(prefix + stripped, add_special_tokens=False)
        found = [vocabulary.term_ids([token]).tolist() for token in encoding.ids]
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
