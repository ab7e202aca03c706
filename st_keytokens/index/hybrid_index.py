"""HybridIndex: an embedded, exact index of dense and sparse embeddings, documents and metadata."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from st_keytokens.checks import check_choice
from st_keytokens.index.dense import checked_dense
from st_keytokens.index.documents import checked_strings, packed_metadata
from st_keytokens.index.reader import Embeddings, IndexReader
from st_keytokens.index.segments import Postings, Segment, verify_segment, write_segment
from st_keytokens.index.snapshot import Snapshot
from st_keytokens.index.store import as_hybrid, check_embeddings, settled
from st_keytokens.sparse_embeddings import HybridEmbeddings

__all__ = ["HybridIndex"]


class HybridIndex(IndexReader):
    """An exact index on disk: memory-mapped postings and dense rows, and a database of documents.

    Every change is one transaction: it is there in full when the method returns, and not at all if the process dies
    before. Any number of threads and processes may search beside one writer; each search sees one commit, the newest.
    A second writer waits for the first. The directory must be on a local file system, and nothing else may alter its
    files. Where a process is forked, both sides may go on with an open index, if nothing uses it at that moment.

    Args:
        path: Directory of the index, made where it is missing (its parent is not). None: a temporary one.
        encoder: Turns texts into embeddings and term ids into tokens. Without it, embeddings are passed.
        vocab_size: Number of terms; by default the encoder's or that of the first documents.
        embedding_dimension: Dimension of the dense rows, 0 for none; by default that of the first documents.
        fingerprint: Names what made the embeddings; by default the encoder's. Saved with the first documents.
        read_only: Refuse to write; works in a directory that cannot be written.
        similarity: ``"cosine"`` or ``"dot"`` for dense rows, which are kept as given; a new index has ``"cosine"``.
        dense_dtype: ``"float32"`` or ``"float16"`` for the file of dense rows; a new index has ``"float32"``.
        kernel: What sparse scores are computed with: ``"numba"``, ``"torch"``, ``"scipy"``, or ``"auto"`` for numba
            where it is installed and torch elsewhere. The scores are the same.
        timeout: Seconds to wait for another writer.

    Raises:
        FileNotFoundError: If the parent directory, or an index to be read only, is missing.
        ImportError: If numba is asked for and not installed.
        NotADirectoryError: If the path is a file.
        PermissionError: If the directory cannot be written and ``read_only`` is not set.
        RuntimeError: If this process was forked while a search or a change was going on in the index.
        TypeError: If an argument is of the wrong type.
        ValueError: If the directory is something else than an index, if the index was made with other settings or by
            another encoder, or if a file is damaged.

    >>> from st_keytokens.sparse_embeddings import SparseEmbeddings
    >>> index = HybridIndex(vocab_size=9)
    >>> rows = SparseEmbeddings.from_dicts([{2: 1.0, 7: 2.0}, {7: 0.5}], vocab_size=9)
    >>> index.add(["a", "b"], embeddings=rows, metadata=[{"year": 1999}, {"year": 2024}])
    ['a', 'b']
    >>> [[(hit.id, hit.score) for hit in hits] for hits in index.search(rows[:1])]
    [[('a', 5.0), ('b', 1.0)]]
    >>> [[hit.id for hit in hits] for hits in index.search(rows[:1], filter={"year": {"$gte": 2000}})]
    [['b']]
    >>> [(term.term_id, term.contribution) for term in index.explain(rows[:1], "a")]
    [(7, 4.0), (2, 1.0)]
    >>> index.close()
    """

    def __enter__(self) -> HybridIndex:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(
        self,
        ids: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
        *,
        embeddings: Embeddings | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        on_conflict: Literal["error", "replace"] = "error",
    ) -> list[str]:
        """Add documents, all or none.

        Args:
            ids: Their ids; by default the next free numbers as strings.
            texts: Their texts, kept exactly. May be left out where embeddings are given.
            embeddings: Their embeddings; by default the encoder's.
            metadata: A JSON object or None for each.
            on_conflict: What to do about an id that is there already: ``"error"``, or ``"replace"`` the document,
                which then counts as the newest.

        Returns:
            The ids.

        Raises:
            OSError: If the disk is full or fails; nothing is added.
            PermissionError: If the index is read-only.
            TimeoutError: If another writer does not finish in time.
            TypeError: If an argument is of the wrong type, or metadata is no JSON object.
            ValueError: If lengths, vocabulary or dimension differ, a value is not finite, an id is given twice, or is
                there already and is not to be replaced, or a file is damaged. Nothing is added.
        """
        check_choice("on_conflict", on_conflict, ("error", "replace"))
        saved = self.settings
        if embeddings is not None:
            batch = as_hybrid("embeddings", embeddings)
        elif texts is not None:
            batch = self._checked_encoder("texts").encode_document(checked_strings("texts", texts))
            if saved["embedding_dimension"] == 0:
                batch = HybridEmbeddings(None, batch.sparse)  # the index wants no dense rows
        else:
            raise ValueError("texts or embeddings must be given, got neither.")
        size = len(batch)
        names = None if ids is None else checked_strings("ids", ids, size)
        if names is not None and len(set(names)) < size:
            twice, _ = Counter(names).most_common(1)[0]
            raise ValueError(f"ids must be unique, got {twice!r} twice. Nothing was added.")
        strings = None if texts is None else checked_strings("texts", texts, size)
        packed = [None] * size if metadata is None else packed_metadata(metadata, size)
        dense = None if batch.dense is None else checked_dense("embeddings", batch.dense, saved["dense_dtype"])
        new = Segment("", np.arange(size), Postings.from_sparse(batch.sparse), dense)
        if not size:
            return []
        with self._store.write() as connection:
            before = self._load(connection)
            given = self._given if not before.next_key else {**self._given, "fingerprint": None}
            settings = settled(before.settings, given, batch)
            check_embeddings("embeddings", batch, settings, needs_dense=True)
            self._store.save_settings(connection, settings)
            if names is None:
                names = self._store.documents.free_ids(connection, before.next_key, size)
            known = self._store.documents.keys(connection, names)
            if known and on_conflict == "error":
                raise ValueError(
                    f"ids must be new, got {next(iter(known))!r}, which is there. Use on_conflict='replace'."
                )
            self._store.delete(connection, known.values())
            self._store.documents.insert(connection, before.next_key, names, strings, packed)
            after = self._load(connection)
            self._merge(connection, after, after.tail(size), replace(new, keys=new.keys + before.next_key))
        return names

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents, all in one commit; ids that are not there are passed over.

        Args:
            ids: Their ids, in any collection.

        Returns:
            How many were there.

        Raises:
            OSError: If the disk is full or fails; nothing is deleted.
            PermissionError: If the index is read-only.
            TimeoutError: If another writer does not finish in time.
            TypeError: If it is a single string, or holds something else than strings.
        """
        names = checked_strings("ids", ids)
        with self._store.write() as connection:
            known = self._store.documents.keys(connection, names)
            self._store.delete(connection, known.values())
        return len(known)

    def compact(self) -> None:
        """Write the segments anew, as few, without what was deleted. Needs as much free space as the largest.

        Each new segment is a commit of its own; those made before an error stay.

        Raises:
            OSError: If the disk is full or fails.
            PermissionError: If the index is read-only.
            TimeoutError: If another writer does not finish in time.
            ValueError: If a file is damaged.
        """
        first = 0
        while True:
            with self._store.write() as connection:
                snapshot = self._load(connection)
                for number, group in enumerate(snapshot.groups()):
                    if number >= first and (len(group) > 1 or any(snapshot.alive_in(n) is not None for n in group)):
                        self._merge(connection, snapshot, group)
                        break
                else:
                    return
            first = number + 1

    def _merge(
        self, connection: sqlite3.Connection, snapshot: Snapshot, numbers: range, new: Segment | None = None
    ) -> None:
        """Write the living rows of some consecutive segments, and new rows, as one segment in their place.

        An altered file must not be copied: its checksum would be right from then on.
        """
        files = self._store.segment_files(connection)
        for number in numbers:
            name = snapshot.segments[number].name
            verify_segment(self._store.segments / name, files[name])
        parts = [(snapshot.segments[number], snapshot.alive_in(number)) for number in numbers]
        parts += [] if new is None else [(new, None)]
        keys = np.concatenate([part.keys if mask is None else part.keys[mask] for part, mask in parts])
        written = None
        if len(keys):
            directory = self._store.new_segment()
            written = directory, int(keys[0]), write_segment(directory, parts, is_durable=self._store.is_durable)
        dead = snapshot.dead_keys(numbers)
        self._store.replace_segments(connection, [snapshot.segments[number].name for number in numbers], written, dead)
