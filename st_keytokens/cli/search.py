"""The commands search and explain: hits, and the terms that a query shares with them."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from st_keytokens.cli.console import Console, UserError, one_line, table
from st_keytokens.cli.inputs import read_texts
from st_keytokens.cli.options import (
    add_batch_size,
    add_command,
    add_index_directory,
    add_input_options,
    add_lookup,
    add_stored_model_options,
    add_texts,
    add_top_k,
)

if TYPE_CHECKING:
    from st_keytokens.encoder.encoder import KeyTokenEncoder
    from st_keytokens.index import Hit, MatchedTerm
    from st_keytokens.sparse_embeddings import HybridEmbeddings

_SHOWN_TERMS = 8  # matched terms of a hit that are shown to people
_WIDTH = 80  # characters of a text that are shown


def add_search_commands(commands: Any) -> None:
    """Adds the commands ``search`` and ``explain``."""
    command = add_command(
        commands,
        "search",
        "search an index",
        'st-keytokens search my-index "heart disease" --filter \'{"year": {"$gte": 2000}}\' --explain',
        _search,
        _check_mode,
    )
    add_index_directory(command)
    add_texts(command, "QUERY", "queries")
    command.add_argument(
        "--mode",
        choices=("sparse", "dense", "hybrid"),
        help="compare key tokens, dense vectors or both (default: hybrid; with --lookup, sparse)",
    )
    add_top_k(command, "hits a query")
    command.add_argument("--filter", metavar="JSON", help='only documents with such metadata, as {"lang": "en"}')
    add_lookup(command)
    command.add_argument(
        "--explain", action="store_true", help="show the key tokens that each hit shares with the query"
    )
    add_batch_size(command)
    add_input_options(command)
    add_stored_model_options(command)

    command = add_command(
        commands,
        "explain",
        "show which key tokens a query shares with a document",
        'st-keytokens explain my-index "heart disease" doc-17',
        _explain,
    )
    add_index_directory(command)
    command.add_argument("query", metavar="QUERY", help="the query")
    command.add_argument("document", metavar="DOC_ID", help="id of the document")
    add_lookup(command)
    add_stored_model_options(command)


def _check_mode(arguments: Namespace) -> None:
    if arguments.lookup and arguments.mode in ("dense", "hybrid"):
        raise UserError(f"--mode must be sparse with --lookup, which makes no dense vectors, got {arguments.mode}.")


def _search(arguments: Namespace, console: Console) -> None:
    """Searches an index."""
    from st_keytokens.cli.encoders import load_index_encoder
    from st_keytokens.index import HybridIndex

    condition = None if arguments.filter is None else _filter(arguments.filter)
    batches = read_texts(arguments, "queries", arguments.batch_size)
    encoder = load_index_encoder(arguments)
    with HybridIndex(arguments.index, encoder=encoder, read_only=True) as opened:
        is_hybrid = arguments.mode in (None, "hybrid") and bool(opened.settings["embedding_dimension"])
        for batch in batches:
            queries = _embed_queries(encoder, [record.text for record in batch], arguments, is_hybrid)
            found = opened.search(queries, mode=arguments.mode, top_k=arguments.top_k, filter=condition)
            for position, (record, hits) in enumerate(zip(batch, found, strict=True)):
                terms = None
                if arguments.explain:
                    terms = [opened.explain(queries[position], hit) for hit in hits]
                value = {"query_id": record.id, "query": record.text, "hits": _hit_values(hits, terms)}
                console.result(value, [one_line(record.text), *_hit_lines(hits, terms)])


def _explain(arguments: Namespace, console: Console) -> None:
    """Shows the terms that a query shares with a document."""
    from st_keytokens.cli.encoders import load_index_encoder
    from st_keytokens.index import HybridIndex

    with HybridIndex(arguments.index, read_only=True) as opened:
        if arguments.document not in opened:
            raise UserError(f"DOC_ID must be in the index, got {arguments.document!r}.")
        (document,) = opened.get([arguments.document])
    encoder = load_index_encoder(arguments)
    with HybridIndex(arguments.index, encoder=encoder, read_only=True) as opened:
        terms = opened.explain(_embed_queries(encoder, [arguments.query], arguments, False), arguments.document)
    score = sum(term.contribution for term in terms)
    rows = [[term.contribution, term.query_weight, term.document_weight, one_line(term.token or "")] for term in terms]
    console.result(
        {
            "query": arguments.query,
            "document": asdict(document),
            "score": score,
            "matched_terms": [asdict(term) for term in terms],
        },
        [
            f"{one_line(document.id)}  {one_line(document.text or '', _WIDTH)}",
            *table(["contribution", "query", "document", "token"], rows, "  "),
            f"  {score:.4f} is the sum, the sparse score.",
        ],
    )


def _embed_queries(
    encoder: KeyTokenEncoder, texts: list[str], arguments: Namespace, is_hybrid: bool
) -> HybridEmbeddings:
    return encoder.encode_query(texts, query="lookup" if arguments.lookup else None, is_hybrid=is_hybrid)


def _filter(text: str) -> dict[str, Any]:
    from st_keytokens.index.filters import parse_filter

    try:
        condition = json.loads(text)
        if not isinstance(condition, dict):
            raise TypeError("it is no object")
        parse_filter(condition)
    except (ValueError, TypeError, RecursionError) as err:
        raise UserError(f'--filter must be a JSON object such as {{"year": 2000}}, got {text!r}: {err}') from err
    return condition


def _hit_values(hits: list[Hit], terms: list[list[MatchedTerm]] | None) -> list[dict[str, Any]]:
    values = [asdict(hit) for hit in hits]
    for value, matched in zip(values, terms or [], strict=False):
        value["matched_terms"] = [asdict(term) for term in matched]
    return values


def _hit_lines(hits: list[Hit], terms: list[list[MatchedTerm]] | None) -> list[str]:
    """A table of hits, each followed by its matched terms where these are asked for."""
    if not hits:
        return ["  no hits"]
    sides = ["sparse", "dense"] if any(len(hit.scores) > 1 for hit in hits) else []
    rows = [
        [
            hit.rank,
            hit.score,
            *(hit.scores.get(side, "-") for side in sides),
            one_line(hit.id),
            one_line(hit.text or "", _WIDTH),
        ]
        for hit in hits
    ]
    lines = table(["", "score", *sides, "id", "text"], rows, "  ")
    if terms is None:
        return lines
    explained = lines[:1]
    for line, matched in zip(lines[1:], terms, strict=True):
        shown = ", ".join(f"{one_line(term.token or '')} {term.contribution:.2f}" for term in matched[:_SHOWN_TERMS])
        explained += [line, f"      {shown or 'no term in common'}"]
    return explained
