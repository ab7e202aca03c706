"""Commands on an index: index, add, search, explain, info."""

from __future__ import annotations

import json
import shutil
import time
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from st_keytokens.calibration import Calibration
from st_keytokens.cli.console import Console, UserError, one_line, table
from st_keytokens.cli.inputs import BATCHES, Corpus, batches, read_texts
from st_keytokens.cli.model_commands import (
    Texts,
    calibrate_on,
    check_can_calibrate,
    describe,
    describe_calibration,
    describe_model,
)
from st_keytokens.cli.models import StoredEncoder, load_encoder
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.pooled_vectors import hybrid_embeddings, pooled_vectors
from st_keytokens.index import Document, Hit, HybridIndex, MatchedTerm
from st_keytokens.index.filters import filter_sql
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

COMMIT_SIZE = 2048  # documents of a commit, about, unless
COMMIT_SECONDS = 60.0  # have passed since the last one; an interruption loses no more
_SHOWN_IDS = 10


@dataclass
class Added:
    """What became of the documents of a corpus.

    Attributes:
        added: New documents.
        replaced: Documents that were in the index with other content, which was replaced.
        present: Documents that were in the index before, and were left as they were.
        changed: Those of them whose text or metadata differs.
        duplicates: Documents with an id that another one before them has; these are left out.
        duplicate_ids: The first of their ids.
        empty: Documents without a text, among those added.
    """

    added: int = 0
    replaced: int = 0
    present: int = 0
    changed: int = 0
    duplicates: int = 0
    duplicate_ids: list[str] = field(default_factory=list)
    empty: int = 0


def add_documents(
    index: HybridIndex,
    encoder: KeyTokenEncoder,
    corpus: Corpus,
    console: Console,
    *,
    batch_size: int,
    vectors: NDArray[np.float32] | None = None,
    is_replacing: bool = False,
) -> Added:
    """Embeds and adds the documents that the index does not hold.

    Args:
        index: Open for writing.
        encoder: Its encoder.
        corpus: The documents.
        console: Whether there is a progress bar.
        batch_size: Texts a forward pass.
        vectors: The pooled vectors of the whole corpus, in its order. None: the documents are embedded.
        is_replacing: Whether documents of other content are replaced.

    Returns:
        What became of the documents.
    """
    counts, seen = Added(), set[str]()
    pending: list[tuple[list[Document], HybridEmbeddings]] = []
    last = time.monotonic()
    with tqdm(total=len(corpus), unit="text", desc="Indexing", disable=not console.has_progress) as bar:
        for batch in batches(enumerate(corpus), BATCHES * batch_size):
            wanted = _wanted(index, batch, seen, counts, is_replacing)
            if wanted:
                documents = list(wanted.values())
                texts = [document.text or "" for document in documents]
                if vectors is None:
                    embeddings = encoder.encode_document(texts, batch_size=batch_size)
                else:
                    embeddings = hybrid_embeddings(encoder, vectors[list(wanted)], texts)
                pending.append((documents, embeddings))
            is_large = sum(len(documents) for documents, _ in pending) >= COMMIT_SIZE
            if is_large or time.monotonic() - last > COMMIT_SECONDS:
                _commit(index, pending, is_replacing)
                last = time.monotonic()
            bar.update(len(batch))
        _commit(index, pending, is_replacing)
    return counts


def _wanted(
    index: HybridIndex, batch: list[tuple[int, Document]], seen: set[str], counts: Added, is_replacing: bool
) -> dict[int, Document]:
    """The documents of a batch that are to be added, by position in the corpus; counts the others."""
    first: dict[int, Document] = {}
    for position, document in batch:
        if document.id not in seen:
            seen.add(document.id)
            first[position] = document
        else:
            counts.duplicates += 1
            counts.duplicate_ids += [document.id] if len(counts.duplicate_ids) < _SHOWN_IDS else []
    known = {old.id: old for old in index.get([document.id for document in first.values() if document.id in index])}
    wanted = {}
    for position, document in first.items():
        is_known = document.id in known
        is_changed = is_known and known[document.id] != document
        if is_known and not (is_changed and is_replacing):
            counts.present += 1
            counts.changed += is_changed
            continue
        counts.added += not is_known
        counts.replaced += is_known
        counts.empty += not (document.text or "").strip()
        wanted[position] = document
    return wanted


def _commit(index: HybridIndex, pending: list[tuple[list[Document], HybridEmbeddings]], is_replacing: bool) -> None:
    if not pending:
        return
    documents = [document for part, _ in pending for document in part]
    embeddings = HybridEmbeddings(
        np.concatenate([part.dense for _, part in pending if part.dense is not None]),
        SparseEmbeddings.concatenate([part.sparse for _, part in pending]),
    )
    index.add(
        [document.id for document in documents],
        [document.text or "" for document in documents],
        embeddings=embeddings,
        metadata=[document.metadata for document in documents],
        on_conflict="replace" if is_replacing else "error",
    )
    pending.clear()


_SHOWN_TERMS = 8  # matched terms of a hit that are shown to people
_WIDTH = 80  # characters of a text that are shown


def index(arguments: Namespace, console: Console) -> None:
    """Embeds documents and indexes them; goes on where an earlier run of the same command stopped."""
    directory = Path(arguments.index)
    stored = StoredEncoder(directory)
    with Corpus(arguments.input, arguments) as corpus:
        corpus.check_not_empty()
        if stored.exists:
            stored.check_same_options(arguments)
            encoder = stored.load(arguments)
        else:
            encoder = load_encoder(arguments)
        with HybridIndex(directory, similarity=_similarity(encoder)) as opened:
            is_new = not stored.exists and len(opened) == 0
        if arguments.calibrate and not is_new and not stored.exists:
            raise UserError(f"--calibrate must be left out for an index that holds documents already, as {directory}.")
        size = arguments.batch_size
        is_calibrating = is_new and (
            arguments.calibrate or (arguments.calibrate is None and encoder.calibration is None)
        )
        if is_calibrating:
            check_can_calibrate(corpus)
        vectors = None
        if is_calibrating or stored.vectors.exists():  # one pass serves the calibration and the index
            vectors, _ = pooled_vectors(
                encoder, Texts(corpus), path=stored.vectors, batch_size=size, show_progress_bar=console.has_progress
            )
        if is_calibrating:
            calibrate_on(encoder, corpus, console, batch_size=size, vectors=vectors)
            console.message(f"Calibrated on {len(corpus):,} documents.")
        with HybridIndex(directory, encoder=encoder) as opened:
            if not stored.exists:
                stored.save(encoder, arguments)
            added = add_documents(opened, encoder, corpus, console, batch_size=size, vectors=vectors)
            shutil.rmtree(stored.vectors, ignore_errors=True)
            _report(added, opened, console)


def add(arguments: Namespace, console: Console) -> None:
    """Adds documents to an index."""
    with Corpus(arguments.input, arguments) as corpus:
        encoder = _encoder_of(arguments)
        with HybridIndex(arguments.index, encoder=encoder) as opened:
            added = add_documents(
                opened, encoder, corpus, console, batch_size=arguments.batch_size, is_replacing=arguments.replace
            )
            _report(added, opened, console)


def search(arguments: Namespace, console: Console) -> None:
    """Searches an index."""
    condition = None if arguments.filter is None else _filter(arguments.filter)
    batches = read_texts(arguments, "queries", arguments.batch_size)
    encoder = _encoder_of(arguments)
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


def explain(arguments: Namespace, console: Console) -> None:
    """Shows the terms that a query shares with a document."""
    _check_is_index(arguments.index)
    with HybridIndex(arguments.index, read_only=True) as opened:
        if arguments.document not in opened:
            raise UserError(f"DOC_ID must be in the index, got {arguments.document!r}.")
        (document,) = opened.get([arguments.document])
    encoder = _encoder_of(arguments)
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


def info(arguments: Namespace, console: Console) -> None:
    """Describes an index or, where the path is none, a model."""
    directory = Path(arguments.model)
    if not (directory / "index.sqlite").is_file():
        describe_model(arguments, console)
        return
    stored = StoredEncoder(directory)
    with HybridIndex(directory, read_only=True) as opened:
        found: dict[str, Any] = {
            "index": arguments.model,
            "documents": len(opened),
            "bytes": sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()),
            **opened.settings,
        }
    if stored.exists:
        found |= stored.origin
        has_calibration = (stored.sidecar / "calibration.json").is_file()
        calibration = Calibration.load(stored.sidecar) if has_calibration else None
        found["calibration"] = None if calibration is None else describe_calibration(calibration)
    console.result(found, describe(found))


def _similarity(encoder: KeyTokenEncoder) -> Literal["cosine", "dot"]:
    return "dot" if encoder.model.similarity_fn_name == "dot" else "cosine"


def _check_is_index(path: str) -> None:
    """Opens and closes it: what is wrong with it is said before a model is loaded.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is something else.
    """
    HybridIndex(path, read_only=True).close()


def _encoder_of(arguments: Namespace) -> KeyTokenEncoder:
    """The encoder that the index was made with."""
    _check_is_index(arguments.index)
    stored = StoredEncoder(Path(arguments.index))
    if stored.exists:
        return stored.load(arguments)
    if arguments.model is None:
        raise UserError(f"{arguments.index} does not tell its model. Say which it is with --model.")
    return load_encoder(arguments)


def _embed_queries(
    encoder: KeyTokenEncoder, texts: list[str], arguments: Namespace, is_hybrid: bool
) -> HybridEmbeddings:
    return encoder.encode_query(texts, query="lookup" if arguments.lookup else None, is_hybrid=is_hybrid)


def _filter(text: str) -> dict[str, Any]:
    try:
        condition = json.loads(text)
        if not isinstance(condition, dict):
            raise TypeError("it is no object")
        filter_sql(condition)
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


def _report(added: Added, opened: HybridIndex, console: Console) -> None:
    line = f"Added {_count(added.added)}"
    line += f", replaced {added.replaced:,}" if added.replaced else ""
    line += f", left {added.present:,} as before" if added.present else ""
    line += f". The index holds {_count(len(opened))}."
    if added.changed:
        console.message(
            f"{_count(added.changed)} left although text or metadata has changed: st-keytokens add --replace replaces "
            "them."
        )
    if added.duplicates:
        ids = [*map(one_line, added.duplicate_ids), *["…"][: added.duplicates - len(added.duplicate_ids)]]
        console.message(f"{_count(added.duplicates)} left out, having an id that came before: {', '.join(ids)}")
    if added.empty:
        console.message(f"{_count(added.empty)} added without a text.")
    console.result({**asdict(added), "documents": len(opened)}, [line])


def _count(number: int) -> str:
    return f"{number:,} document{'' if number == 1 else 's'}"
