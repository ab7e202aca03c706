"""KeyTokensRetriever: sparse retrieval by key tokens, with an index of its own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict
from uuid import UUID, uuid5

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, Field, field_validator
from st_keytokens import HybridEmbeddings, KeyTokenEncoder, SparseEmbeddings
from st_keytokens.retrieval import (
    ENCODER_FOLDER,
    OnConflict,
    RetrievedHit,
    Retriever,
    SearchSettings,
    as_json,
    checked_int,
    json_value,
    restored,
    saved_encoder,
)
from typing_extensions import Self, Unpack

from langchain_keytokens.filters import DocumentFilter, filter_keys, index_filter

__all__ = ["KeyTokensRetriever", "QueryArguments", "checked_documents", "checked_query", "with_ids"]

Batch = tuple[Retriever, Mapping[str, HybridEmbeddings]]

logger = logging.getLogger(__name__)

_NAMES = UUID("6ba3b4b9-5b0c-4a55-9a7e-7c4d1b9a1c11")  # of ids that are made of what a document says
_BATCH: ContextVar[Batch | None] = ContextVar("keytokens_batch", default=None)


class QueryArguments(TypedDict, total=False):
    """What a call of a retriever may say for itself, in place of the fields of the same names."""

    k: int | None
    filter: DocumentFilter | None


class KeyTokensRetriever(BaseRetriever):
    """Finds documents by the key tokens that they share with a query.

    The index is exact, on disk, and takes documents at any time. Every text and every query is embedded once.

    Setup:
        .. code-block:: bash

            pip install langchain-keytokens

    Key init args:
        retriever: st_keytokens.retrieval.Retriever
            Encoder and index. ``from_texts``, ``from_documents`` and ``load_local`` make one from an encoder.
        k: int
            Documents to return.
        filter: dict | None
            Which documents may be found, over their metadata, such as ``{"year": {"$gte": 2020}}``; the language is
            that of ``st_keytokens.index.filters``.
        score_key: str | None
            Key of the metadata that the score goes to; it takes the place of a key of that name in what is returned.
            None, the default, leaves the metadata as they were, so that a document found by two queries is one
            document to whoever compares them; ``search_with_scores`` gives the scores beside the documents.
        group_by: str | None
            Key of the metadata of whose values each is found once, by its best document, such as the one that names
            the source; documents without it are found all.
        needs_known_word: bool
            Whether a sparse search finds nothing for a query none of whose own words a document has, as by default:
            what such a query decodes to is noise.
        matches_key: str | None
            Key of the metadata that the matched tokens go to, with their contributions to the score.

    Instantiate:
        .. code-block:: python

            from langchain_keytokens import KeyTokensRetriever
            from st_keytokens import KeyTokenEncoder

            encoder = KeyTokenEncoder("examples/tiny-embedder/embedder")
            encoder.calibrate(texts)
            retriever = KeyTokensRetriever.from_texts(texts, encoder, metadatas=metadatas, k=5, matches_key="matches")

    Usage:
        .. code-block:: python

            retriever.invoke("planets around other stars")
            retriever.invoke("planets around other stars", k=2, filter={"year": 2024})
            await retriever.ainvoke("planets around other stars")

    Use within a chain:
        .. code-block:: python

            chain = {"context": retriever, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()

    Raises:
        ValueError: If a setting is out of its range; at a search, if the encoder was changed after the index was made.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    retriever: Retriever = Field(exclude=True, repr=False)
    k: int = Field(default=4, ge=1)
    filter: dict[str, Any] | None = None
    group_by: str | None = None
    needs_known_word: bool = True
    score_key: str | None = None
    matches_key: str | None = None

    @field_validator("k", mode="before")
    @classmethod
    def _check_k(cls, k: Any) -> Any:
        try:
            int(k)
        except (TypeError, ValueError) as err:
            raise ValueError(
                f"k must be an integer, got {type(k).__name__} {k!r:.60}. It is the number of documents to return."
            ) from err
        return k

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        encoder: KeyTokenEncoder | Embeddings | Any,
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """Indexes texts.

        Args:
            texts: The texts; none makes an empty retriever, or opens the one at ``path``.
            encoder: What embeds them: a ``KeyTokenEncoder``, any ``Embeddings`` of LangChain, synchronous or not, a
                SentenceTransformer, or a function from texts to vectors. One without an LM head, as every
                ``Embeddings``, is calibrated on the first documents that are added, with their vectors: each text is
                embedded once, and up to 600 shorter ones beside them. Give most documents at once.
                A call that fails, fails this one; what was embedded is remembered for as long as the ``Embeddings``
                is there, so that calling again goes on from there.
            metadatas: A dictionary or None for each. They may hold JSON, dates, paths, UUIDs, tuples and numpy
                numbers, and need have no keys in common.
            ids: An id or None for each; a UUID made of text and metadata where there is none, see ``add_documents``.
            path: Directory of the index, where what is added is kept, and which ``load_local`` opens; None for a
                temporary one (see ``save_local``). The calibration is kept there too, the ``Embeddings`` is not.
            **settings: Fields of the class.

        Returns:
            The retriever.

        Raises:
            TypeError: If metadata hold something else; the error names the key.
            ValueError: If lengths differ, a text is no string, an id is given twice, a setting is unknown or out of
                its range, or the index at ``path`` was made by another encoder.
            Exception: What the ``Embeddings`` raises.
        """
        documents = _as_documents(texts, metadatas, ids)
        return cls.from_documents(documents, encoder, path=path, **settings)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        encoder: KeyTokenEncoder | Embeddings | Any,
        *,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """Indexes documents, which are not changed. Arguments and errors are those of :meth:`from_texts`."""
        named = checked_documents(documents)
        made = cls._new(encoder, path, settings)
        made.add_documents(named)
        return made

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        encoder: KeyTokenEncoder | Embeddings | Any,
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """:meth:`from_texts`, asynchronously."""
        documents = _as_documents(texts, metadatas, ids)
        return await cls.afrom_documents(documents, encoder, path=path, **settings)

    @classmethod
    async def afrom_documents(
        cls,
        documents: Iterable[Document],
        encoder: KeyTokenEncoder | Embeddings | Any,
        *,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """:meth:`from_documents`, asynchronously."""
        named = checked_documents(documents)
        made = await asyncio.to_thread(cls._new, encoder, path, settings)
        await made.aadd_documents(named)
        return made

    @classmethod
    def _new(cls, encoder: Any, path: str | PathLike[str] | None, settings: Mapping[str, Any]) -> Self:
        made = cls(retriever=cls._new_retriever(encoder, path, settings), **settings)
        if path is not None:
            made.save_local(path)
        return made

    @classmethod
    def _new_retriever(cls, encoder: Any, path: str | PathLike[str] | None, settings: Mapping[str, Any]) -> Retriever:
        return Retriever(encoder, path, has_dense=False)

    @classmethod
    def load_local(
        cls, folder_path: str | PathLike[str], encoder: KeyTokenEncoder | Embeddings | Any = None, **settings: Any
    ) -> Self:
        """Opens what :meth:`save_local` wrote or ``path=`` made; what is added goes into that folder.

        Args:
            folder_path: The folder.
            encoder: The one that made the index, or the ``Embeddings`` that it was made with, which no folder holds:
                calibration and settings are those that were kept. None for an encoder that was saved with its model.
            **settings: Fields of the class, over those that were saved.

        Returns:
            The retriever.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was made by another encoder, or an ``Embeddings`` of another name or dimension, or saved
                by another class, a file is damaged, the encoder is not there and not given, or a setting that could
                not be saved is not given.
        """
        saved = restored(Retriever.read_settings(folder_path))
        kind, unsaved = saved.pop("class", None), saved.pop("unsaved", [])
        if kind != cls.__name__:
            raise ValueError(f"folder_path must hold a saved {cls.__name__}, got {kind}. Load it with that class.")
        for name in unsaved:
            if name not in settings:
                raise ValueError(
                    f"{name} must be given to load this retriever, got none. It held what cannot be written as JSON, "
                    "such as a function or a store's own object."
                )
        if encoder is None:
            encoder = saved_encoder(folder_path)
        return cls(retriever=Retriever(encoder, folder_path), **{**saved, **settings})

    def save_local(self, folder_path: str | PathLike[str], *, with_encoder: bool = False) -> None:
        """Writes index and settings into a folder, which is made where it is missing.

        Args:
            folder_path: The folder. An index that is there is replaced as a whole.
            with_encoder: Whether the encoder with its model is written too, so that the folder is all that
                :meth:`load_local` needs; of an ``Embeddings`` there is only what is written anyway.

        Raises:
            OSError: If it cannot be written.
            ValueError: If the folder holds other files, but no index.
        """
        self.retriever.persist(folder_path, self._saved_settings())
        if with_encoder:
            self.retriever.encoder.save_pretrained(Path(folder_path, ENCODER_FOLDER))

    def _saved_settings(self) -> dict[str, Any]:
        """All fields that are settings, as JSON; the names of those that are not JSON under ``unsaved``."""
        kept, unsaved = {}, []
        for name in type(self).model_fields:
            if name in self._parts:
                continue
            try:
                json.dumps(as_json({name: getattr(self, name)}))
            except (TypeError, ValueError):
                unsaved.append(name)
            else:
                kept[name] = getattr(self, name)
        return as_json({"class": type(self).__name__, **kept, **({"unsaved": unsaved} if unsaved else {})})

    @property
    def _parts(self) -> tuple[str, ...]:
        return ("retriever",)

    def close(self) -> None:
        """Closes the index; a temporary one is removed."""
        self.retriever.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        on_conflict: OnConflict = "replace",
    ) -> list[str]:
        """:meth:`add_documents` for texts with metadata and ids."""
        return self.add_documents(_as_documents(texts, metadatas, ids), on_conflict=on_conflict)

    def add_documents(self, documents: Iterable[Document], *, on_conflict: OnConflict = "replace") -> list[str]:
        """Adds documents, all or none. The next search finds them. They are not changed.

        Args:
            documents: The documents. One without an id gets a UUID made of its text and metadata, so that it replaces
                itself when it is added again; equal ones of one call stay several.
            on_conflict: What to do about an id that is there already: ``"replace"`` the document, or ``"error"``. One
                that is there as it is given is not embedded again.

        Returns:
            Their ids.

        Raises:
            TypeError: If metadata hold what cannot be kept; the error names the key.
            ValueError: If an id is given twice, or is there and not to be replaced.
        """
        named = with_ids(checked_documents(documents))
        ids = self._check_addable(named, on_conflict)
        changed = [document for document in named if not self._is_indexed(document)]
        if changed:
            self._index(changed, on_conflict=on_conflict)
        return ids

    def _check_addable(self, documents: Sequence[Document], on_conflict: OnConflict) -> list[str]:
        return self.retriever.check_addable(
            [document.page_content for document in documents],
            ids=[document.id for document in documents],
            metadata=[document.metadata for document in documents],
            on_conflict=on_conflict,
        )

    def _is_indexed(self, document: Document) -> bool:
        """Whether the index holds the document, with this text and these metadata."""
        try:
            (held,) = self.retriever.get([str(document.id)])
        except KeyError:
            return False
        return held.text == document.page_content and json_value(held.metadata) == json_value(document.metadata)

    def _index(
        self, documents: Sequence[Document], embeddings: Any = None, *, on_conflict: OnConflict = "replace"
    ) -> list[str]:
        return self.retriever.add(
            [document.page_content for document in documents],
            ids=[document.id for document in documents],
            metadata=[document.metadata for document in documents],
            embeddings=embeddings,
            on_conflict=on_conflict,
        )

    def get_by_ids(self, ids: Sequence[str]) -> list[Document]:
        """Documents of the index by id, in the order of the ids; those that are not there are left out."""
        return [
            Document(id=found.id, page_content=found.text or "", metadata=dict(found.metadata))
            for found in self.retriever.get(self.retriever.known_ids(list(dict.fromkeys(ids))))
        ]

    async def aadd_documents(self, documents: Iterable[Document], *, on_conflict: OnConflict = "replace") -> list[str]:
        """:meth:`add_documents` in a thread."""
        return await asyncio.to_thread(self.add_documents, documents, on_conflict=on_conflict)

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes documents by id; ids that are not there are passed over.

        Returns:
            How many were there.
        """
        return self.retriever.delete(ids)

    async def adelete(self, ids: Sequence[str]) -> int:
        """:meth:`delete` in a thread."""
        return await asyncio.to_thread(self.delete, ids)

    def search_with_scores(self, query: str, **own: Any) -> list[tuple[Document, float]]:
        """Documents with their scores, best first. Takes what a call of the retriever may say, such as ``k``."""
        hits = self._hits(query, **own)
        return list(zip(self._documents(hits), [hit.score for hit in hits], strict=True))

    async def asearch_with_scores(self, query: str, **own: Any) -> list[tuple[Document, float]]:
        """:meth:`search_with_scores`, asynchronously."""
        hits = await self._ahits(query, **own)
        return list(zip(self._documents(hits), [hit.score for hit in hits], strict=True))

    def search_by_vector(
        self, vector: Sequence[float], *, k: int | None = None, filter: DocumentFilter | None = None
    ) -> list[Document]:
        """The documents of the index that are nearest to a dense vector.

        Raises:
            ValueError: If the index has no dense vectors, or they have another dimension.
        """
        settings = replace(self._search_settings(k=k, filter=filter), mode="dense", has_matches=False)
        none = SparseEmbeddings.empty(1, self.retriever.encoder.vocabulary.vocab_size)
        vectors = HybridEmbeddings(np.asarray([vector], np.float32), none)
        return self._documents(self.retriever.search("by a vector", settings, vectors=vectors))

    def search_with_cosines(self, query: str, **own: Any) -> list[tuple[Document, float]]:
        """Documents, best first, with the dense side's score, 0 where it is below that or only the sparse found one.

        Raises:
            ValueError: If there is no dense side.
        """
        if not (self.retriever.has_dense or self._has_outside):
            raise ValueError(
                "relevance scores must come from dense vectors, got a sparse retriever. "
                "Use a KeyTokensHybridRetriever."
            )
        hits = self._hits(query, **own)
        cosines = [min(max(hit.scores.get("dense", 0.0), 0.0), 1.0) for hit in hits]
        return list(zip(self._documents(hits), cosines, strict=True))

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """The host's, with the queries embedded in one batch."""
        with _in_batch(self._batch(inputs, return_exceptions, kwargs)):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """The host's, with the queries embedded in one batch."""
        with _in_batch(await asyncio.to_thread(self._batch, inputs, return_exceptions, kwargs)):
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _batch(self, inputs: Sequence[object], return_exceptions: bool, own: Mapping[str, Any]) -> Batch | None:
        """The vectors of the queries; None where each embeds its own, or has its own error."""
        queries = list(dict.fromkeys(text for text in inputs if isinstance(text, str) and text.strip()))
        if len(queries) < 2:
            return None
        try:
            settings = self._search_settings(**{name: own[name] for name in ("k", "filter") if name in own})
            vectors = self.retriever.embed(queries, settings, has_outside=self._has_outside)
        except Exception:
            if return_exceptions:
                return None
            raise
        return None if vectors is None else (self.retriever, {text: vectors[i] for i, text in enumerate(queries)})

    @property
    def _has_outside(self) -> bool:
        return False

    def _batched(self, query: str) -> HybridEmbeddings | None:
        batch = _BATCH.get()
        return None if batch is None or batch[0] is not self.retriever else batch[1].get(query)

    def _say_unknown_keys(self, *, filter: DocumentFilter | None = None, **own: Any) -> None:
        """Says once of each key that a filter asks for that no document has it."""
        for key in self.retriever.newly_missing(filter_keys(self.filter if filter is None else filter)):
            logger.warning("filter asks for the key %r, which none of %d documents has.", key, len(self.retriever))

    def _hits(self, query: object, **own: Unpack[QueryArguments]) -> list[RetrievedHit]:
        text = checked_query(query)
        self._say_unknown_keys(**own)
        return self.retriever.search(text, self._search_settings(**own), vectors=self._batched(text))

    async def _ahits(self, query: object, **own: Unpack[QueryArguments]) -> list[RetrievedHit]:
        text = checked_query(query)
        await asyncio.to_thread(self._say_unknown_keys, **own)
        return await self.retriever.asearch(text, self._search_settings(**own), vectors=self._batched(text))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        **own: Any,
    ) -> list[Document]:
        return self._documents(self._hits(query, **own))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        **own: Any,
    ) -> list[Document]:
        return self._documents(await self._ahits(query, **own))

    @property
    def _scores_key(self) -> str | None:
        return None

    def _documents(self, hits: Sequence[RetrievedHit]) -> list[Document]:
        """New documents of hits; a key of their metadata that has the name of one of ours is replaced."""
        documents = []
        for hit in hits:
            metadata = dict(hit.metadata)
            if self.score_key is not None:
                metadata[self.score_key] = hit.score
            if self._scores_key is not None:
                metadata[self._scores_key] = dict(hit.scores)
            if self.matches_key is not None:
                metadata[self.matches_key] = [
                    {"token": match.token, "contribution": match.contribution} for match in hit.matches or ()
                ]
            documents.append(Document(id=hit.id, page_content=hit.text or "", metadata=metadata))
        return documents

    def _search_settings(self, *, k: int | None = None, filter: DocumentFilter | None = None) -> SearchSettings:
        return SearchSettings(
            mode="sparse",
            top_k=self.k if k is None else checked_int("k", k, minimum=1),
            filter=index_filter(self.filter if filter is None else filter),
            has_matches=self.matches_key is not None,
            group_by=self.group_by,
            needs_known_word=self.needs_known_word,
        )


@contextmanager
def _in_batch(batch: Batch | None) -> Iterator[None]:
    """Makes a batch known to the searches of this context, also to those in threads that the host starts."""
    token = _BATCH.set(batch)
    try:
        yield
    finally:
        _BATCH.reset(token)


def checked_documents(documents: Iterable[Document]) -> list[Document]:
    """Documents, from any iterable."""
    if isinstance(documents, (str, bytes, Mapping, Document)) or not isinstance(documents, Iterable):
        raise TypeError(f"documents must be an iterable of Documents, got {type(documents).__name__}.")
    found = list(documents)
    for document in found:
        if not isinstance(document, Document):
            raise TypeError(
                f"documents must be Documents, got {type(document).__name__} {document!r:.60}. "
                "Texts go into from_texts or add_texts."
            )
    return found


def with_ids(documents: Iterable[Document]) -> list[Document]:
    """Copies of documents; one without an id gets one that is made of what it says, and equal ones are counted."""
    named, seen = [], Counter[str]()
    for document in documents:
        id = document.id
        if id is None:
            says = json.dumps([document.page_content, json_value(document.metadata)], sort_keys=True)
            seen[says] += 1
            id = str(uuid5(_NAMES, f"{seen[says]} {says}"))
        named.append(Document(id=id, page_content=document.page_content, metadata=dict(document.metadata)))
    return named


def checked_query(query: object) -> str:
    """A query, which a chain may give as something else than a string."""
    if not isinstance(query, str):
        raise TypeError(
            f"query must be a string, got {type(query).__name__} {query!r:.60}. "
            "In a chain, put itemgetter or a function before the retriever."
        )
    return query


def _as_documents(
    texts: Iterable[str],
    metadatas: Iterable[Mapping[str, Any] | None] | None,
    ids: Iterable[str | None] | None,
) -> list[Document]:
    """Documents of texts, each with its own metadata."""
    found = _listed("texts", texts)
    given = [{}] * len(found) if metadatas is None else _listed("metadatas", metadatas)
    names = [None] * len(found) if ids is None else _listed("ids", ids)
    for entry in given:
        if entry is not None and not isinstance(entry, Mapping):
            raise TypeError(f"metadatas must be dictionaries, got {type(entry).__name__} {entry!r:.60}.")
    for name, values in (("metadatas", given), ("ids", names)):
        if len(values) != len(found):
            raise ValueError(f"{name} must be as many as texts, {len(found)}, got {len(values)}.")
    return [
        Document(id=id, page_content=text, metadata=dict(metadata or {}))
        for text, metadata, id in zip(found, given, names, strict=True)
    ]


def _listed(name: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list with one entry a text, got {type(values).__name__} {values!r:.60}.")
    return list(values)
