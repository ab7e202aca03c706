"""The commands search and explain: hits, and the terms that a query shares with them."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
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
    from st_keytokens.index import Hit, HybridIndex, MatchedTerm
    from st_keytokens.sparse_embeddings import HybridEmbeddings

_SHOWN_TERMS = 8  # matched terms of a hit that are shown to people
_SHOWN_KEYS = 20  # metadata keys that are named where a filter asks for another
_COMMON_SHARE = 0.5  # a term that more of the documents have says nothing of one (its BM25 weight would be below 0)
_SMALL_SHARE = 0.01  # of the sparse score: what contributes less is not shown
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
        is_streaming=True,
    )
    add_index_directory(command)
    add_texts(command, "QUERY", "queries")
    _add_search_options(command)
    command.add_argument(
        "--explain", action="store_true", help="show the key tokens that each hit shares with the query"
    )
    add_batch_size(command)
    add_input_options(command)
    add_stored_model_options(command)

    command = add_command(
        commands,
        "explain",
        "show what a search, made with the same options, finds in a document",
        'st-keytokens explain my-index "heart disease" doc-17',
        _explain,
        _check_mode,
    )
    add_index_directory(command)
    command.add_argument("query", metavar="QUERY", help="the query")
    command.add_argument("document", metavar="DOC_ID", help="id of the document")
    _add_search_options(command)
    add_stored_model_options(command)


def _add_search_options(command: ArgumentParser) -> None:
    command.add_argument(
        "--mode",
        choices=("sparse", "dense", "hybrid"),
        help="compare key tokens, dense vectors or both (default: hybrid; with --lookup, sparse)",
    )
    add_top_k(command, "hits a query")
    command.add_argument("--filter", metavar="JSON", help='only documents with such metadata, as {"lang": "en"}')
    add_lookup(command)


def _check_mode(arguments: Namespace) -> None:
    if arguments.lookup and arguments.mode in ("dense", "hybrid"):
        raise UserError(f"--mode must be sparse with --lookup, which makes no dense vectors, got {arguments.mode}.")


def _search(arguments: Namespace, console: Console) -> None:
    """Searches an index."""
    from st_keytokens.cli.encoders import load_index_encoder
    from st_keytokens.index import HybridIndex

    condition = None if arguments.filter is None else _filter(arguments.filter)
    batches = read_texts(arguments, "queries", arguments.batch_size, console)
    encoder = load_index_encoder(arguments, console)
    with HybridIndex(arguments.index, encoder=encoder, read_only=True) as opened:
        _report_filter(opened, condition, console)
        for batch in batches:
            queries, found = _found(opened, encoder, [record.text for record in batch], arguments, condition)
            for position, (record, hits) in enumerate(zip(batch, found, strict=True)):
                terms = None
                if arguments.explain:
                    terms = [opened.explain(queries[position], hit) for hit in hits]
                value = {"query_id": record.id, "query": record.text, "hits": _hit_values(hits, terms)}
                shown = None if terms is None else [_told(opened, matched) for matched in terms]
                console.result(value, [one_line(record.text), *_hit_lines(hits, shown)])


def _explain(arguments: Namespace, console: Console) -> None:
    """Shows what the search of the same options finds in a document: its rank and scores there, and the terms."""
    from st_keytokens.cli.encoders import load_index_encoder
    from st_keytokens.index import HybridIndex

    condition = None if arguments.filter is None else _filter(arguments.filter)
    with HybridIndex(arguments.index, read_only=True) as opened:
        if len(opened) and arguments.document not in opened:  # of one without documents, more is to be said
            raise _unknown(arguments)
    encoder = load_index_encoder(arguments, console)
    with HybridIndex(arguments.index, encoder=encoder, read_only=True) as opened:
        if arguments.document not in opened:
            raise _unknown(arguments)
        (document,) = opened.get([arguments.document])
        _report_filter(opened, condition, console)
        queries, (hits,) = _found(opened, encoder, [arguments.query], arguments, condition)
        hit = next((hit for hit in hits if hit.id == document.id), None)
        terms = opened.explain(queries, document.id)
        told = _told(opened, terms)
    rows = [[t.contribution, t.query_weight, t.document_weight, one_line(t.token or "")] for t in told.terms]
    rows += [[told.rest, "", "", told.rest_line()]] if told.rest_count else []
    total = sum(term.contribution for term in terms)
    score = total if hit is None else hit.scores.get("sparse", total)
    console.result(
        {
            "query": arguments.query,
            "document": asdict(document),
            "hit": None if hit is None else {"rank": hit.rank, "score": hit.score, "scores": hit.scores},
            "score": score,
            "matched_terms": [asdict(term) for term in terms],
        },
        [
            f"{one_line(document.id)}  {one_line(document.text or '', _WIDTH)}",
            *table(["contribution", "query", "document", "token"], rows, "  "),
            f"  {_place(hit, arguments.top_k)}",
            f"  {score:.4f} is the sum, the sparse score.",
        ],
    )


def _unknown(arguments: Namespace) -> UserError:
    return UserError(f"DOC_ID must be in the index, got {arguments.document!r}.")


def _found(
    opened: HybridIndex,
    encoder: KeyTokenEncoder,
    texts: list[str],
    arguments: Namespace,
    condition: dict[str, Any] | None,
) -> tuple[HybridEmbeddings, list[list[Hit]]]:
    """Embedded queries and their hits: the one search that both commands make."""
    is_hybrid = not arguments.lookup and arguments.mode in (None, "hybrid") and bool(opened.embedding_dimension)
    queries = encoder.encode_query(texts, query="lookup" if arguments.lookup else None, is_hybrid=is_hybrid)
    return queries, opened.search(queries, mode=arguments.mode, top_k=arguments.top_k, filter=condition)


def _place(hit: Hit | None, top_k: int) -> str:
    """Where the search has the document, in the numbers of its table."""
    if hit is None:
        return f"The search does not find it among its first {top_k}; --top-k and --filter as in the search say more."
    sides = ""
    if hit.is_hybrid:
        scores = sorted(hit.scores.items(), reverse=True)
        sides = ", of " + " and ".join(f"{side} {score:.4f}" for side, score in scores)
    elif "dense" in hit.scores:
        sides = ", by dense vectors alone"
    return f"The search finds it at rank {hit.rank} with the score {hit.score:.4f}{sides}."


@dataclass(frozen=True)
class _Told:
    """Matched terms as people are told of them: those that say something, and how much the others contribute."""

    terms: list[MatchedTerm]
    rest: float
    rest_count: int

    def rest_line(self) -> str:
        return f"({self.rest_count} common or small term{'s' * (self.rest_count != 1)})"


def _told(opened: HybridIndex, terms: list[MatchedTerm]) -> _Told:
    """Sets apart what is in most documents, has no letter or digit, or hardly contributes; not where that is all."""
    frequencies = opened.document_frequencies([term.term_id for term in terms])
    most, least = len(opened) * _COMMON_SHARE, _SMALL_SHARE * sum(term.contribution for term in terms)
    told = [
        term
        for term, frequency in zip(terms, frequencies, strict=True)
        if frequency <= most
        and term.contribution >= least
        and (term.token is None or any(character.isalnum() for character in term.token))
    ]
    if not told:
        return _Told(terms, 0.0, 0)
    rest = sum(term.contribution for term in terms) - sum(term.contribution for term in told)
    return _Told(told, rest, len(terms) - len(told))


def _report_filter(opened: HybridIndex, condition: dict[str, Any] | None, console: Console) -> None:
    """Says what of a filter no document can meet, by its keys and the types of their values."""
    from st_keytokens.index.filters import filter_operands, parse_filter

    wanted = {} if condition is None else filter_operands(parse_filter(condition))
    types = opened.metadata_types(list(wanted)) if wanted and len(opened) else wanted
    for key, kinds in wanted.items():
        if key not in types:
            known = [one_line(name, _WIDTH) for name in opened.metadata_types()]
            others = f" The keys are: {', '.join(known[:_SHOWN_KEYS])}{', …' * (len(known) > _SHOWN_KEYS)}."
            console.message(
                f"--filter: no document has the metadata key {key!r}.{others if known else ' They have no metadata.'}"
            )
        elif kinds and not kinds & set(types[key]):
            console.message(
                f"--filter: {key!r} is compared with a {' or '.join(sorted(kinds))}, but is a "
                f"{' or '.join(sorted(types[key]))} in every document that has it."
            )


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


def _hit_lines(hits: list[Hit], terms: list[_Told] | None) -> list[str]:
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
    for line, told in zip(lines[1:], terms, strict=True):
        shown = ", ".join(
            f"{one_line(term.token or '')} {term.contribution:.2f}" for term in told.terms[:_SHOWN_TERMS]
        )
        explained += [line, f"      {shown or 'no term in common'}"]
    return explained
