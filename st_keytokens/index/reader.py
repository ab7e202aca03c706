"""Reading an index: documents, search, explanation."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from st_keytokens.checks import checked_float
from st_keytokens.index.dense import Similarity
from st_keytokens.index.documents import Document, Hit, MatchedTerm, checked_strings, hits
from st_keytokens.index.filters import Filter, FilterMasks
from st_keytokens.index.fusion import Fusion, FusionName
from st_keytokens.index.kernels import Kernel, KernelName, padded, sparse_kernel
from st_keytokens.index.search import Mode, Plan, matched_terms
from st_keytokens.index.segments import verify_segment
from st_keytokens.index.snapshot import Snapshot
from st_keytokens.index.store import Encoder, Store, as_hybrid, check_embeddings, check_settings, given_settings
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

__all__ = ["Embeddings", "IndexReader"]

Embeddings = HybridEmbeddings | SparseEmbeddings


class IndexReader:
    """What an open index can be asked. Use it through :class:`HybridIndex`."""

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
        self.path = Path(tempfile.mkdtemp(prefix="keytokens-") if path is None else path)
        self._store = Store(self.path, defaults, read_only=read_only, is_durable=path is not None, timeout=timeout)
        self._closer = weakref.finalize(self, _close, self._store, self.path if path is None else None, os.getpid())
        self._local = threading.local()
        self._filter_masks = FilterMasks(self._store)
        self._snapshot: Snapshot | None = None
        try:
            check_settings(self.settings, self._given, f"the index {self.path} has")
        except BaseException:
            self.close()
            raise

    @property
    def settings(self) -> dict[str, Any]:
        """The saved settings: sizes (None before the first documents), similarity, dtype, fingerprint."""
        with self._store.read() as connection:
            return dict(self._current(connection).settings)

    def __len__(self) -> int:
        with self._store.read() as connection:
            return len(self._current(connection))

    def __contains__(self, id: object) -> bool:
        with self._store.read() as connection:
            return isinstance(id, str) and bool(self._store.documents.keys(connection, [id]))

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

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is formally a Sequence[str]
        self,
        queries: str,
        *,
        mode: Mode | None = None,
        top_k: int = 10,
        filter: Filter | None = None,
        fusion: FusionName | Fusion = "adaptive",
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
        fusion: FusionName | Fusion = "adaptive",
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
        fusion: FusionName | Fusion = "adaptive",
        weights: Mapping[str, float] | None = None,
        depth: int | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Find the best documents for each query.

        Args:
            queries: A text, a list of texts, or embeddings.
            mode: ``"sparse"``: documents that share a term, by the sum of the products of weights. ``"dense"``: all,
                by similarity. ``"hybrid"``: both, fused. None: ``"hybrid"`` where index and queries have dense rows,
                else ``"sparse"``.
            top_k: At most so many hits a query.
            filter: Which documents may be found: a dictionary over the metadata (see
                :mod:`st_keytokens.index.filters`), a function of a :class:`Document` (slow), or a collection of ids.
            fusion: ``"adaptive"`` for min-max normalised scores, the sparse ones weighed by how clearly the query's
                terms single out documents; ``"score"`` for the same without that; ``"rrf"`` for reciprocal ranks; or
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
        is_hybrid = mode == "hybrid" or (mode is None and bool(self.settings["embedding_dimension"]))
        batch = self._embedded("queries", queries, is_hybrid=is_hybrid)
        with self._store.read() as connection:
            snapshot = self._current(connection)
            settings = snapshot.settings
            if mode is None:
                mode = "hybrid" if batch.dense is not None and settings["embedding_dimension"] else "sparse"
            if weights is None and self.encoder is not None:
                weights = self.encoder.fusion_weights
            plan = Plan(mode, top_k, depth, fusion, weights)
            check_embeddings("queries", batch, settings, needs_dense=mode != "sparse")
            mask = snapshot.alive if filter is None else self._filter_masks.mask(connection, snapshot, filter)
            if len(snapshot):
                ranked = plan.rank(snapshot, batch, mask, *self._sparse_tools(snapshot))
                get, is_hybrid = self._store.documents.get, mode == "hybrid"
                results = [hits(get(connection, snapshot.keys(rows)), scored, is_hybrid) for rows, scored in ranked]
            else:
                results = [[] for _ in range(len(batch))]
        return results[0] if isinstance(queries, str) else results

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
        batch = self._embedded("query", query, is_hybrid=isinstance(hit, Hit) and hit.is_hybrid)
        if len(batch) != 1:
            raise ValueError(f"query must be one query, got {len(batch)}.")
        names = checked_strings("hit", [hit.id if isinstance(hit, Hit) else hit])
        strings = None if self.encoder is None else self.encoder.vocabulary.strings
        with self._store.read() as connection:
            snapshot = self._current(connection)
            (key,) = self._store.documents.known_keys(connection, names).values()
            check_embeddings("query", batch, snapshot.settings, needs_dense=False)
            segment, row = snapshot.place(key)
            return matched_terms(segment.postings, row, batch.sparse, strings)

    def verify(self) -> None:
        """Compare every file with its checksum, and the rows of the segments with the documents. Reads everything.

        Beside a writer, it verifies one commit: where segments are replaced meanwhile, a newer one.

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
                    self._store.check(connection, keys)
                    return

    def close(self) -> None:
        """Close the files, and remove a temporary index. Using it afterwards is an error."""
        self._snapshot = None
        self._closer()

    def _embedded(self, name: str, queries: str | Sequence[str] | Embeddings, *, is_hybrid: bool) -> HybridEmbeddings:
        """Embeddings of queries, which are texts or embeddings already."""
        if isinstance(queries, (HybridEmbeddings, SparseEmbeddings)):
            return as_hybrid(name, queries)
        texts = checked_strings(name, [queries] if isinstance(queries, str) else queries)
        return self._checked_encoder(name).encode_query(texts, is_hybrid=is_hybrid)

    def _checked_encoder(self, name: str) -> Encoder:
        if self.encoder is None:
            raise TypeError(
                f"{name} must be embeddings in an index without encoder, got texts. Open it with encoder=."
            )
        check_settings({"fingerprint": self.encoder.fingerprint}, self._given, "the encoder has now")
        return self.encoder

    def _sparse_tools(self, snapshot: Snapshot) -> tuple[Kernel, np.ndarray[Any, np.dtype[np.float32]]]:
        """The kernel, chosen at the first search as the compiled one takes time to load, and this thread's scores."""
        if self._kernel is None:
            self._kernel = sparse_kernel("auto")
        scores = getattr(self._local, "scores", None)
        if scores is None or len(scores) != padded(snapshot.num_rows):
            scores = self._local.scores = np.empty(padded(snapshot.num_rows), np.float32)
        return self._kernel, scores

    def _current(self, connection: sqlite3.Connection) -> Snapshot:
        """The snapshot of a transaction, begun anew where a writer removed a segment before it could be opened."""
        while True:
            generation = self._store.generation(connection)
            snapshot = self._snapshot
            if snapshot is not None and snapshot.generation == generation:
                return snapshot
            try:
                snapshot = self._snapshot = self._load(connection)
                return snapshot
            except FileNotFoundError as err:
                self._store.renew(connection, err)

    def _load(self, connection: sqlite3.Connection) -> Snapshot:
        """The snapshot of a transaction."""
        known = {} if self._snapshot is None else {segment.name: segment for segment in self._snapshot.segments}
        return Snapshot.load(self._store, connection, known)


def _close(store: Store, temporary: Path | None, owner: int) -> None:
    store.close()
    if temporary is not None and os.getpid() == owner:  # not in a forked process
        shutil.rmtree(temporary, ignore_errors=True)
