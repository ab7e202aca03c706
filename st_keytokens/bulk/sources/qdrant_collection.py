"""Collections of Qdrant: a server, or a directory that the client in this process opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from st_keytokens.bulk.sources.embedding_source import EmbeddingBatch, row_matrix
from st_keytokens.optional import imported


class QdrantSource:
    """The points of a collection, scrolled through in the order of their ids.

    Collections with cosine distance hold vectors of length 1, which decode alike where the head normalises.

    Args:
        location: URL of a server, or the directory of a client in local mode.
        collection: Its name.
        vector_name: Of a named vector. None: the one that has no name.
        id_field: Field of the payload that has the ids. None: the points' own.
        text_field: Field of the payload that has the texts. None: no texts are read.
        options: More for ``QdrantClient``, such as ``api_key``, ``timeout``.

    Raises:
        ImportError: If qdrant-client is not installed.
        ValueError: If there is no such collection.
    """

    has_ids = True

    def __init__(
        self,
        location: str,
        collection: str,
        *,
        vector_name: str | None = None,
        id_field: str | None = None,
        text_field: str | None = None,
        **options: Any,
    ) -> None:
        client = imported("qdrant_client", "qdrant-client").QdrantClient
        where = {"path": location} if Path(location).is_dir() else {"url": location}
        self._client: Any = client(**where, **options)
        self.name = f"collection {collection!r}"
        if not self._client.collection_exists(collection):
            names = ", ".join(found.name for found in self._client.get_collections().collections)
            raise ValueError(f"table must be one of the collections {names or '(none)'}, got {collection!r}.")
        self._collection, self._vector, self._id, self._text = collection, vector_name, id_field, text_field
        self.rows: int = self._client.count(collection, exact=True).count
        self.identity: dict[str, Any] = {"kind": "qdrant", "collection": collection, "vector": vector_name}
        self.identity |= {"id": id_field, "text": text_field}

    def batches(self, batch_size: int, position: Any = None) -> Iterator[EmbeddingBatch]:
        """See :class:`~st_keytokens.bulk.sources.embedding_source.EmbeddingSource`; a position is the next point."""
        fields = [field for field in (self._id, self._text) if field is not None]
        offset = None if position is None else position["next"]
        while position is None or offset is not None:
            points, offset = self._client.scroll(
                self._collection,
                limit=batch_size,
                offset=offset,
                with_payload=fields or False,
                with_vectors=True if self._vector is None else [self._vector],
            )
            position = {"next": offset}
            if points:
                vectors = row_matrix([self._vector_of(point) for point in points], self.name)
                ids = [str(point.id if self._id is None else self._field(point, self._id)) for point in points]
                texts = None if self._text is None else [str(self._field(point, self._text)) for point in points]
                yield EmbeddingBatch(ids, vectors, position, texts)

    def _vector_of(self, point: Any) -> Any:
        vector = point.vector if self._vector is None else (point.vector or {}).get(self._vector)
        if isinstance(vector, dict):
            raise ValueError(
                f"vector_column must be one of the vectors {', '.join(vector)} of {self.name}, got none. Name one."
            )
        if vector is None:
            raise ValueError(
                f"{self.name} must have the vector {self._vector!r} in every point, got none in {point.id}."
            )
        return vector

    def _field(self, point: Any, name: str) -> Any:
        if name not in (point.payload or {}):
            raise ValueError(f"{self.name} must have {name!r} in every payload, got none in point {point.id}.")
        return point.payload[name]
