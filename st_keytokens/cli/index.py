"""The commands index and add: documents embedded and put into an index."""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from st_keytokens.cli.calibrate import check_can_calibrate
from st_keytokens.cli.console import Console, UserError, one_line
from st_keytokens.cli.inputs import CorpusTexts, InputCorpus, batches
from st_keytokens.cli.options import (
    add_batch_size,
    add_calibrate,
    add_command,
    add_index_directory,
    add_input,
    add_input_options,
    add_model,
    add_model_options,
    add_stored_model_options,
    run_again,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from st_keytokens.encoder.encoder import KeyTokenEncoder
    from st_keytokens.index import Document, HybridIndex
    from st_keytokens.sparse_embeddings import HybridEmbeddings

COMMIT_SIZE = 2048  # documents of a commit, about, unless
COMMIT_SECONDS = 60.0  # have passed since the last one; an interruption loses no more
_BATCHES = 4  # batches of texts that are read, sorted by length and embedded together
_SHOWN_IDS = 10


def add_index_commands(commands: Any) -> None:
    """Adds the commands ``index`` and ``add``."""
    command = add_command(
        commands,
        "index",
        "embed documents and index them; run again to go on after an interruption",
        "st-keytokens index MODEL corpus.jsonl my-index",
        _index,
        how_to_go_on=run_again,
    )
    add_model(command)
    add_input(command)
    add_index_directory(command, ", new or begun earlier")
    add_calibrate(command, "these documents first")
    add_batch_size(command)
    add_input_options(command)
    add_model_options(command)

    command = add_command(
        commands,
        "add",
        "add documents to an index",
        "st-keytokens add my-index more.jsonl --replace",
        _add,
        how_to_go_on=run_again,
    )
    add_index_directory(command)
    add_input(command)
    command.add_argument(
        "--replace", action="store_true", help="replace documents whose text or metadata has changed (default: keep)"
    )
    add_batch_size(command)
    add_input_options(command)
    add_stored_model_options(command)


def _index(arguments: Namespace, console: Console) -> None:
    """Embeds documents and indexes them; goes on where an earlier run of the same command stopped."""
    from st_keytokens.calibration import Calibration
    from st_keytokens.cli.encoders import StoredEncoder, load_encoder
    from st_keytokens.encoder.pooled_vectors import pooled_vectors
    from st_keytokens.index import HybridIndex

    directory = Path(arguments.index)
    stored = StoredEncoder(directory)
    with InputCorpus(arguments.input, arguments) as corpus:
        corpus.check_not_empty()
        if stored.exists:
            stored.check_same_options(arguments)
            encoder = stored.load(arguments)
        else:
            encoder = load_encoder(arguments)
        similarity: Literal["cosine", "dot"] = "dot" if encoder.model.similarity_fn_name == "dot" else "cosine"
        with HybridIndex(directory, similarity=similarity) as opened:
            is_new = not stored.exists and len(opened) == 0
        if arguments.calibrate and not is_new and not stored.exists:
            raise UserError(f"--calibrate must be left out for an index that holds documents already, as {directory}.")
        size = arguments.batch_size
        is_calibrating = is_new and (
            arguments.calibrate or (arguments.calibrate is None and encoder.calibration is None)
        )
        if is_calibrating:
            check_can_calibrate(corpus)
        if is_new and stored.begun is None:
            stored.begin(arguments, len(corpus))
        vectors = None
        if is_calibrating or stored.vectors.exists():  # one pass serves the calibration and the index
            vectors, _ = pooled_vectors(
                encoder,
                CorpusTexts(corpus),
                path=stored.vectors,
                batch_size=size,
                show_progress_bar=console.has_progress,
            )
        if is_calibrating:
            encoder.calibration = Calibration.fit(
                encoder,
                CorpusTexts(corpus),
                embeddings=vectors,
                batch_size=size,
                show_progress_bar=console.has_progress,
            )
            console.message(f"Calibrated on {len(corpus):,} documents.")
        with HybridIndex(directory, encoder=encoder) as opened:
            if not stored.exists:
                stored.save(encoder, arguments)
            stored.begin(arguments, len(corpus))
            added = add_documents(opened, encoder, corpus, console, batch_size=size, vectors=vectors)
            stored.finish()
            _report(added, opened, console)


def _add(arguments: Namespace, console: Console) -> None:
    """Adds documents to an index."""
    from st_keytokens.cli.encoders import load_index_encoder
    from st_keytokens.index import HybridIndex

    with InputCorpus(arguments.input, arguments) as corpus:
        encoder = load_index_encoder(arguments, console)
        with HybridIndex(arguments.index, encoder=encoder) as opened:
            added = add_documents(
                opened, encoder, corpus, console, batch_size=arguments.batch_size, is_replacing=arguments.replace
            )
            _report(added, opened, console)


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
    corpus: InputCorpus,
    console: Console,
    *,
    batch_size: int,
    vectors: NDArray[np.float32] | None = None,
    is_replacing: bool = False,
) -> Added:
    """Embeds and adds the documents that the index does not hold; ``vectors`` are the whole corpus's, if there are."""
    from tqdm.auto import tqdm

    from st_keytokens.encoder.pooled_vectors import hybrid_embeddings

    counts, seen = Added(), set[str]()
    pending: list[tuple[list[Document], HybridEmbeddings]] = []
    last = time.monotonic()
    with tqdm(total=len(corpus), unit="text", desc="Indexing", disable=not console.has_progress) as bar:
        for batch in batches(enumerate(corpus), _BATCHES * batch_size):
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
    import numpy as np

    from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

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
