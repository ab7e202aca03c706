"""The command analyze: alignment, spectrum, instructions and pairs, as tables, pictures and pages."""

from __future__ import annotations

import copy
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_keytokens.analysis.html_view import html_report, html_view
from st_keytokens.analysis.tables import table_cells
from st_keytokens.cli.console import Console, UserError, one_line, table
from st_keytokens.cli.inputs import Corpus, read_texts
from st_keytokens.cli.model_commands import Texts
from st_keytokens.cli.models import clear_errors, load_encoder
from st_keytokens.encoder.encoder import KeyTokenEncoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.html_view import HtmlView


_SHOWN = 100  # characters of a text in a heading
_TABLED_TEXTS = 20  # texts whose key tokens are shown one by one


def analyze(arguments: Namespace, console: Console) -> None:
    """Runs one analysis."""
    if arguments.plot is not None and find_spec("matplotlib") is None:
        raise UserError('--plot needs matplotlib, which is not installed. Run pip install "st-keytokens[analysis]".')
    {"alignment": alignment, "spectrum": spectrum, "instructions": instructions, "pair": pair}[arguments.analysis](
        arguments, console
    )


def instructions(arguments: Namespace, console: Console) -> None:
    """Shows what instructions change in the key tokens of texts."""
    from st_keytokens.analysis.instructions import compare_instructions
    from st_keytokens.analysis.plots.instructions import plot_instructions

    batches = read_texts(arguments, "corpus", arguments.batch_size)
    encoder = load_encoder(arguments)
    texts = [record.text for batch in batches for record in batch]
    prompts = [*([] if arguments.baseline is None else [arguments.baseline]), *arguments.instruction]
    found = compare_instructions(
        encoder,
        texts,
        list(dict.fromkeys(prompts)),
        baseline=None if arguments.baseline is None else arguments.baseline.strip() or "empty",
        top_k=arguments.top_k,
        role=arguments.role,
        batch_size=arguments.batch_size,
        show_progress_bar=console.has_progress,
    )
    tables = [("All texts", found.table())]
    tables += [(one_line(text, _SHOWN), found.text_table(i)) for i, text in enumerate(found.texts[:_TABLED_TEXTS])]
    if found.pools_prompt:
        console.message("The instruction's own words are part of the pooled vector; see the column own words.")
    figures = {"": lambda: plot_instructions(found)}
    _give(arguments, console, found.to_dict(), tables, figures, "Key tokens under instructions")


def pair(arguments: Namespace, console: Console) -> None:
    """Explains the dense similarity and the sparse score of two texts."""
    from st_keytokens.analysis.pair import explain_pair, explain_sparse_pair
    from st_keytokens.analysis.plots.pair import plot_pair

    encoder, texts = load_encoder(arguments), (arguments.text, arguments.other)
    dense = explain_pair(encoder, *texts, top_k=arguments.top_k, similarity=arguments.similarity, role=arguments.role)
    sparse = explain_sparse_pair(encoder, *texts)
    tables = [("Dense similarity", dense.table()), ("Sparse score", sparse.table())]
    page = html_view(encoder, *texts, top_k=arguments.top_k, role=arguments.role) if arguments.html else None
    content = {"dense": dense.to_dict(), "sparse": sparse.to_dict()}
    _give(arguments, console, content, tables, {"": lambda: plot_pair(dense)}, "", page)


def alignment(arguments: Namespace, console: Console) -> None:
    """Measures how well decoded tokens are the texts' own, for an embedder and maybe its backbone."""
    from st_keytokens.analysis.alignment import VARIANTS, measure_alignment
    from st_keytokens.analysis.plots.alignment import plot_alignment

    texts, encoder = _corpus_and_encoder(arguments)
    encoders = {"embedder": encoder}
    if arguments.backbone is not None:
        encoders["backbone"] = _pooled_alike(encoder, arguments.backbone)
    is_clean = arguments.definition == "clean"  # the published code's tokens are raw ones, which no statistics are of
    found = measure_alignment(
        texts,
        encoders,
        variants={name: how for name, how in VARIANTS.items() if is_clean or not how.get("standardize")},
        definition=arguments.definition,
        batch_size=arguments.batch_size,
        show_progress_bar=console.has_progress,
    )
    heading = f"{len(texts):,} texts"
    figures = {"": lambda: plot_alignment(found)}
    _give(arguments, console, found.to_dict(), [(heading, found.table())], figures, "Alignment with key tokens")


def spectrum(arguments: Namespace, console: Console) -> None:
    """Compares an embedder with its backbone along the backbone's components."""
    from st_keytokens.analysis.contribution import measure_contribution
    from st_keytokens.analysis.plots.spectrum import plot_contribution, plot_shift_sweep, plot_variation
    from st_keytokens.analysis.shift import sweep_shift
    from st_keytokens.analysis.variation import measure_variation

    texts, encoder = _corpus_and_encoder(arguments)
    backbone = _pooled_alike(encoder, arguments.backbone)
    options = {"batch_size": arguments.batch_size, "show_progress_bar": console.has_progress}
    variation = measure_variation(encoder, backbone, texts, **options)
    contribution = measure_contribution(backbone, texts, component=variation.spectrum, **options)
    sweep = sweep_shift(backbone, texts, component=variation, **options)
    found: dict[str, Any] = {"variation": variation, "contribution": contribution, "shift": sweep}
    figures = {
        "": lambda: plot_variation(variation),
        "-contribution": lambda: plot_contribution(contribution),
        "-shift": lambda: plot_shift_sweep(sweep),
    }
    content = {name: result.to_dict() for name, result in found.items()}
    tables = [(name.capitalize(), result.table()) for name, result in found.items()]
    _give(arguments, console, content, tables, figures, "An embedder beside its backbone")


def _corpus_and_encoder(arguments: Namespace) -> tuple[list[str], KeyTokenEncoder]:
    with Corpus(arguments.input, arguments) as corpus:
        corpus.check_not_empty()
        texts = list(Texts(corpus))
    return texts, load_encoder(arguments)


def _pooled_alike(encoder: KeyTokenEncoder, name: str) -> KeyTokenEncoder:
    """An encoder of a plain language model, with the pooling of another encoder's model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    pooling = encoder.forward_pass.before[1:]
    with clear_errors(name, {}):
        transformer = Transformer(name, max_seq_length=encoder.model.max_seq_length)
        model = SentenceTransformer(
            modules=[transformer, *copy.deepcopy(pooling)],
            prompts=dict(encoder.model.prompts),
            device=str(encoder.model.device),
        )
        return KeyTokenEncoder(model, backbone=name, cache_size=0)


def _give(
    arguments: Namespace,
    console: Console,
    content: dict[str, Any],
    tables: Sequence[tuple[str, str]],
    figures: Mapping[str, Any],
    title: str,
    page: HtmlView | None = None,
) -> None:
    """Saves what was asked for, and shows the tables.

    Args:
        arguments: With ``output``, ``plot`` and ``html``.
        console: Where the tables go.
        content: All results as JSON values.
        tables: Headings and Markdown.
        figures: What makes each picture, by what is put to the end of its file's stem.
        title: Of the page.
        page: The page itself, where it is another one than tables and pictures.
    """
    saved = []
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        saved.append(arguments.output)
    drawn: list[Figure] = []
    if arguments.plot is not None or (arguments.html is not None and page is None and find_spec("matplotlib")):
        drawn = [make() for make in figures.values()]
    if arguments.plot is not None:
        from st_keytokens.analysis.plots.style import save_figure

        for stem, figure in zip(figures, drawn, strict=True):
            path: Path = arguments.plot.with_stem(arguments.plot.stem + stem)
            save_figure(figure, path)
            saved.append(path)
    if arguments.html is not None:
        named = [(f"{title}: the same as in the tables", figure) for figure in drawn]
        (html_report(title, tables, named) if page is None else page).save(arguments.html)
        saved.append(arguments.html)
    lines: list[str] = []
    for heading, markdown in tables:
        head, _, rows = table_cells(markdown)
        lines += [*([""] if lines else []), one_line(heading), *table(head, rows, "  ")]
    if saved:
        lines += ["", f"Saved in {', '.join(map(str, saved))}."]
    console.result(content, lines)
