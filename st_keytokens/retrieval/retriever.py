"""Retriever: an encoder and an index as one thing that texts go into and hits come out of."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, overload
from uuid import uuid4

import numpy as np

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.index import Document, HybridIndex
from st_keytokens.index.directory import SETTINGS_FILE, check_regular
from st_keytokens.index.documents import Hit, checked_strings, packed_metadata
from st_keytokens.index.filters import Filter, ParsedFilter, parse_filter
from st_keytokens.index.search import SIDES, Mode, SearchPlan, Side
from st_keytokens.index.store import copy_index, finish_copy
from st_keytokens.retrieval.any_embedder import as_encoder, is_kept, keep_encoder, mark_kept
from st_keytokens.retrieval.metadata import as_json_list, json_value, restored
from st_keytokens.retrieval.outside_ranking import OutsideHit, fuse_outside, joined
from st_keytokens.retrieval.paired_embeddings import PairedEmbeddings
from st_keytokens.retrieval.searching import RetrievedHit, SearchSettings, retrieved
from st_keytokens.shared.checks import check_choice
from st_keytokens.shared.files import read_json, write_atomically
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.terms.words import WordVocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OnConflict", "Retriever"]

OnConflict = Literal["error", "replace"]

_DEFAULTS = SearchSettings()


class Retriever:
    """Texts in, hits out; every text and every query takes one forward pass. Safe for any number of threads.

    An encoder without an LM head and without a calibration is calibrated on the first texts that are added, with their
    vectors: each is embedded once, and up to 600 shorter ones beside them, see :meth:`Calibration.fit`. Give most of
    the texts at once, or calibrate before. Calibration and settings are kept beside the index, in ``encoder``, and
    found there when the same embedder is given again.

    Args:
        encoder: Makes dense and sparse vectors; a ``KeyTokenEncoder`` or, as :func:`as_encoder` says, any embedder.
        path: Directory of the index, made where it is missing; what is added is there after a crash. None: a
            temporary one, to be kept with :meth:`persist`.
        has_dense: Whether the index holds dense vectors too; False where another store does.

    Attributes:
        encoder: As given, or made of it.
        index: The index.
        pair: The vectors of the encoder in plain forms, see :class:`PairedEmbeddings`.

    Raises:
        TypeError: If ``encoder`` is nothing that embeds.
        ValueError: If the index was made by another encoder, or with other settings.
    """

    def __init__(
        self, encoder: KeyTokenEncoder | Any, path: str | PathLike[str] | None = None, *, has_dense: bool | None = None
    ) -> None:
        self.encoder = as_encoder(encoder, path)
        self.pair = PairedEmbeddings(self.encoder)
        self._has_dense = has_dense
        self._is_temporary = path is None
        self._is_waiting = self.encoder.needs_calibration  # for the first texts
        self._calibrating = threading.Lock()
        self.index = self._opened(path)
        self._fingerprint = self.encoder.fingerprint
        self._looked_for: set[str] = set()
        self._copied: tempfile.TemporaryDirectory[str] | None = None
        if not self._is_temporary and is_kept(self.encoder):
            keep_encoder(self.encoder, self.index.path)

    def _opened(self, path: str | PathLike[str] | None) -> HybridIndex:
        dimension = {None: None, True: self.encoder.get_embedding_dimension(), False: 0}[self._has_dense]
        if self.encoder.needs_calibration:  # it is another encoder then, whose name an empty index waits for
            size = self.encoder.vocabulary.vocab_size
            index = HybridIndex(path, vocab_size=size, embedding_dimension=dimension)
            if index.settings["fingerprint"] is None:
                return index
            index.close()
        return HybridIndex(path, encoder=self.encoder, embedding_dimension=dimension)

    def _calibrated_on(self, texts: Sequence[str], embeddings: Any) -> Any:
        """Calibrates an encoder that needs it on the first texts; their vectors, where those are known then."""
        if not self.encoder.needs_calibration:
            return embeddings
        if len(texts) < 2:
            raise ValueError(
                f"the encoder must be calibrated on two documents at the least, got {len(texts)}. Add most of the "
                "documents at once, or calibrate an encoder before: encoder.calibrate(texts)."
            )
        try:
            self.encoder.forward_pass.check_stored()
            is_decoded = self.encoder.get_embedding_dimension() == self.encoder.head.lm_head_dimension
        except ValueError:
            is_decoded = False
        if not is_decoded:  # by another module, or truncated
            embeddings = None
        elif embeddings is None:
            embeddings = self.pair.dense(texts, "document")
        elif not isinstance(embeddings, np.ndarray):
            embeddings = self.pair.dense_known(texts, embeddings)
        self.encoder.calibrate(texts, embeddings=embeddings, show_progress_bar=False)
        mark_kept(self.encoder)
        return embeddings

    def _rebind(self) -> None:
        """Opens the empty index for the encoder as it is, now that it is calibrated."""
        self._is_waiting = False
        before, self.index = self.index, self._opened(None if self._is_temporary else self.index.path)
        self._fingerprint = self.encoder.fingerprint
        before.close()
        if not self._is_temporary:
            keep_encoder(self.encoder, self.index.path)

    def __enter__(self) -> Retriever:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the index; a temporary one is removed."""
        self.index.close()
        if self._copied is not None:
            self._copied.cleanup()

    def __getstate__(self) -> dict[str, Any]:
        """The encoder, and the index: a temporary one whole, any other as its path."""
        state = {"encoder": self.encoder, "fingerprint": self._fingerprint, "is_kept": is_kept(self.encoder)}
        if not self._is_temporary:
            return {**state, "path": str(self.index.path.absolute())}
        with tempfile.TemporaryDirectory(prefix="keytokens-") as folder:
            copy_index(self.index.path, Path(folder, "index"))
            files = [file for file in Path(folder, "index").rglob("*") if file.is_file()]
            return {**state, "files": {str(f.relative_to(Path(folder, "index"))): f.read_bytes() for f in files}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        if state.get("is_kept"):
            mark_kept(state["encoder"])
        if "path" in state:
            self.__init__(state["encoder"], state["path"])  # type: ignore[misc]
        else:
            copied = tempfile.TemporaryDirectory(prefix="keytokens-")
            for name, content in state["files"].items():
                Path(copied.name, name).parent.mkdir(parents=True, exist_ok=True)
                Path(copied.name, name).write_bytes(content)
            self.__init__(state["encoder"], copied.name)  # type: ignore[misc]
            self._copied, self._is_temporary = copied, True
        self._fingerprint = state["fingerprint"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Retriever:
        """A retriever of the same encoder with a temporary copy of the index, which goes its own way."""
        copied = tempfile.TemporaryDirectory(prefix="keytokens-")
        copy_index(self.index.path, Path(copied.name))
        made = Retriever(self.encoder, copied.name)
        made._copied, made._is_temporary, made._fingerprint = copied, True, self._fingerprint
        return made

    def __len__(self) -> int:
        return len(self.index)

    @property
    def has_dense(self) -> bool:
        """Whether the index holds dense vectors, or may do so as long as it is empty."""
        return self.index.embedding_dimension != 0

    def add(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        embedded_texts: Sequence[str] | None = None,
        embeddings: NDArray[np.floating[Any]] | Sequence[Sequence[float] | None] | None = None,
        on_conflict: OnConflict = "error",
    ) -> list[str]:
        """Add documents, all or none.

        Args:
            texts: What is kept and comes back with a hit.
            ids: Their ids; a new UUID for None.
            metadata: A dictionary or None for each: JSON, dates, paths, UUIDs, tuples, numpy numbers.
            embedded_texts: What is embedded in their place, such as texts with a title. None: the texts.
            embeddings: Dense vectors that are known already: an array of those that the encoder's model gave for what
                is embedded, ``(N, embedding_dimension)``; or a list with None for those that are not known, of which
                one is compared with the encoder's own, see :meth:`PairedEmbeddings.hybrid_documents`. None: all is
                embedded.
            on_conflict: ``"error"``, or ``"replace"`` documents whose id is there.

        Returns:
            The ids.

        Raises:
            TypeError: If an argument is of the wrong type; for metadata the error names the key.
            ValueError: If lengths differ, an id is given twice, or is there and not to be replaced, or the encoder was
                changed. Nothing is added.
        """
        names = self.check_addable(texts, ids=ids, metadata=metadata, on_conflict=on_conflict)
        embedded = texts if embedded_texts is None else checked_strings("embedded_texts", embedded_texts, len(names))
        self._check_encoder()
        if self._is_waiting and names:
            with self._calibrating:
                embeddings = self._calibrated_on(embedded, embeddings)
                if self._is_waiting:
                    self._rebind()
        if isinstance(embeddings, np.ndarray):
            dimension = self.encoder.get_embedding_dimension()
            if embeddings.ndim != 2 or embeddings.shape[1] != dimension:
                raise ValueError(
                    f"embeddings must have the encoder's dimension {dimension}, got shape {embeddings.shape}. They "
                    "are of another embedder; leave them out to embed the texts."
                )
            dense = embeddings.astype(np.float32)
            sparse = self.encoder.sparsify(dense, list(embedded))
            vectors = HybridEmbeddings(dense if self.has_dense else None, sparse)
        elif embeddings is not None and any(vector is not None for vector in embeddings):
            vectors = self.pair.hybrid_documents(embedded, embeddings)
            vectors = vectors if self.has_dense else HybridEmbeddings(None, vectors.sparse)
        elif self.has_dense:
            vectors = self.encoder.encode_document(embedded)
        else:
            vectors = HybridEmbeddings(None, self.pair.sparse(embedded, "document"))
        return self.index.add(
            names,
            texts,
            embeddings=vectors,
            metadata=None if metadata is None else as_json_list(metadata),
            on_conflict=on_conflict,
        )

    def check_addable(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        on_conflict: OnConflict = "error",
    ) -> list[str]:
        """Check what :meth:`add` would refuse, before another store is written to; nothing is embedded or added.

        Arguments and errors are those of :meth:`add`.

        Returns:
            The ids, new ones for None; give these to :meth:`add`.
        """
        check_choice("on_conflict", on_conflict, get_args(OnConflict))
        size = len(checked_strings("texts", texts))
        names = [str(uuid4()) if name is None else name for name in (ids if ids is not None else [None] * size)]
        names = checked_strings("ids", names, size)
        if metadata is not None:
            packed_metadata(as_json_list(metadata), size)
        twice, count = max(Counter(names).items(), key=itemgetter(1), default=("", 0))
        if count > 1:
            raise ValueError(f"ids must be unique, got {twice!r} twice. Nothing was added.")
        known = [] if on_conflict == "replace" else self.known_ids(names)
        if known:
            raise ValueError(f"ids must be new, got {known[0]!r}, which is there. Use on_conflict='replace'.")
        return names

    def ids(self) -> list[str]:
        """The ids of all documents, in order of insertion."""
        return self.index.ids()

    def known_ids(self, ids: Collection[str]) -> list[str]:
        """Those of some ids that are in the index, in their order."""
        return [id for id in ids if id in self.index]

    def newly_missing(self, keys: Sequence[str]) -> list[str]:
        """Those of some metadata keys that no document has, each once in the life of the retriever; none if empty.

        Args:
            keys: The keys; one with dots may lead into nested dictionaries.
        """
        new = [key for key in keys if key not in self._looked_for]
        if not new or not len(self):
            return []
        self._looked_for.update(new)
        return [key for key in new if not self._has_key(key)]

    def _has_key(self, key: str) -> bool:
        try:
            if key in self.index.metadata_types([key]):
                return True
        except ValueError:  # a key that the database cannot look for
            return any(key in document.metadata for document in self.index.documents())
        return "." in key and any(_leads_somewhere(document.metadata, key) for document in self.index.documents())

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents; ids that are not there are passed over.

        Returns:
            How many were there.
        """
        return self.index.delete(ids)

    def get(self, ids: Collection[str]) -> list[Document]:
        """Documents by id, in the order of the ids.

        Raises:
            KeyError: If an id is unknown.
        """
        return [replace(document, metadata=restored(document.metadata)) for document in self.index.get(ids)]

    def persist(self, path: str | PathLike[str], settings: Mapping[str, Any] | None = None) -> None:
        """Keep the index, and settings of an adapter beside it, in a directory; no pickle.

        What is added afterwards goes into the index at its own path, not into a copy.

        Args:
            path: Directory; an index that is there is replaced as a whole. In the index's
                own one only the settings are written.
            settings: A JSON object.

        Raises:
            OSError: If it cannot be written.
            TypeError: If the settings are no JSON.
            ValueError: If the directory holds other files, but no index.
        """
        content = json.dumps(dict(settings or {}), indent=2).encode()
        target = Path(os.path.abspath(path))
        len(self.index)  # refused where the index's own directory was replaced
        if target.exists() and target.samefile(self.index.path):
            write_atomically(target / SETTINGS_FILE, content)
        else:
            copy_index(self.index.path, target, {SETTINGS_FILE: content})
        if is_kept(self.encoder):
            keep_encoder(self.encoder, target)

    @staticmethod
    def read_settings(path: str | PathLike[str]) -> dict[str, Any]:
        """The settings that :meth:`persist` kept beside an index.

        Raises:
            FileNotFoundError: If there are none.
            ValueError: If they are damaged.
        """
        file = Path(os.path.abspath(path), SETTINGS_FILE)
        finish_copy(file.parent)
        if not os.path.lexists(file):
            raise FileNotFoundError(f"path must hold a persisted retriever, got {path} without {SETTINGS_FILE}.")
        check_regular(file)
        try:
            return read_json(file)
        except ValueError as err:
            raise ValueError(f"{err} Persist the retriever again.") from err

    @classmethod
    def open(cls, path: str | PathLike[str], encoder: KeyTokenEncoder | Any) -> tuple[Retriever, dict[str, Any]]:
        """Open what :meth:`persist` kept; further changes go into that directory.

        Args:
            path: The directory.
            encoder: The one that made the index.

        Returns:
            The retriever, and the settings.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was made by another encoder, or is damaged.
        """
        settings = cls.read_settings(path)
        return cls(encoder, path), settings

    def embed(
        self, queries: Sequence[str], settings: SearchSettings | None = None, *, has_outside: bool = False
    ) -> HybridEmbeddings | None:
        """Embed the queries of a batch at once, for searches of one each.

        Args:
            queries: The queries.
            settings: As they will be given to :meth:`search`.
            has_outside: Whether a ranking from outside will be. Its store may embed the queries by the embeddings of
                :attr:`pair`, where both halves then wait.

        Returns:
            Their vectors, of which :meth:`search` takes the row of its query; None where both halves wait.

        Raises:
            ValueError: As :meth:`search`.
        """
        self._check_encoder()
        if self.encoder.needs_calibration:
            return None
        if has_outside:
            self.pair.prepare(queries, "query")
            return None
        settings = settings or _DEFAULTS
        return self._embedded(list(queries), self._mode(settings, False), settings.needs_known_word)

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is formally a Sequence[str]
        self,
        queries: str,
        settings: SearchSettings | None = None,
        *,
        outside: Sequence[OutsideHit] | None = None,
        others: Mapping[str, Sequence[OutsideHit]] | None = None,
        vectors: HybridEmbeddings | None = None,
        shares_encoder: bool = False,
    ) -> list[RetrievedHit]: ...

    @overload
    def search(
        self,
        queries: Sequence[str],
        settings: SearchSettings | None = None,
        *,
        vectors: HybridEmbeddings | None = None,
    ) -> list[list[RetrievedHit]]: ...

    def search(
        self,
        queries: str | Sequence[str],
        settings: SearchSettings | None = None,
        *,
        outside: Sequence[OutsideHit] | None = None,
        others: Mapping[str, Sequence[OutsideHit]] | None = None,
        vectors: HybridEmbeddings | None = None,
        shares_encoder: bool = False,
    ) -> list[RetrievedHit] | list[list[RetrievedHit]]:
        """Find the best documents for each query.

        Args:
            queries: A text, or several, which share the forward passes.
            settings: How to search; None for the defaults.
            outside: A dense ranking of another store for one query, best first; it takes the place of the index's
                dense side. Its hits are joined with ours by id or, where the store gives none or our index does not
                know it, by text. A filter holds for them too. Ask the store for ``settings.fused_depth`` hits.
            others: More rankings for one query, by the names that ``settings.others`` has; joined and filtered as
                ``outside``, and fused beside both sides. One without scores counts by its ranks.
            vectors: Those of the queries, from :meth:`embed` or, of one query, :meth:`query_vectors`; nothing is
                embedded then. None: the queries are embedded.
            shares_encoder: Whether the dense side outside has vectors of this encoder, whose passes it shares.

        Returns:
            Hits, best first: a list for a text, a list of lists for several. None at all from an empty index, for a
            query of white space, or in sparse mode for one that shares no term with a document.

        Raises:
            TypeError: If a query is not a string.
            ValueError: If the mode needs dense vectors and there are none, the encoder was changed, or ``others`` are
                not those of the settings.
        """
        settings = settings or _DEFAULTS
        if sorted(others or ()) != sorted(settings.others):
            raise ValueError(f"others must be those of the settings, {settings.others}, got {tuple(others or ())}.")
        texts = checked_strings("queries", [queries] if isinstance(queries, str) else queries)
        mode = self._mode(settings, outside is not None or bool(others))
        self._check_encoder()
        if not texts:
            return []
        weights = self.encoder.fusion_weights if settings.weights is None else settings.weights
        plan = settings.plan(mode=mode, weights=weights, filter=_stored_filter(settings.filter))
        if (outside is not None or others) and not isinstance(queries, str):
            raise TypeError(f"queries must be one string beside outside, got {type(queries).__name__}.")
        has_row = [bool(text.strip()) for text in texts]
        if self.encoder.needs_calibration:  # nothing has been added
            has_row = [False] * len(texts)
            vectors = HybridEmbeddings(None, SparseEmbeddings.concatenate([self._no_terms()] * len(texts)))
            if outside is None and not others:
                nothing: list[list[RetrievedHit]] = [[] for _ in texts]
                return nothing[0] if isinstance(queries, str) else nothing
        elif vectors is not None:
            dense = None if outside is not None else vectors.dense
            has_row = [has_row[n] or (dense is not None and bool(dense[n].any())) for n in range(len(texts))]
        elif outside is None:
            vectors = self._embedded(texts, mode, settings.needs_known_word)
        elif has_row[0]:
            vectors = HybridEmbeddings(
                None, self._beside_dense(texts[0], None, settings.needs_known_word, shares_encoder)
            )
        else:
            return []
        results = self._grouped(vectors, plan, settings.group_by, outside, others or {}, has_row)
        if settings.has_matches:
            results = [self._explained(hits, vectors[row]) for row, hits in enumerate(results)]
        return results[0] if isinstance(queries, str) else results

    def _grouped(
        self,
        vectors: HybridEmbeddings,
        plan: SearchPlan,
        group_by: str | None,
        outside: Sequence[OutsideHit] | None,
        others: Mapping[str, Sequence[OutsideHit]],
        has_row: Sequence[bool],
    ) -> list[list[RetrievedHit]]:
        """Hits of each query; with groups, of as many documents as it takes to have enough groups."""
        if group_by is None:
            return self._results(vectors, plan, outside, others, has_row)
        depth = plan.depth
        while True:
            sides = 2 + len(others) if plan.mode == "hybrid" else 1
            results = [
                _first_of_groups(hits, group_by, plan.top_k)
                for hits in self._results(
                    vectors, replace(plan, top_k=depth * sides, depth=depth), outside, others, has_row
                )
            ]
            if depth >= len(self) or all(len(hits) >= plan.top_k for hits in results):
                return results
            depth *= 4

    def _results(
        self,
        vectors: HybridEmbeddings,
        plan: SearchPlan,
        outside: Sequence[OutsideHit] | None,
        others: Mapping[str, Sequence[OutsideHit]],
        has_row: Sequence[bool],
    ) -> list[list[RetrievedHit]]:
        if outside is None and not others:
            ranked = self.index.ranked(vectors, plan)
            return [retrieved(found) if has_row[row] else [] for row, found in enumerate(ranked)]
        found: dict[Side, list[Hit]] = {"dense": [], "sparse": []}
        if has_row[0] or outside is not None:
            for side in SIDES if outside is None else SIDES[1:]:
                of_side = HybridEmbeddings(vectors.dense if side == "dense" else None, vectors.sparse)
                found[side] = self.index.ranked(of_side, replace(plan, mode=side, top_k=plan.depth))[0]
        return [fuse_outside(outside, found["sparse"], self._look_up, plan, dense=found["dense"], others=others)]

    async def asearch(
        self,
        query: str,
        settings: SearchSettings | None = None,
        *,
        outside: Sequence[OutsideHit] | None = None,
        others: Mapping[str, Sequence[OutsideHit]] | None = None,
        vectors: HybridEmbeddings | None = None,
        shares_encoder: bool = False,
    ) -> list[RetrievedHit]:
        """:meth:`search` for one query, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(
            self.search,
            query,
            settings,
            outside=outside,
            others=others,
            vectors=vectors,
            shares_encoder=shares_encoder,
        )

    def query_vectors(
        self,
        texts: Sequence[str],
        *,
        dense: Sequence[float] | None = None,
        mode: Mode,
        has_outside: bool = False,
        needs_known_word: bool = True,
        shares_encoder: bool = False,
    ) -> HybridEmbeddings:
        """Vectors of one query that stands in several texts, or whose dense vector is known: the means over the texts.

        Args:
            texts: The texts.
            dense: The dense vector, of this encoder; None to embed the texts.
            mode: The mode of the search.
            has_outside: Whether the dense ranking comes from another store, so that only a sparse vector is needed.
            needs_known_word: As in :class:`SearchSettings`; of several texts, one has to have such a word.
            shares_encoder: As in :meth:`search`.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If ``dense`` has another dimension.
        """
        names = checked_strings("texts", texts)
        if dense is not None and len(dense) != self.encoder.get_embedding_dimension():
            raise ValueError(
                f"dense must have the encoder's dimension {self.encoder.get_embedding_dimension()}, got {len(dense)}."
            )
        if self.encoder.needs_calibration:
            return HybridEmbeddings(None if dense is None else np.array([dense], np.float32), self._no_terms())
        if mode == "sparse" and not has_outside:
            return HybridEmbeddings(
                None, _mean(self._fitted(names, self.pair.sparse(names, "query"), needs_known_word))
            )
        if has_outside or dense is not None or not names:
            parts = [self._beside_dense(text, dense, needs_known_word, shares_encoder) for text in names]
            sparse = _mean(SparseEmbeddings.concatenate(parts or [self._no_terms()]))
            return HybridEmbeddings(None if dense is None else np.array([dense], np.float32), sparse)
        both = self._embedded(names, mode, needs_known_word)
        mean = None if both.dense is None else both.dense.mean(axis=0, keepdims=True)
        return HybridEmbeddings(mean, _mean(both.sparse))

    def _no_terms(self) -> SparseEmbeddings:
        return SparseEmbeddings.from_dicts([{}], vocab_size=self.encoder.vocabulary.vocab_size)

    def documents(self, filter: Filter | None = None) -> list[Document]:
        """All documents that a filter lets through, the oldest first, their metadata as they were given.

        Args:
            filter: As in :class:`SearchSettings`; None for all.
        """
        found = self.index.documents(None if filter is None else _as_stored(filter))
        return [replace(document, metadata=restored(document.metadata)) for document in found]

    def passing(self, outside: Sequence[OutsideHit], filter: Filter) -> list[OutsideHit]:
        """Those hits of another store that a filter lets through, by the rules of :meth:`search`.

        Args:
            outside: A ranking of another store. Of several hits of one document the first counts.
            filter: As in :class:`SearchSettings`.
        """
        hits = joined(outside, [], self._look_up, _stored_filter(filter)).values()
        return [outside[hit.outside] for hit in hits if hit.outside is not None]

    def check_outside(self, outside: Sequence[OutsideHit], *, is_filtered: bool) -> None:
        """Check that a ranking of another store and the index are two sides of one search.

        A store that lost its documents, or an index that never got them, would make a hybrid search one of a single
        side, and nothing would say so.

        Args:
            outside: A ranking of another store.
            is_filtered: Whether a filter may have left nothing of it.

        Raises:
            ValueError: If one is empty and the other is not.
        """
        if outside and not len(self):
            raise ValueError(
                f"the index must hold the documents of the vector store, got an empty one beside {len(outside)} hits "
                "of the store. Add the documents to the retriever too."
            )
        if not outside and len(self) and not is_filtered:
            raise ValueError(
                f"the vector store must hold the documents of the index, got no hit from it beside {len(self)} in the "
                "index. Fill it again, or retrieve by sparse vectors alone."
            )

    def _check_encoder(self) -> None:
        if self.encoder.fingerprint == self._fingerprint:
            return
        with self._calibrating:  # another thread may be between the encoder's calibration and the new index
            if self._is_waiting and not self.encoder.needs_calibration:  # calibrated elsewhere, meanwhile
                self._rebind()
            if self.encoder.fingerprint == self._fingerprint:
                return
        raise ValueError(
            f"the encoder must have the fingerprint {self._fingerprint}, as when the retriever was made, got "
            f"{self.encoder.fingerprint}. Calibrate and set it up first, and make the retriever afterwards."
        )

    def _mode(self, settings: SearchSettings, has_outside: bool) -> Mode:
        if has_outside:
            if settings.mode not in (None, "hybrid"):
                raise ValueError(f"mode must be 'hybrid' beside outside, got {settings.mode!r}.")
            return "hybrid"
        has_dense = self.has_dense
        if settings.mode in ("dense", "hybrid") and not has_dense:
            raise ValueError(
                f"mode must be 'sparse' in an index without dense vectors, got {settings.mode!r}. "
                "Make the retriever with has_dense=True, or give it a dense ranking from outside."
            )
        return settings.mode or ("hybrid" if has_dense else "sparse")

    def _embedded(self, queries: list[str], mode: Mode, needs_known_word: bool) -> HybridEmbeddings:
        """Queries as the mode needs them: nothing runs for a sparse search by lookup."""
        if mode == "sparse":
            return HybridEmbeddings(None, self._fitted(queries, self.pair.sparse(queries, "query"), needs_known_word))
        vectors = self.encoder.encode_query(queries, query="encode", is_hybrid=mode == "hybrid")
        if self.encoder.query == "lookup":
            vectors = HybridEmbeddings(vectors.dense, self.pair.sparse(queries, "query"))
        if mode != "hybrid":
            return vectors
        return HybridEmbeddings(vectors.dense, self._fitted(queries, vectors.sparse, needs_known_word))

    def _fitted(self, queries: list[str], sparse: SparseEmbeddings, needs_known_word: bool) -> SparseEmbeddings:
        """Queries as the index has their words, and nothing of a query without a known word, where that is wanted."""
        sparse = self.index.fit_queries(self.encoder, queries, sparse)
        if not needs_known_word or all(known := self._know(queries)):
            return sparse
        none = self._no_terms()
        return SparseEmbeddings.concatenate([sparse[i : i + 1] if known[i] else none for i in range(len(known))])

    def _know(self, queries: list[str]) -> list[bool]:
        """Whether a document has a word of each query; not asked of pieces of words, and where nothing is decoded."""
        encoder = self.encoder
        is_decoded = encoder.query == "encode" and encoder.weighting.query_terms == "both"
        if not (is_decoded and isinstance(encoder.vocabulary, WordVocabulary)):
            return [True] * len(queries)
        return [any(self.index.document_frequencies(row.tolist())) for row in encoder.literal_terms(queries)]

    def _beside_dense(
        self, query: str, dense: Sequence[float] | None, needs_known_word: bool, shares_encoder: bool
    ) -> SparseEmbeddings:
        """The sparse side of a query whose dense one is elsewhere, as in a hybrid search of ours.

        Decoded terms are those of the dense vector that is known, or of the pass that a store of this encoder's
        vectors has asked for; a store with vectors of another embedder has the literal terms beside it.
        """
        encoder = self.encoder
        if encoder.query == "lookup" or encoder.weighting.query_terms != "both":
            return self._fitted([query], self.pair.sparse([query], "query"), needs_known_word)
        sparse = None
        if dense is not None:
            sparse = self._decoded(query, dense)
        elif shares_encoder:
            sparse = self.pair.sparse([query], "query")
        if sparse is None:
            sparse, needs_known_word = encoder.encode_query([query], query="lookup").sparse, False
        else:
            sparse = encoder.hybrid_query([query], sparse)
        return self._fitted([query], sparse, needs_known_word)

    def _decoded(self, query: str, dense: Sequence[float]) -> SparseEmbeddings | None:
        """The sparse vector of a query whose dense one is known; None where that is not what is decoded."""
        encoder = self.encoder
        try:
            encoder.forward_pass.check_stored()
        except ValueError:
            return None
        if len(dense) != encoder.head.lm_head_dimension:
            return None  # truncated
        return encoder.sparsify(np.array([dense], np.float32), [query], role="query")

    def _look_up(self, id: str) -> Document | None:
        try:
            return self.index.get([id])[0]
        except KeyError:
            return None

    def _explained(self, hits: list[RetrievedHit], query: HybridEmbeddings) -> list[RetrievedHit]:
        """The hits with the terms that they match; none for documents that our index does not hold."""
        explained = []
        for hit in hits:
            try:
                matches = [] if hit.id is None else self.index.explain(query, hit.id)
            except KeyError:  # another store's document, or one that was deleted meanwhile
                matches = []
            explained.append(replace(hit, matches=matches))
        return explained


def _mean(sparse: SparseEmbeddings) -> SparseEmbeddings:
    """The mean of the rows, as one row."""
    if len(sparse) == 1:
        return sparse
    total: dict[int, float] = {}
    for row in sparse.to_dicts():
        for term, weight in row.items():
            total[term] = total.get(term, 0.0) + weight / len(sparse)
    return SparseEmbeddings.from_dicts([total], vocab_size=sparse.vocab_size)


def _leads_somewhere(metadata: Mapping[str, Any], key: str) -> bool:
    found: Any = metadata
    for step in key.split("."):
        if not isinstance(found, Mapping) or step not in found:
            return False
        found = found[step]
    return True


def _first_of_groups(hits: Sequence[RetrievedHit], key: str, top_k: int) -> list[RetrievedHit]:
    """The best hit of each group, and those of none, ranked anew."""
    seen: set[str] = set()
    kept: list[RetrievedHit] = []
    for hit in hits:
        if len(kept) == top_k:
            break
        if key in hit.metadata:
            group = repr(json_value(hit.metadata[key]))
            if group in seen:
                continue
            seen.add(group)
        kept.append(replace(hit, rank=len(kept) + 1))
    return kept


def _stored_filter(filter: Filter | None) -> ParsedFilter | None:
    """A filter over metadata as they were given, parsed for those in the index."""
    return None if filter is None else parse_filter(_as_stored(filter))


def _as_stored(filter: Filter) -> Filter:
    """A filter over metadata as they were given, for those in the index."""
    if isinstance(filter, Mapping):
        return cast("Filter", json_value(filter))
    if not callable(filter):
        return filter
    return lambda document: filter(Document(document.id, document.text, restored(document.metadata)))
