"""KeyTokensRetriever: sparse retrieval by key tokens, with an index of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict
from uuid import uuid4

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field
from st_keytokens import KeyTokenEncoder
from st_keytokens.index import Document as IndexedDocument
from st_keytokens.retrieval import OnConflict, RetrievedHit, Retriever, SearchSettings, checked_int
from typing_extensions import Self, Unpack

__all__ = ["KeyTokensRetriever", "QueryArguments", "checked_query"]

DocumentFilter = Mapping[str, Any] | Callable[[Document], bool] | Collection[str]


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
    score_key: str | None = "score"
    matches_key: str | None = None

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        encoder: KeyTokenEncoder,
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """Indexes texts.

        Args:
            texts: The texts; none makes an empty retriever, or opens the one at ``path``.
            encoder: What embeds them.
            metadatas: A dictionary or None for each. They may hold JSON, dates, paths, UUIDs, tuples and numpy
                numbers, and need have no keys in common.
            ids: An id or None for each; a new UUID where there is none.
            path: Directory of the index, where what is added is kept; None for a temporary one (see ``save_local``).
            **settings: Fields of the class.

        Returns:
            The retriever.

        Raises:
            TypeError: If metadata hold something else; the error names the key.
            ValueError: If lengths differ, a text is no string, an id is given twice, a setting is unknown or out of
                its range, or the index at ``path`` was made by another encoder.
        """
        documents = _as_documents(list(texts), metadatas, ids)
        return cls.from_documents(documents, encoder, path=path, **settings)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        encoder: KeyTokenEncoder,
        *,
        path: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> Self:
        """Indexes documents, which are not changed. Arguments and errors are those of :meth:`from_texts`."""
        made = cls(retriever=cls._new_retriever(encoder, path, settings), **settings)
        made.add_documents(list(documents))
        return made

    @classmethod
    def _new_retriever(
        cls, encoder: KeyTokenEncoder, path: str | PathLike[str] | None, settings: Mapping[str, Any]
    ) -> Retriever:
        return Retriever(encoder, path, has_dense=False)

    @classmethod
    def load_local(cls, folder_path: str | PathLike[str], encoder: KeyTokenEncoder, **settings: Any) -> Self:
        """Opens what :meth:`save_local` wrote; what is added goes into that folder.

        Args:
            folder_path: The folder.
            encoder: The one that made the index.
            **settings: Fields of the class, over those that were saved.

        Returns:
            The retriever.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was made by another encoder or saved by another class, or a file is damaged.
        """
        retriever, saved = Retriever.open(folder_path, encoder)
        kind = saved.pop("class", None)
        if kind != cls.__name__:
            raise ValueError(f"folder_path must hold a saved {cls.__name__}, got {kind}. Load it with that class.")
        return cls(retriever=retriever, **{**saved, **settings})

    def save_local(self, folder_path: str | PathLike[str]) -> None:
        """Writes index and settings into a folder, which is made where it is missing; the encoder is not written.

        Args:
            folder_path: The folder. An index that is there is replaced as a whole.

        Raises:
            OSError: If it cannot be written.
            ValueError: If the folder holds other files, but no index.
        """
        self.retriever.persist(folder_path, {"class": type(self).__name__, **self.model_dump(mode="json")})

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        on_conflict: OnConflict = "replace",
    ) -> list[str]:
        """:meth:`add_documents` for texts with metadata and ids."""
        return self.add_documents(_as_documents(list(texts), metadatas, ids), on_conflict=on_conflict)

    def add_documents(self, documents: Sequence[Document], *, on_conflict: OnConflict = "replace") -> list[str]:
        """Adds documents, all or none. The next search finds them. They are not changed.

        Args:
            documents: The documents; one without an id gets a new UUID.
            on_conflict: What to do about an id that is there already: ``"replace"`` the document, or ``"error"``.

        Returns:
            Their ids.

        Raises:
            TypeError: If metadata hold what cannot be kept; the error names the key.
            ValueError: If an id is given twice, or is there and not to be replaced.
        """
        return self.retriever.add(
            [document.page_content for document in documents],
            ids=[document.id or str(uuid4()) for document in documents],
            metadata=[document.metadata for document in documents],
            on_conflict=on_conflict,
        )

    async def aadd_documents(self, documents: Sequence[Document], *, on_conflict: OnConflict = "replace") -> list[str]:
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

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        **own: Unpack[QueryArguments],
    ) -> list[Document]:
        return self._documents(self.retriever.search(checked_query(query), self._search_settings(**own)))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        **own: Unpack[QueryArguments],
    ) -> list[Document]:
        return self._documents(await self.retriever.asearch(checked_query(query), self._search_settings(**own)))

    def _documents(self, hits: Sequence[RetrievedHit], scores_key: str | None = None) -> list[Document]:
        """New documents of hits; a key of their metadata that has the name of one of ours is replaced."""
        documents = []
        for hit in hits:
            metadata = dict(hit.metadata)
            if self.score_key is not None:
                metadata[self.score_key] = hit.score
            if scores_key is not None:
                metadata[scores_key] = dict(hit.scores)
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
            filter=_index_filter(self.filter if filter is None else filter),
            has_matches=self.matches_key is not None,
        )


def checked_query(query: object) -> str:
    """A query, which a chain may give as something else than a string."""
    if not isinstance(query, str):
        raise TypeError(
            f"query must be a string, got {type(query).__name__} {query!r:.60}. "
            "In a chain, put itemgetter or a function before the retriever."
        )
    return query


def _index_filter(
    filter: DocumentFilter | None,
) -> Mapping[str, Any] | Callable[[IndexedDocument], bool] | Collection[str] | None:
    """A filter over LangChain documents as one over those of the index."""
    if not callable(filter):
        return filter
    return lambda found: filter(Document(id=found.id, page_content=found.text or "", metadata=found.metadata))


def _as_documents(
    texts: list[str],
    metadatas: Iterable[Mapping[str, Any] | None] | None,
    ids: Iterable[str | None] | None,
) -> list[Document]:
    """Documents of texts, each with its own metadata."""
    given = [{} for _ in texts] if metadatas is None else [dict(entry or {}) for entry in metadatas]
    names = [None] * len(texts) if ids is None else list(ids)
    for name, values in (("metadatas", given), ("ids", names)):
        if len(values) != len(texts):
            raise ValueError(f"{name} must be as many as texts, {len(texts)}, got {len(values)}.")
    return [
        Document(id=id, page_content=text, metadata=metadata)
        for text, metadata, id in zip(texts, given, names, strict=True)
    ]
