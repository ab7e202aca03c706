"""The command analyze: alignment, spectrum, instructions and pairs, as tables, pictures and pages."""

from __future__ import annotations

import copy
import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_keytokens.cli.console import Console, UserError, one_line, table
from st_keytokens.cli.inputs import CorpusTexts, InputCorpus, read_texts
from st_keytokens.cli.options import (
    add_batch_size,
    add_command,
    add_device_options,
    add_input,
    add_input_options,
    add_model,
    add_model_options,
    add_role,
    add_texts,
    add_top_k,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from st_keytokens.analysis.html_pages import HtmlView
    from st_keytokens.encoder.encoder import KeyTokenEncoder

_SHOWN = 100  # characters of a text in a heading
_TABLED_TEXTS = 20  # texts whose key tokens are shown one by one


def add_analyze_command(commands: Any) -> None:
    """Adds the command ``analyze`` with its four analyses."""
    summary = "show what embeddings say, in tables and pictures"
    analyze = commands.add_parser(
        "analyze", help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    analyses = analyze.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)
    for add in (_add_alignment, _add_spectrum, _add_instructions, _add_pair):
        add(analyses)


def _add_outputs(command: ArgumentParser, note: str = "") -> None:
    group = command.add_argument_group("saving")
    group.add_argument("--output", metavar="FILE", type=_file(".json"), help=".json file of all results")
    group.add_argument("--plot", metavar="FILE", type=_file(".svg", ".png"), help=f".svg or .png picture{note}")
    group.add_argument("--html", metavar="FILE", type=_file(".html"), help=".html page that needs no other file")


def _file(*endings: str) -> Callable[[str], Path]:
    """Reads the path of a file to be written."""

    def read(value: str) -> Path:
        path = Path(value)
        if path.suffix.lower() not in endings:
            raise ArgumentTypeError(f"must end in {' or '.join(endings)}, got {value}")
        if not path.parent.is_dir():
            raise ArgumentTypeError(f"must be in a directory that exists, got {value}")
        return path

    return read


def _check_plot(arguments: Namespace) -> None:
    if arguments.plot is not None and find_spec("matplotlib") is None:
        raise UserError('--plot needs matplotlib, which is not installed. Run pip install "st-keytokens[analysis]".')


def _add_alignment(analyses: Any) -> None:
    command = add_command(
        analyses,
        "alignment",
        "measure how well decoded tokens are the texts' own",
        "st-keytokens analyze alignment MODEL corpus.jsonl --plot alignment.svg",
        _alignment,
        _check_plot,
    )
    add_model(command)
    add_input(command)
    command.add_argument(
        "--definition",
        choices=("clean", "nie2025"),
        default="clean",
        help="of the measures: ours, or as the published code computes them (default: clean)",
    )
    command.add_argument(
        "--backbone",
        metavar="NAME",
        help="the language model that MODEL was made from: its LM head decodes, and it is measured as well, likewise "
        "pooled (default: MODEL alone, decoded by its own LM head)",
    )
    _add_outputs(command)
    add_batch_size(command)
    add_input_options(command)
    add_device_options(command)


def _alignment(arguments: Namespace, console: Console) -> None:
    """Measures how well decoded tokens are the texts' own, for an embedder and maybe its backbone."""
    from st_keytokens.analysis.alignment import VARIANTS, measure_alignment
    from st_keytokens.analysis.plots import plot_alignment

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
    figures = {"": lambda: plot_alignment(found, title=f"{_model(arguments.model)}, {heading}")}
    _give(arguments, console, found.to_dict(), [(heading, found.table())], figures, "Alignment with key tokens")


def _add_spectrum(analyses: Any) -> None:
    command = add_command(
        analyses,
        "spectrum",
        "compare an embedder with its backbone, component by component",
        "st-keytokens analyze spectrum MODEL BACKBONE corpus.jsonl --html spectrum.html",
        _spectrum,
        _check_plot,
    )
    add_model(command)
    command.add_argument(
        "backbone",
        metavar="BACKBONE",
        help="the language model that MODEL was made from; directory or name on the Hub",
    )
    add_input(command)
    _add_outputs(
        command, "; the shift's picture goes to FILE-shift, the first text's contribution to FILE-contribution"
    )
    add_batch_size(command)
    add_input_options(command)
    add_device_options(command)


def _spectrum(arguments: Namespace, console: Console) -> None:
    """Compares an embedder with its backbone along the backbone's components."""
    from st_keytokens.analysis.contribution import measure_contribution
    from st_keytokens.analysis.plots import plot_contribution, plot_shift_sweep, plot_variation
    from st_keytokens.analysis.shift import sweep_shift
    from st_keytokens.analysis.spectrum import measure_variation

    texts, encoder = _corpus_and_encoder(arguments)
    backbone = _pooled_alike(encoder, arguments.backbone)
    options = {"batch_size": arguments.batch_size, "show_progress_bar": console.has_progress}
    variation = measure_variation(encoder, backbone, texts, **options)
    contribution = measure_contribution(backbone, texts, component=variation.spectrum, **options)
    sweep = sweep_shift(backbone, texts, component=variation, **options)
    found: dict[str, Any] = {"variation": variation, "contribution": contribution, "shift": sweep}
    before, count = _model(arguments.backbone), f"{len(texts):,} texts"
    figures = {
        "": lambda: plot_variation(variation, title=f"from {before} to {_model(arguments.model)}, {count}"),
        "-contribution": lambda: plot_contribution(contribution, title=f"{before}, the first text"),
        "-shift": lambda: plot_shift_sweep(sweep, title=f"{before}, {count}"),
    }
    content = {name: result.to_dict() for name, result in found.items()}
    tables = [(name.capitalize(), result.table()) for name, result in found.items()]
    _give(arguments, console, content, tables, figures, "An embedder beside its backbone")


def _add_instructions(analyses: Any) -> None:
    command = add_command(
        analyses,
        "instructions",
        "show what an instruction changes in what embeddings say",
        'st-keytokens analyze instructions MODEL --instruction "Find the sentiment: " "I love this film"',
        _instructions,
        _check_plot,
    )
    add_model(command)
    add_texts(command)
    command.add_argument(
        "--instruction",
        metavar="PROMPT",
        action="append",
        required=True,
        help="put before each text, exactly as given; may be repeated",
    )
    command.add_argument("--baseline", metavar="PROMPT", help="what the others are compared with (default: no prompt)")
    add_top_k(command, "key tokens a text")
    _add_outputs(command, "; of the first text")
    add_role(command)
    add_batch_size(command)
    add_input_options(command)
    add_model_options(command)


def _instructions(arguments: Namespace, console: Console) -> None:
    """Shows what instructions change in the key tokens of texts."""
    from st_keytokens.analysis.instructions import compare_instructions
    from st_keytokens.analysis.plots import plot_instructions
    from st_keytokens.cli.encoders import load_encoder

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
    figures = {"": lambda: plot_instructions(found, title=_model(arguments.model))}
    _give(arguments, console, found.to_dict(), tables, figures, "Key tokens under instructions")


def _add_pair(analyses: Any) -> None:
    command = add_command(
        analyses,
        "pair",
        "explain the similarity of two texts, token by token",
        'st-keytokens analyze pair MODEL "I like apples" "Apples are good" --html pair.html',
        _pair,
        _check_plot,
    )
    add_model(command)
    command.add_argument("text", metavar="TEXT", help="a text; for the sparse score, the query")
    command.add_argument("other", metavar="OTHER", help="another one; for the sparse score, the document")
    add_top_k(command, "key tokens of each text")
    command.add_argument("--similarity", choices=("cosine", "dot"), help="of the dense vectors (default: the model's)")
    _add_outputs(command)
    add_role(command)
    add_model_options(command)


def _pair(arguments: Namespace, console: Console) -> None:
    """Explains the dense similarity and the sparse score of two texts."""
    from st_keytokens.analysis.html_pages import html_view
    from st_keytokens.analysis.pair import explain_pair, explain_sparse_pair
    from st_keytokens.analysis.plots import plot_pair
    from st_keytokens.cli.encoders import load_encoder

    encoder, texts = load_encoder(arguments), (arguments.text, arguments.other)
    dense = explain_pair(encoder, *texts, top_k=arguments.top_k, similarity=arguments.similarity, role=arguments.role)
    sparse = explain_sparse_pair(encoder, *texts)
    tables = [("Dense similarity", dense.table()), ("Sparse score", sparse.table())]
    page = None
    if arguments.html:
        title = f"Key tokens of a pair, {_model(arguments.model)}"
        page = html_view(encoder, *texts, top_k=arguments.top_k, role=arguments.role, title=title)
    content = {"dense": dense.to_dict(), "sparse": sparse.to_dict()}
    figures = {"": lambda: plot_pair(dense, title=_model(arguments.model))}
    _give(arguments, console, content, tables, figures, "", page)


def _model(name: str) -> str:
    """A model's name for a picture: as on the Hub, or a path's last two folders."""
    return "/".join(Path(name).parts[-2:])


def _corpus_and_encoder(arguments: Namespace) -> tuple[list[str], KeyTokenEncoder]:
    from st_keytokens.cli.encoders import load_encoder

    with InputCorpus(arguments.input, arguments) as corpus:
        corpus.check_not_empty()
        texts = list(CorpusTexts(corpus))
    return texts, load_encoder(arguments)


def _pooled_alike(encoder: KeyTokenEncoder, name: str) -> KeyTokenEncoder:
    """An encoder of a plain language model, with the pooling of another encoder's model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    from st_keytokens.cli.encoders import clear_errors
    from st_keytokens.encoder.encoder import KeyTokenEncoder

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
    figures: Mapping[str, Any],  # what makes each picture, by what its file's stem ends in
    title: str,
    page: HtmlView | None = None,  # other than tables and pictures under the title
) -> None:
    """Saves what was asked for, and shows the tables, which are pairs of a heading and Markdown."""
    from st_keytokens.analysis.html_pages import html_report
    from st_keytokens.shared.markdown import table_cells

    saved = []
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        saved.append(arguments.output)
    drawn: list[Figure] = []
    if arguments.plot is not None or (arguments.html is not None and page is None and find_spec("matplotlib")):
        drawn = [make() for make in figures.values()]
    if arguments.plot is not None:
        from st_keytokens.analysis.plots import save_figure

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
