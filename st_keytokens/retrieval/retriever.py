"""Retriever: an encoder and an index as one thing that texts go into and hits come out of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import Any, cast, overload

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.index import Document, Hit
from st_keytokens.index.documents import checked_strings
from st_keytokens.index.filters import Filter
from st_keytokens.index.search import Mode
from st_keytokens.retrieval.metadata import json_value, restored
from st_keytokens.retrieval.outside_ranking import OutsideHit, fuse_outside, joined
from st_keytokens.retrieval.searching import RetrievedHit, SearchSettings
from st_keytokens.retrieval.text_store import TextStore
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

__all__ = ["Retriever"]


class Retriever(TextStore):
    """Texts in, hits out; every text and every query takes one forward pass. Safe for any number of threads.

    Args:
        encoder: Makes dense and sparse vectors.
        path: Directory of the index, made where it is missing; what is added is there after a crash. None: a
            temporary one, to be kept with :meth:`persist`.
        has_dense: Whether the index holds dense vectors too; False where another store does.

    Attributes:
        encoder: As given.
        index: The index.
        pair: The vectors of the encoder in plain forms, see :class:`PairedEmbeddings`.

    Raises:
        TypeError: If ``encoder`` is no ``KeyTokenEncoder``.
        ValueError: If the index was made by another encoder, or with other settings.
    """

    def __enter__(self) -> Retriever:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is formally a Sequence[str]
        self, queries: str, settings: SearchSettings | None = None, *, outside: Sequence[OutsideHit] | None = None
    ) -> list[RetrievedHit]: ...

    @overload
    def search(self, queries: Sequence[str], settings: SearchSettings | None = None) -> list[list[RetrievedHit]]: ...

    def search(
        self,
        queries: str | Sequence[str],
        settings: SearchSettings | None = None,
        *,
        outside: Sequence[OutsideHit] | None = None,
    ) -> list[RetrievedHit] | list[list[RetrievedHit]]:
        """Finds the best documents for each query.

        Args:
            queries: A text, or several, which share the forward passes.
            settings: How to search; None for the defaults.
            outside: A dense ranking of another store for one query, best first; it takes the place of the index's
                dense side. Its hits are joined with ours by id or, where the store gives none or our index does not
                know it, by text. A filter holds for them too. Ask the store for ``settings.fused_depth`` hits.

        Returns:
            Hits, best first: a list for a text, a list of lists for several. None at all from an empty index, for a
            query of white space, or in sparse mode for one that shares no term with a document.

        Raises:
            TypeError: If a query is not a string.
            ValueError: If the mode needs dense vectors and there are none, or the encoder was changed.
        """
        settings = settings or SearchSettings()
        texts = checked_strings("queries", [queries] if isinstance(queries, str) else queries)
        mode = self._mode(settings, outside is not None)
        self._check_encoder()
        if not texts:
            return []
        weights = self.encoder.fusion_weights if settings.weights is None else settings.weights
        settings = replace(settings, mode=mode, weights=weights, filter=_index_filter(settings.filter))
        if outside is not None:
            if not isinstance(queries, str):
                raise TypeError(f"queries must be one string beside outside, got {type(queries).__name__}.")
            return self._search_with(outside, queries, settings) if queries.strip() else []
        vectors = self._embedded(texts, mode)
        found = self.index.search(
            vectors,
            mode=mode,
            top_k=settings.top_k,
            filter=settings.filter,
            fusion=settings.fusion,
            weights=settings.weights,
            depth=settings.depth,
        )
        results = [
            [self._explained(_retrieved(hit), vectors[row], settings) for hit in hits if texts[row].strip()]
            for row, hits in enumerate(found)
        ]
        return results[0] if isinstance(queries, str) else results

    async def asearch(
        self, query: str, settings: SearchSettings | None = None, *, outside: Sequence[OutsideHit] | None = None
    ) -> list[RetrievedHit]:
        """:meth:`search` for one query, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.search, query, settings, outside=outside)

    @classmethod
    def open(cls, path: str | PathLike[str], encoder: KeyTokenEncoder) -> tuple[Retriever, dict[str, Any]]:
        """Opens what :meth:`persist` kept; further changes go into that directory.

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

    def passing(self, outside: Sequence[OutsideHit], filter: Filter) -> list[OutsideHit]:
        """Those hits of another store that a filter lets through, by the rules of :meth:`search`.

        Args:
            outside: A ranking of another store. Of several hits of one document the first counts.
            filter: As in :class:`SearchSettings`.
        """
        return [hit.given for hit in joined(outside, [], self._look_up, _index_filter(filter)).values()]

    def check_outside(self, outside: Sequence[OutsideHit], *, is_filtered: bool) -> None:
        """Checks that a ranking of another store and the index are two sides of one search.

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

    def _embedded(self, queries: list[str], mode: Mode) -> HybridEmbeddings:
        """Queries as the mode needs them: nothing runs for a sparse search by lookup."""
        if mode == "sparse":
            return HybridEmbeddings(None, self.pair.sparse(queries, "query"))
        vectors = self.encoder.encode_query(queries, query="encode", is_hybrid=mode == "hybrid")
        if self.encoder.query == "lookup":
            return HybridEmbeddings(vectors.dense, self.pair.sparse(queries, "query"))
        return vectors

    def _beside_dense(self, query: str) -> SparseEmbeddings:
        """The sparse side of a query whose dense one is elsewhere, as in a hybrid search of ours."""
        if self.encoder.weighting.query_terms == "both":  # the decoded ones say what the dense side says
            return self.encoder.encode_query([query], query="lookup").sparse
        return self.pair.sparse([query], "query")

    def _search_with(self, outside: Sequence[OutsideHit], query: str, settings: SearchSettings) -> list[RetrievedHit]:
        vectors = HybridEmbeddings(None, self._beside_dense(query))
        (found,) = self.index.search(vectors, mode="sparse", top_k=settings.fused_depth, filter=settings.filter)
        hits = fuse_outside(outside, found, self._look_up, settings)
        return [self._explained(hit, vectors, settings) for hit in hits]

    def _look_up(self, id: str) -> Document | None:
        try:
            return self.index.get([id])[0]
        except KeyError:
            return None

    def _explained(self, hit: RetrievedHit, query: HybridEmbeddings, settings: SearchSettings) -> RetrievedHit:
        if not settings.has_matches:
            return hit
        try:
            return replace(hit, matches=[] if hit.id is None else self.index.explain(query, hit.id))
        except KeyError:  # another store's document, or one that was deleted meanwhile
            return replace(hit, matches=[])


def _retrieved(hit: Hit) -> RetrievedHit:
    return RetrievedHit(hit.id, hit.score, hit.rank, hit.text, restored(hit.metadata), hit.scores)


def _index_filter(filter: Filter | None) -> Filter | None:
    """A filter over metadata as they were given, for those in the index."""
    if isinstance(filter, Mapping):
        return cast("Filter", json_value(filter))
    if not callable(filter):
        return filter
    return lambda document: filter(replace(document, metadata=restored(document.metadata)))
