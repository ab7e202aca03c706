"""Tables with bars, and figures, as HTML."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from st_keytokens.analysis.html_page import HtmlView, escaped
from st_keytokens.analysis.pair import PairExplanation
from st_keytokens.analysis.pair_scores import SparseExplanation
from st_keytokens.analysis.tables import table_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bar_table", "explanation_table", "html_report", "sparse_table"]

_MAX_TERMS = 20  # of a sparse score, which are shown one by one


def bar_table(
    caption: str, rows: Sequence[tuple[str, float, str]], head: tuple[str, str] = ("token", "weight")
) -> str:
    """A table with a bar for each row; what a bar shows is also there as a number.

    Args:
        caption: Of the table, plain text.
        rows: HTML of the label, value, and class of the bar: ``""``, ``"other"`` or ``"rest"``; bars of negative
            values go to the left.
        head: Names of the first and the last column.
    """
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
    rows = [(f'<bdi lang="">{escaped(share.token)}</bdi>', share.contribution, "") for share in explanation.tokens]
    if explanation.common_part != "nothing":
        rows.append((f"({explanation.common_part})", explanation.common, "rest"))
    rows.append(("(other directions)", explanation.remainder, "rest"))
    caption = (
        "What each key token of either text accounts for; grey: what was taken away before decoding, and what none of "
        f"them points to. All parts sum to {explanation.value:.3f}."
    )
    heading = f"<h2>Dense similarity: {explanation.similarity} {explanation.value:.3f}</h2>"
    return f"<section>{heading}{bar_table(caption, rows, ('token', explanation.similarity))}</section>"


def sparse_table(explanation: SparseExplanation) -> str:
    """A sparse score in parts, as a section."""
    heading = f"<h2>Sparse score: {explanation.score:.3f}</h2>"
    if not explanation.terms:
        return f'<section>{heading}<p class="note">The sparse vectors share no term.</p></section>'
    shown, rest = explanation.terms[:_MAX_TERMS], explanation.terms[_MAX_TERMS:]
    rows = [(f'<bdi lang="">{escaped(str(term.token))}</bdi>', term.contribution, "") for term in shown]
    if rest:
        rows.append((f"({len(rest)} more)", sum(term.contribution for term in rest), "rest"))
    caption = (
        "Terms of the first text, as a query, that the second holds, as a document; they sum to "
        f"{explanation.score:.3f}."
    )
    return f"<section>{heading}{bar_table(caption, rows, ('term', 'score'))}</section>"


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


def _table(markdown: str) -> str:
    """A Markdown table as HTML."""
    head, is_number, rows = table_cells(markdown)
    kinds = ['class="number"' if number else "" for number in is_number]
    names = "".join(f'<th scope="col" {kind}>{escaped(text)}</th>' for text, kind in zip(head, kinds, strict=True))
    cells = ["".join(f"<td {kind}>{escaped(t)}</td>" for t, kind in zip(row, kinds, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def _picture(figure: Figure) -> str:
    from st_keytokens.analysis.plots.style import save_figure

    with TemporaryDirectory() as folder:
        path = Path(folder, "figure.svg")
        save_figure(figure, path)
        return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
