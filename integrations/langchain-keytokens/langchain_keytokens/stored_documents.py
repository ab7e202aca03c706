"""What a vector store holds: LangChain's interface cannot list it, so each kind of store is read in its own way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

__all__ = ["StoredDocuments", "id_key_of", "present_ids"]

_PAGE = 1000


@dataclass(frozen=True)
class StoredDocuments:
    """The documents of a vector store, with the ids that the store knows them by.

    Attributes:
        documents: The documents.
        vectors: The dense vector of each, None where the store does not give it.
    """

    documents: list[Document] = field(default_factory=list)
    vectors: list[Sequence[float] | None] = field(default_factory=list)

    @classmethod
    def read(cls, store: VectorStore, ids: Sequence[str] | None = None) -> StoredDocuments | None:
        """What a store holds, all or by id; None for a kind of store that cannot be listed."""
        kind = _kind(store)
        return None if kind is None or _is_asynchronous(store) else cls._of(kind.read(store, ids))

    @classmethod
    async def aread(cls, store: VectorStore, ids: Sequence[str] | None = None) -> StoredDocuments | None:
        """:meth:`read` in a thread, or by an asynchronous store's own means."""
        if _is_asynchronous(store):
            return cls._of(await _aread_pgvector(store, ids))
        return await asyncio.to_thread(cls.read, store, ids)

    @staticmethod
    def count(store: VectorStore) -> int | None:
        """How many documents a store holds; None where it cannot be asked."""
        kind = _kind(store)
        return None if kind is None or _is_asynchronous(store) else kind.count(store)

    @classmethod
    async def acount(cls, store: VectorStore) -> int | None:
        """:meth:`count` in a thread, or by an asynchronous store's own means."""
        if _is_asynchronous(store):
            return await _acount_pgvector(store)
        return await asyncio.to_thread(cls.count, store)

    @classmethod
    def _of(cls, rows: Sequence[Row]) -> StoredDocuments:
        made = cls()
        for id, text, metadata, vector in rows:
            made.documents.append(Document(id=str(id), page_content=text or "", metadata=dict(metadata or {})))
            made.vectors.append(vector)
        return made


Row = tuple[Any, str | None, dict[str, Any] | None, Sequence[float] | None]
Ids = Sequence[str] | None  # None for all


@dataclass(frozen=True)
class _Kind:
    count: Callable[[Any], int]
    read: Callable[[Any, Ids], list[Row]]
    id_key: Callable[[Any], str | None] = lambda store: None


def id_key_of(store: VectorStore) -> str | None:
    """Key of the metadata that a store gives its ids under, where it sets no ``Document.id``."""
    kind = _kind(store)
    return None if kind is None else kind.id_key(store)


def present_ids(store: VectorStore, ids: Sequence[str]) -> list[str]:
    """Those of some ids that a store can be asked to delete: all, unless it refuses those that it does not have."""
    if not _is_a(store, "langchain_community", "FAISS"):
        return list(ids)
    held = set(store.index_to_docstore_id.values())  # type: ignore[attr-defined]
    return [id for id in ids if id in held]


def _is_a(store: VectorStore, package: str, name: str) -> bool:
    return any(base.__name__ == name and base.__module__.split(".")[0] == package for base in type(store).__mro__)


def _kind(store: VectorStore) -> _Kind | None:
    return next((kind for (package, name), kind in _KINDS.items() if _is_a(store, package, name)), None)


def _is_asynchronous(store: VectorStore) -> bool:
    return _is_a(store, "langchain_postgres", "PGVector") and bool(getattr(store, "async_mode", False))


def _read_in_memory(store: Any, ids: Ids = None) -> list[Row]:
    held = list(store.store.values()) if ids is None else [store.store[id] for id in ids if id in store.store]
    return [(row["id"], row["text"], row["metadata"], row["vector"]) for row in held]


def _read_faiss(store: Any, ids: Ids = None) -> list[Row]:
    rows: list[Row] = []
    wanted = None if ids is None else set(ids)
    for number, id in sorted(store.index_to_docstore_id.items()):
        if wanted is not None and id not in wanted:
            continue
        document = store.docstore.search(id)
        rows.append((id, document.page_content, document.metadata, store.index.reconstruct(number)))
    return rows


def _read_chroma(store: Any, ids: Ids = None) -> list[Row]:
    rows: list[Row] = []
    include = ["documents", "metadatas", "embeddings"]
    pages = [None] if ids is None else [list(ids[start : start + _PAGE]) for start in range(0, len(ids), _PAGE)]
    for names in pages:
        while True:
            only = {"limit": _PAGE, "offset": len(rows)} if names is None else {"ids": names}
            page = store.get(include=include, **only)
            vectors = [None] * len(page["ids"]) if page["embeddings"] is None else list(page["embeddings"])
            rows += zip(page["ids"], page["documents"], page["metadatas"], vectors, strict=True)
            if names is not None or len(page["ids"]) < _PAGE:
                break
    return rows


def _read_qdrant(store: Any, ids: Ids = None) -> list[Row]:
    rows: list[Row] = []
    offset: Any = None
    while True:
        if ids is None:
            points, offset = store.client.scroll(
                store.collection_name, limit=_PAGE, offset=offset, with_payload=True, with_vectors=True
            )
        else:
            start = offset or 0
            points = store.client.retrieve(
                store.collection_name, list(ids[start : start + _PAGE]), with_payload=True, with_vectors=True
            )
            offset = start + _PAGE if start + _PAGE < len(ids) else None
        for point in points:
            payload, vector = point.payload or {}, point.vector
            if isinstance(vector, dict):
                vector = vector.get(store.vector_name)
            text, metadata = payload.get(store.content_payload_key), payload.get(store.metadata_payload_key)
            rows.append((point.id, text, metadata, vector))
        if offset is None:
            return rows


def _count_qdrant(store: Any) -> int:
    return int(store.client.count(store.collection_name, exact=True).count)


def _count_milvus(store: Any) -> int:
    if not store.client.has_collection(store.collection_name):
        return 0
    (row,) = store.client.query(store.collection_name, filter="", output_fields=["count(*)"])
    return int(row["count(*)"])


def _read_milvus(store: Any, ids: Ids = None) -> list[Row]:
    if not store.client.has_collection(store.collection_name):
        return []
    id_key, text_key, vector_keys = store._primary_field, store._text_field, store._vector_field
    vector_keys = [vector_keys] if isinstance(vector_keys, str) else list(vector_keys)
    dense, rows = vector_keys[0], list[Row]()
    for page in _milvus_pages(store, ids):
        for entity in page:
            vector = entity.get(dense)
            metadata = {k: v for k, v in entity.items() if k not in (id_key, text_key, *vector_keys)}
            if store._metadata_field is not None:
                metadata = metadata.get(store._metadata_field) or {}
            is_dense = isinstance(vector, Sequence)
            rows.append((entity[id_key], entity.get(text_key), metadata, vector if is_dense else None))
    return rows


def _milvus_pages(store: Any, ids: Ids) -> Iterator[Any]:
    if ids is not None:
        for start in range(0, len(ids), _PAGE):
            yield store.client.query(store.collection_name, ids=list(ids[start : start + _PAGE]), output_fields=["*"])
        return
    pages = store.client.query_iterator(store.collection_name, batch_size=_PAGE, output_fields=["*"])
    while page := pages.next():
        yield page
    pages.close()


def _pgvector_statement(store: Any, collection: Any, ids: Ids) -> Any:
    from sqlalchemy import select

    table = store.EmbeddingStore
    statement = select(table).where(table.collection_id == collection.uuid)
    return statement if ids is None else statement.where(table.id.in_(list(ids)))


def _pgvector_count_statement(store: Any, collection: Any) -> Any:
    from sqlalchemy import func, select

    return (
        select(func.count())
        .select_from(store.EmbeddingStore)
        .where(store.EmbeddingStore.collection_id == collection.uuid)
    )


def _pgvector_rows(found: Any) -> list[Row]:
    return [(row.id, row.document, row.cmetadata, row.embedding) for row in found.scalars().all()]


def _read_pgvector(store: Any, ids: Ids = None) -> list[Row]:
    with store._make_sync_session() as session:
        return _pgvector_rows(session.execute(_pgvector_statement(store, store.get_collection(session), ids)))


def _count_pgvector(store: Any) -> int:
    with store._make_sync_session() as session:
        return int(session.execute(_pgvector_count_statement(store, store.get_collection(session))).scalar())


async def _aread_pgvector(store: Any, ids: Ids = None) -> list[Row]:
    await store.__apost_init__()
    async with store._make_async_session() as session:
        statement = _pgvector_statement(store, await store.aget_collection(session), ids)
        return _pgvector_rows(await session.execute(statement))


async def _acount_pgvector(store: Any) -> int:
    await store.__apost_init__()
    async with store._make_async_session() as session:
        statement = _pgvector_count_statement(store, await store.aget_collection(session))
        return int((await session.execute(statement)).scalar())


_CHROMA = _Kind(lambda store: int(store._collection.count()), _read_chroma)
_KINDS = {
    ("langchain_core", "InMemoryVectorStore"): _Kind(lambda store: len(store.store), _read_in_memory),
    ("langchain_community", "FAISS"): _Kind(lambda store: len(store.index_to_docstore_id), _read_faiss),
    ("langchain_chroma", "Chroma"): _CHROMA,
    ("langchain_community", "Chroma"): _CHROMA,
    ("langchain_qdrant", "QdrantVectorStore"): _Kind(_count_qdrant, _read_qdrant, lambda store: "_id"),
    ("langchain_milvus", "Milvus"): _Kind(_count_milvus, _read_milvus, lambda store: str(store._primary_field)),
    ("langchain_postgres", "PGVector"): _Kind(_count_pgvector, _read_pgvector),
}
