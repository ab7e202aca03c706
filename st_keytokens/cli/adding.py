"""Adding a corpus to an index, in parts that each are one commit."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from st_keytokens.cli.console import Console
from st_keytokens.cli.inputs import BATCHES, Corpus, batches
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.index import Document, HybridIndex
from st_keytokens.pooled_vectors import hybrid_embeddings
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
