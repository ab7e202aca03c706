"""HybridIndex: an embedded, exact index of dense and sparse embeddings, documents and metadata."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from st_keytokens.index.dense import Similarity, checked_dense
from st_keytokens.index.documents import Document, Hit, MatchedTerm, checked_strings, packed_metadata
from st_keytokens.index.filters import Filter, FilterMasks, metadata_types, parse_filter
from st_keytokens.index.fusion import FusionFunction, FusionName
from st_keytokens.index.kernels import Kernel, KernelName, Ranking, padded, sparse_kernel
from st_keytokens.index.search import (
    Mode,
    SearchPlan,
    Side,
    dense_rankings,
    embedded_queries,
    fused_rankings,
    matched_terms,
)
from st_keytokens.index.segment_columns import SegmentColumns
from st_keytokens.index.segments import Postings, Segment, verify_segment, write_segment
from st_keytokens.index.snapshot import Snapshot
from st_keytokens.index.store import (
    Encoder,
    Store,
    as_hybrid,
    check_settings,
    check_sizes,
    given_settings,
    settled,
)
from st_keytokens.index.word_rarity import fit_queries, own_words
from st_keytokens.shared.checks import check_choice, checked_float
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.terms.words import WordVocabulary

__all__ = ["HybridIndex"]

Embeddings = HybridEmbeddings | SparseEmbeddings


class HybridIndex:
    """An exact index on disk: memory-mapped postings and dense rows, and a database of documents.

    Every change is one transaction: it is there in full when the method returns, and not at all if the process dies
    before, or at an interrupt. Any number of threads and processes may search beside one writer; each search sees one
    commit, the newest. A second writer waits for the first. Where the directory was replaced, moved or removed under
    an open index, every use is refused, and nothing but what the index made itself is ever removed. The directory
    must be on a local file system, and nothing else may alter its files. Where a process is forked, both sides may go
    on with an open index, if nothing uses it at that moment.

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

    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        encoder: Encoder | None = None,
        vocab_size: int | None = None,
        embedding_dimension: int | None = None,
        fingerprint: str | None = None,
        read_only: bool = False,
        similarity: Similarity | None = None,
        dense_dtype: Literal["float32", "float16"] | None = None,
        kernel: KernelName = "auto",
        timeout: float = 30.0,
    ) -> None:
        self.encoder = encoder
        self._kernel: Kernel | None = None if kernel == "auto" else sparse_kernel(kernel)
        self._given = given_settings(
            encoder,
            vocab_size=vocab_size,
            embedding_dimension=embedding_dimension,
            fingerprint=fingerprint,
            similarity=similarity,
            dense_dtype=dense_dtype,
        )
        if path is None and read_only:
            raise ValueError("path must be an index to be read, got None. Leave out read_only for a temporary one.")
        timeout = checked_float("timeout", timeout, minimum=0)
        defaults = {**self._given, "similarity": similarity or "cosine", "dense_dtype": dense_dtype or "float32"}
        self._local = threading.local()
        self._snapshot: Snapshot | None = None
        self.path = Path(os.path.abspath(tempfile.mkdtemp(prefix="keytokens-") if path is None else path))
        temporary = self.path if path is None else None
        try:
            self._store = Store(self.path, defaults, read_only=read_only, is_durable=path is not None, timeout=timeout)
            self._filter_masks = FilterMasks(self._store)
            self._closer = weakref.finalize(self, _close, self._store, temporary, os.getpid())
            check_settings(self.settings, self._given, f"the index {self.path} has")
        except BaseException:
            _close(getattr(self, "_store", None), temporary, os.getpid())
            raise

    def __enter__(self) -> HybridIndex:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def settings(self) -> dict[str, Any]:
        """The saved settings: sizes (None before the first documents), similarity, dtype, fingerprint."""
        with self._store.read() as connection:
            return dict(self._current(connection).settings)

    @property
    def embedding_dimension(self) -> int | None:
        """Dimension of the dense rows, 0 for none; None where that is open until the first documents."""
        snapshot = self._snapshot
        known = None if snapshot is None else snapshot.settings["embedding_dimension"]
        found: int | None = self.settings["embedding_dimension"] if known is None else known  # settled once for all
        return found

    def __len__(self) -> int:
        with self._store.read() as connection:
            return len(self._current(connection))

    def __contains__(self, id: object) -> bool:
        with self._store.read() as connection:
            return isinstance(id, str) and bool(self._store.documents.keys(connection, [id]))

    def ids(self) -> list[str]:
        """The ids of all documents, in order of insertion."""
        with self._store.read() as connection:
            return self._store.documents.ids(connection)

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
        with closing(self._store.write()) as change, change as connection:
            before = self._load(connection)
            given = self._given if not before.next_key else {**self._given, "fingerprint": None}
            settings = settled(before.settings, given, batch)
            vocab_size, dimension = settings["vocab_size"], settings["embedding_dimension"]
            check_sizes("embeddings", batch, vocab_size, dimension, needs_dense=True)
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
            tail = after.tail(size)
            self._merge(connection, after, tail, replace(new, keys=new.keys + before.next_key))
            self._renew_worn(connection, after, tail)
        return names

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents, all in one commit; ids that are not there are passed over.

        Where a fifth of a segment's rows are deleted, it is written anew without them.

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
        with closing(self._store.write()) as change, change as connection:
            known = self._store.documents.keys(connection, names)
            if known:
                self._store.delete(connection, known.values())
                self._renew_worn(connection, self._load(connection))
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
            with closing(self._store.write()) as change, change as connection:
                snapshot = self._load(connection)
                for number, group in enumerate(snapshot.groups()):
                    if number >= first and (len(group) > 1 or any(snapshot.alive_in(n) is not None for n in group)):
                        self._merge(connection, snapshot, group)
                        break
                else:
                    return
            first = number + 1

    def get(self, ids: Collection[str]) -> list[Document]:
        """Read documents.

        Args:
            ids: Their ids.

        Returns:
            The documents, in the order of the ids.

        Raises:
            KeyError: If an id is unknown.
            TypeError: If it is a single string, or holds something else than strings.
        """
        names = checked_strings("ids", ids)
        with self._store.read() as connection:
            keys = self._store.documents.known_keys(connection, names)
            documents = self._store.documents.get(connection, [keys[name] for name in names])
        return [Document(*fields) for fields in documents]

    def documents(self, filter: Filter | None = None) -> list[Document]:
        """Read all documents that a filter lets through, the oldest first.

        Args:
            filter: As for :meth:`search`; None for all.

        Raises:
            TypeError: If the filter is of the wrong type.
            ValueError: If it holds what is not allowed.
        """
        parsed = None if filter is None else parse_filter(filter)
        with self._store.read() as connection:
            if parsed is None:
                return [Document(*fields) for _, fields in self._store.documents.all(connection)]
            snapshot = self._current(connection)
            rows = np.flatnonzero(self._filter_masks.mask(connection, snapshot, parsed))
            found = self._store.documents.get(connection, snapshot.keys(rows))
        return [Document(*fields) for fields in found]

    def metadata_types(self, keys: Collection[str] | None = None) -> dict[str, dict[str, int]]:
        """Count the documents that have a metadata key, by the type of its value; reads all metadata.

        Args:
            keys: The keys that are wanted; None for all at the top level.

        Returns:
            For each key that a document has, how many have a ``"string"``, ``"number"``, ``"boolean"``, ``"null"``,
            ``"list"`` or ``"dictionary"`` there.

        Raises:
            TypeError: If it is a single string, or holds something else than strings.
            ValueError: If a key is none that a filter can ask for.
        """
        names = None if keys is None else list(dict.fromkeys(checked_strings("keys", keys)))
        for name in names or ():
            parse_filter({name: {"$exists": True}})
        with self._store.read() as connection:
            return metadata_types(connection, names)

    def document_frequencies(self, term_ids: Sequence[int]) -> list[int]:
        """Count the documents that hold each of some terms.

        Args:
            term_ids: The terms' ids; one that no document holds counts 0.
        """
        with self._store.read() as connection:
            return self._current(connection).document_frequencies(term_ids, [0.0] * len(term_ids))

    def fit_queries(self, encoder: Any, texts: Sequence[str], sparse: SparseEmbeddings) -> SparseEmbeddings:
        """Queries' sparse vectors for this index; :meth:`search` and :meth:`explain` do it themselves for texts.

        A word that is much more common here than in the texts that the encoder was calibrated on counts for less; one
        that is at most twice as common counts as it did. Only where terms are words.

        Args:
            encoder: A ``KeyTokenEncoder``; any other changes nothing.
            texts: The queries.
            sparse: What the encoder gave for them, one row a query.

        Returns:
            The same rows with other weights.
        """
        words = own_words(encoder, texts)
        if words is None:
            return sparse
        with self._store.read() as connection:
            return fit_queries(self._current(connection), encoder, words, sparse)

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is formally a Sequence[str]
        self,
        queries: str,
        *,
        mode: Mode | None = None,
        top_k: int = 10,
        filter: Filter | None = None,
        fusion: FusionName | FusionFunction = "adaptive",
        weights: Mapping[str, float] | None = None,
        depth: int | None = None,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        queries: Sequence[str] | Embeddings,
        *,
        mode: Mode | None = None,
        top_k: int = 10,
        filter: Filter | None = None,
        fusion: FusionName | FusionFunction = "adaptive",
        weights: Mapping[str, float] | None = None,
        depth: int | None = None,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        queries: str | Sequence[str] | Embeddings,
        *,
        mode: Mode | None = None,
        top_k: int = 10,
        filter: Filter | None = None,
        fusion: FusionName | FusionFunction = "adaptive",
        weights: Mapping[str, float] | None = None,
        depth: int | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Find the best documents for each query.

        Args:
            queries: A text, a list of texts, or embeddings.
            mode: ``"sparse"``: documents that share a term, by the sum of the products of weights. ``"dense"``: all,
                by similarity. ``"hybrid"``: both, fused. None: ``"hybrid"`` where index and queries have dense rows,
                else ``"sparse"``.
            top_k: At most so many hits per query.
            filter: Which documents may be found: a dictionary over the metadata (see
                :mod:`st_keytokens.index.filters`), a function of a :class:`Document` (slow), or a collection of ids.
            fusion: ``"adaptive"`` for min-max normalised scores, each side weighed by how clearly it singles out
                documents for the query; ``"score"`` for the same without that; ``"rrf"`` for reciprocal ranks; or
                a function such as these, of :mod:`st_keytokens.index.fusion`. Only for hybrid.
            weights: Factors of ``"sparse"`` and ``"dense"`` in the fusion. None: the encoder's ``fusion_weights``, or
                1 each without an encoder.
            depth: How many hits of each side are fused; by default ``max(100, 10 * top_k)``.

        Returns:
            Hits, best first, ties in order of insertion (of the fusion in hybrid mode): a list for a text, and a list
            of lists for a list of texts or embeddings.

        Raises:
            TypeError: If an argument is of the wrong type, or texts are given and the index has no encoder.
            ValueError: If ``top_k`` or ``depth`` is below 1, a name, an operator or a weight is not allowed, the
                queries are not over the index's vocabulary or dimension, or a dense value is not finite.
        """
        if isinstance(queries, (list, tuple)) and not queries:
            return []
        plan = SearchPlan.checked(mode=mode, top_k=top_k, filter=filter, fusion=fusion, weights=weights, depth=depth)
        if isinstance(queries, (HybridEmbeddings, SparseEmbeddings)):
            return self._ranked(as_hybrid("queries", queries), plan, None)
        is_single = isinstance(queries, str)
        texts: Any = [queries] if is_single else queries
        is_hybrid = plan.is_hybrid(self.embedding_dimension)
        batch = embedded_queries("queries", texts, self._checked_encoder, is_hybrid=is_hybrid)
        results = self._ranked(batch, plan, self._words(texts))
        return results[0] if is_single else results

    def ranked(self, queries: HybridEmbeddings, plan: SearchPlan) -> list[list[Hit]]:
        """:meth:`search` for embeddings by a plan that is checked already.

        Args:
            queries: Their embeddings.
            plan: How to search; what is open in it is settled here.

        Returns:
            A list of hits for each query.

        Raises:
            ValueError: See :meth:`search`.
        """
        return self._ranked(queries, plan, None)

    def _words(self, queries: Any) -> list[list[int]] | None:
        """The words of queries that are texts, where they are weighed by this index."""
        is_given = isinstance(queries, (HybridEmbeddings, SparseEmbeddings))
        return None if is_given else own_words(self.encoder, queries)

    def _ranked(self, queries: HybridEmbeddings, plan: SearchPlan, words: list[list[int]] | None) -> list[list[Hit]]:
        with self._store.read() as connection:
            snapshot = self._current(connection)
            if words is not None:
                queries = HybridEmbeddings(queries.dense, fit_queries(snapshot, self.encoder, words, queries.sparse))
            vocab_size, dimension = snapshot.settings["vocab_size"], snapshot.settings["embedding_dimension"]
            plan = plan.settled(queries, vocab_size=vocab_size, embedding_dimension=dimension, encoder=self.encoder)
            mask = snapshot.alive
            if plan.filter is not None:
                mask = self._filter_masks.mask(connection, snapshot, plan.filter)
            if not len(snapshot):
                return [[] for _ in range(len(queries))]
            hits, limit = self._store.documents.hits, plan.depth if plan.mode == "hybrid" else plan.top_k
            sides: dict[Side, Iterable[Ranking]] = {}
            if plan.mode != "sparse" and queries.dense is not None:
                sides["dense"] = dense_rankings(snapshot, queries.dense, mask, limit)
            if plan.mode != "dense":
                sides["sparse"] = self._sparse_rankings(snapshot, queries.sparse, mask, limit)
            if plan.mode != "hybrid":
                return [
                    hits(connection, snapshot.keys(rows), found.tolist(), side)
                    for side, rankings in sides.items()
                    for rows, found in rankings
                ]
            results = []
            for fused in fused_rankings(plan, sides):
                keys = snapshot.keys(np.array([hit.id for hit in fused], np.int64))
                results.append(hits(connection, keys, [hit.score for hit in fused], "hybrid"))
                for hit, its in zip(results[-1], fused, strict=True):
                    hit.scores, hit.is_hybrid = its.components, True
            return results

    def explain(self, query: str | Embeddings, hit: Hit | str) -> list[MatchedTerm]:
        """Tell which terms a query shares with a document.

        Args:
            query: A text, or embeddings of one query.
            hit: A hit, or a document's id. A text's terms are those of the search that found the hit, and for an id
                those of a sparse one.

        Returns:
            The matched terms by falling contribution; these sum to the sparse score, up to rounding.

        Raises:
            KeyError: If the document is not in the index.
            TypeError: If an argument is of the wrong type, or a text is given and the index has no encoder.
            ValueError: If there is not one query, or it is not over the index's vocabulary.
        """
        queries: Any = [query] if isinstance(query, str) else query
        is_hybrid = isinstance(hit, Hit) and hit.is_hybrid
        batch = embedded_queries("query", queries, self._checked_encoder, is_hybrid=is_hybrid)
        if len(batch) != 1:
            raise ValueError(f"query must be one query, got {len(batch)}.")
        names = checked_strings("hit", [hit.id if isinstance(hit, Hit) else hit])
        strings = None if self.encoder is None else self.encoder.vocabulary.strings
        with self._store.read() as connection:
            snapshot = self._current(connection)
            (key,) = self._store.documents.known_keys(connection, names).values()
            check_sizes("query", batch, snapshot.settings["vocab_size"], None, needs_dense=False)
            segment, row = snapshot.place(key)
            words, sparse = self._words(queries), batch.sparse
            if words is not None:
                sparse = fit_queries(snapshot, self.encoder, words, sparse)
            matched = matched_terms(segment.postings, row, sparse, strings)
            (document,) = self._store.documents.get(connection, [key])
        return self._as_written(matched, query if isinstance(query, str) else "", document[1] or "")

    def _as_written(self, matched: list[MatchedTerm], *texts: str) -> list[MatchedTerm]:
        """Words as they stand in the first of the texts that has them; tokens as they are."""
        vocabulary = None if self.encoder is None else self.encoder.vocabulary
        if not isinstance(vocabulary, WordVocabulary):
            return matched
        written: dict[int, str] = {}
        for text in texts:
            for term, start, end in vocabulary.words.spans(text):
                written.setdefault(term, text[start:end].lower())
        return [replace(match, token=written.get(match.term_id, match.token)) for match in matched]

    def dense_embeddings(self, ids: Collection[str]) -> NDArray[np.float32]:
        """Read dense rows.

        Args:
            ids: The documents' ids.

        Returns:
            The rows as they were given, float32 ``(N, embedding_dimension)``, in the order of the ids.

        Raises:
            KeyError: If an id is unknown.
            TypeError: If it is a single string, or holds something else than strings.
            ValueError: If the index has no dense rows.
        """
        names = checked_strings("ids", ids)
        with self._store.read() as connection:
            snapshot = self._current(connection)
            dimension = snapshot.settings["embedding_dimension"]
            if not dimension:
                raise ValueError(
                    "the index must have dense rows, got one without. Make it with an embedding dimension."
                )
            keys = self._store.documents.known_keys(connection, names)
            rows = np.zeros((len(names), dimension), np.float32)
            for number, name in enumerate(names):
                segment, row = snapshot.place(keys[name])
                if segment.dense is not None:
                    rows[number] = segment.dense.rows[row]
            return rows

    def verify(self) -> None:
        """Compare everything that an answer depends on with its checksum. Reads everything.

        That is every file of a segment, the id, text and metadata of every document, the list of segments, the
        deleted rows and the settings; the database's own structure is checked too. Documents that an
        earlier version added have no checksum of id, text and metadata: a warning says how many. Beside a writer, it
        verifies one commit: where segments are replaced meanwhile, a newer one.

        Raises:
            ValueError: If something differs or is missing, or the index is closed.
        """
        verified: set[str] = set()
        with self._store.read() as connection:
            while True:
                keys = self._current(connection).living_keys()
                try:
                    for name, files in self._store.segment_files(connection).items():
                        if name not in verified:
                            verify_segment(self._store.segments / name, files)
                            verified.add(name)
                except FileNotFoundError as err:
                    self._store.renew(connection, err)
                else:
                    if num_unknown := self._store.check(connection, keys):
                        warnings.warn(
                            f"{num_unknown} documents of {self.path} have no checksum of their id, text and metadata, "
                            "as an earlier version added them. Add them again to have these verified too.",
                            UserWarning,
                            stacklevel=2,
                        )
                    return

    def close(self) -> None:
        """Close the files, and remove a temporary index. Using it afterwards is an error."""
        self._snapshot = None
        self._closer()

    def _checked_encoder(self, name: str) -> Encoder:
        if self.encoder is None:
            raise TypeError(
                f"{name} must be embeddings in an index without encoder, got texts. Open it with encoder=."
            )
        check_settings({"fingerprint": self.encoder.fingerprint}, self._given, "the encoder has now")
        return self.encoder

    def _sparse_rankings(
        self, snapshot: Snapshot, queries: SparseEmbeddings, mask: NDArray[np.bool_] | None, limit: int
    ) -> list[Ranking]:
        """The best rows for each query by the sum of the products of weights, and their scores."""
        if self._kernel is None:
            self._kernel = sparse_kernel("auto")  # at the first search, as the compiled one takes time to load
        scores = getattr(self._local, "scores", None)  # this thread's
        if scores is None or len(scores) != padded(snapshot.num_rows):
            scores = self._local.scores = np.empty(padded(snapshot.num_rows), np.float32)
        best, postings = self._kernel.best, snapshot.postings
        return [best(postings, terms, weights, scores, mask, limit) for terms, weights in queries]

    def _current(self, connection: sqlite3.Connection) -> Snapshot:
        """The snapshot of a transaction, begun anew where a writer removed a segment before it could be opened."""
        while True:
            generation = self._store.generation(connection)
            snapshot = self._snapshot
            if snapshot is not None and snapshot.generation == generation:
                return snapshot
            try:
                self._store.check_catalog(connection)
                snapshot = self._snapshot = self._load(connection)
                return snapshot
            except FileNotFoundError as err:
                self._store.renew(connection, err)

    def _load(self, connection: sqlite3.Connection) -> Snapshot:
        """The snapshot of a transaction."""
        known = {} if self._snapshot is None else {segment.name: segment for segment in self._snapshot.segments}
        return Snapshot.load(self._store, connection, known)

    def _merge(
        self, connection: sqlite3.Connection, snapshot: Snapshot, numbers: range, new: Segment | None = None
    ) -> None:
        """Write the living rows of consecutive segments, and new rows, as one segment in their place."""
        files = self._store.segment_files(connection)
        for number in numbers:  # an altered file must not be copied: its checksum would be right from then on
            name = snapshot.segments[number].name
            verify_segment(self._store.segments / name, files[name])
        parts = [(snapshot.segments[number], snapshot.alive_in(number)) for number in numbers]
        parts += [] if new is None else [(new, None)]
        parts = [
            (replace(part, columns=part.columns or SegmentColumns.read(connection, part.keys)), mask)
            for part, mask in parts
        ]
        keys = np.concatenate([part.keys if mask is None else part.keys[mask] for part, mask in parts])
        written = None
        if len(keys):
            directory = self._store.new_segment()
            written = directory, int(keys[0]), write_segment(directory, parts, is_durable=self._store.is_durable)
        dead = snapshot.dead_keys(numbers)
        self._store.replace_segments(connection, [snapshot.segments[number].name for number in numbers], written, dead)

    def _renew_worn(self, connection: sqlite3.Connection, snapshot: Snapshot, but: range = range(0)) -> None:
        """Write the segment anew that has the most deleted rows, where that pays and there is room."""
        number = snapshot.worn()
        if number is None or number in but:
            return
        num_made = self._store.num_made
        try:
            self._merge(connection, snapshot, range(number, number + 1))
        except OSError as err:
            if err.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EFBIG):
                raise
            self._store.remove_made(num_made)  # the change itself needs no room


def _close(store: Store | None, temporary: Path | None, owner: int) -> None:
    if store is not None:
        store.close()
    if temporary is not None and os.getpid() == owner:  # not in a forked process
        shutil.rmtree(temporary, ignore_errors=True)
