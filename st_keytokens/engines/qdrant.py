"""Qdrant through its own client: a server by URL, or the client's in-process mode."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from st_keytokens.engines.engine import CollectionSettings, Engine
from st_keytokens.engines.records import Records, check_whole_numbers
from st_keytokens.engines.retrying import Retry, is_temporary_grpc
from st_keytokens.imports import imported
from st_keytokens.index.documents import Hit
from st_keytokens.index.filters import AllOf, AnyOf, Comparison, Condition, Exists, HasId, IsIn, Not
from st_keytokens.index.search import SearchPlan, Side
from st_keytokens.index.store import Encoder
from st_keytokens.sparse_embeddings import HybridEmbeddings

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

__all__ = ["RRF_K", "QdrantEngine", "payload_of", "point_id", "qdrant_filter"]


_NAMESPACE = uuid.UUID("6f1c5b0e-3f5d-5a0e-9b1a-0d2f7a6c4e11")  # never change it: ids depend on it


def point_id(id: str) -> str:
    """The UUID (version 5) that stands for a document's id.

    >>> point_id("arXiv:2406.17378")
    '55a22039-368f-5a94-b3f2-40d813251f09'
    """
    return str(uuid.uuid5(_NAMESPACE, id))


_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXACT = 2**53  # whole numbers below it are exact in double precision, in which Qdrant compares
RRF_K = 61  # Qdrant counts ranks from 0: 1 / (61 + 0) is our 1 / (60 + 1)


def payload_of(records: Records, row: int) -> dict[str, Any]:
    """The payload of a record.

    Raises:
        ValueError: If the metadata have a whole number that does not fit into 64 bits.
    """
    metadata = records.metadata_of(row)
    check_whole_numbers(metadata, records.ids[row])
    payload = {"id": records.ids[row], "text": records.text(row), "metadata": metadata}
    empty = [key for key, value in metadata.items() if value == []]
    return {**payload, "empty_lists": empty} if empty else payload


def qdrant_filter(condition: Condition) -> dict[str, Any]:
    """A filter with the same meaning as in our index, where a list matches none of its elements.

    Raises:
        ValueError: If strings are to be compared with ``$lt`` and the like, which Qdrant does not do.

    >>> qdrant_filter(Comparison("year", "$gte", 2000))["must"][0]
    {'key': 'metadata.year', 'range': {'gte': 2000}}
    """
    if isinstance(condition, AllOf):
        return {"must": [qdrant_filter(part) for part in condition.parts]}
    if isinstance(condition, AnyOf):
        return {"should": [qdrant_filter(part) for part in condition.parts]}
    if isinstance(condition, Not):
        return {"must_not": [qdrant_filter(condition.part)]}
    if isinstance(condition, HasId):
        return {"must": [{"has_id": [point_id(id) for id in condition.ids]}]}
    path = f"metadata.{condition.key}" if _PLAIN_KEY.fullmatch(condition.key) else f'metadata."{condition.key}"'
    if isinstance(condition, Exists):
        is_empty_list = {"key": "empty_lists", "match": {"value": condition.key}}
        return {"should": [{"must_not": [{"is_empty": {"key": path}}]}, {"is_null": {"key": path}}, is_empty_list]}
    is_no_list = {"is_empty": {"key": f"{path}[]"}}
    if isinstance(condition, Comparison):
        if isinstance(condition.bound, str):
            raise ValueError(
                f"filter {condition.operator} must have a number in Qdrant, got {condition.bound!r:.60}. "
                "Keep such values as numbers, dates as timestamps for example."
            )
        return {"must": [{"key": path, "range": {condition.operator[1:]: condition.bound}}, is_no_list]}
    found = [{"must": [{"should": _equals(condition, path)}, is_no_list]}] if _equals(condition, path) else []
    if None in condition.values:
        found.append({"must": [{"is_null": {"key": path}}], "must_not": [{"is_null": {"key": f"{path}[]"}}]})
    return {"should": found} if found else {"must": [{"has_id": []}]}


def _equals(condition: IsIn, path: str) -> list[dict[str, Any]]:
    """A condition for every kind of value that is no null."""
    strings = [value for value in condition.values if isinstance(value, str)]
    found: list[dict[str, Any]] = [{"key": path, "match": {"any": strings}}] if strings else []
    for value in condition.values:
        if isinstance(value, bool):
            found.append({"key": path, "match": {"value": value}})
        elif isinstance(value, (int, float)):
            number = int(value) if isinstance(value, float) and value.is_integer() else value
            is_large = isinstance(number, int) and _EXACT <= abs(number) < 2**63
            equal = {"match": {"value": number}} if is_large else {"range": {"gte": value, "lte": value}}
            found.append({"key": path, **equal})
    return found


_TEMPORARY_STATUS = (408, 429, 500, 502, 503, 504)


class QdrantEngine(Engine):
    """A collection of Qdrant: a sparse vector and, where wanted, a dense one in each point, both named by their side.

    Sparse searches are exact. Dense ones are as well with ``exact``, and without it once Qdrant has built its graph
    only approximate. Filters mean what they mean in our index, but numbers compare in double precision, and strings
    cannot be compared with ``$lt`` and the like. The server must be version 1.16 or newer.

    Args:
        collection: Name of the collection.
        client: A ``qdrant_client.QdrantClient``, which stays open.
        exact: Whether dense rows are searched exactly.
        options: More arguments of the client's ``create_collection``, such as ``shard_number``.
        encoder: See :class:`Engine`.
        retry: See :class:`Engine`.

    Raises:
        ImportError: If qdrant-client is not installed.
    """

    server_fusions: ClassVar[tuple[str, ...]] = ("rrf", "dbsf")

    def __init__(
        self,
        collection: str,
        client: QdrantClient,
        *,
        exact: bool = False,
        options: Mapping[str, Any] | None = None,
        encoder: Encoder | None = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(collection, encoder=encoder, retry=retry)
        self._qdrant = imported("qdrant_client", '"st-keytokens[qdrant]"')
        self.client = client
        self.exact = exact
        self.options = dict(options or {})

    def smallest_wait(self, error: Exception) -> float | None:
        """Temporary: no connection, a time-out, a status of 429 or 5xx, and what gRPC calls by such names."""
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        if isinstance(error, ResourceExhaustedResponse):
            return float(error.retry_after_s)
        if isinstance(error, UnexpectedResponse):
            return 0.0 if error.status_code in _TEMPORARY_STATUS else None
        if isinstance(error, ResponseHandlingException):
            import httpx

            return 0.0 if isinstance(error.source, httpx.TransportError) else None
        return 0.0 if is_temporary_grpc(error) else None

    def _read_settings(self) -> CollectionSettings | None:
        if not self.client.collection_exists(self.collection):
            return None
        metadata = self.client.get_collection(self.collection).config.metadata or {}
        return CollectionSettings.from_dict(metadata.get("keytokens"), self._where)

    def _create(self, settings: CollectionSettings) -> None:
        from qdrant_client.http.exceptions import UnexpectedResponse

        models = self._qdrant.models
        distance = models.Distance.COSINE if settings.similarity == "cosine" else models.Distance.DOT
        dimension = settings.embedding_dimension
        try:
            self.client.create_collection(
                self.collection,
                vectors_config={"dense": models.VectorParams(size=dimension, distance=distance)} if dimension else {},
                sparse_vectors_config={"sparse": models.SparseVectorParams()},
                metadata={"keytokens": settings.to_dict()},
                **self.options,
            )
        except UnexpectedResponse as err:
            if err.status_code != 409:  # somebody else has just made it
                raise

    def _upsert(self, records: Records) -> None:
        self.client.upsert(
            self.collection, points=[self._point(records, row) for row in range(len(records))], wait=True
        )

    def _delete(self, ids: list[str]) -> None:
        selector = self._qdrant.models.PointIdsList(points=[point_id(id) for id in ids])
        self.client.delete(self.collection, points_selector=selector, wait=True)

    def _search_side(
        self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None
    ) -> list[list[Hit]]:
        models, filter = self._qdrant.models, self._filter(condition)
        requests = [
            models.QueryRequest(
                query=models.NearestQuery(nearest=self._vector(queries, row, side)),
                using=side,
                filter=filter,
                params=self._params(side),
                limit=limit,
                with_payload=True,
            )
            for row in range(len(queries))
        ]
        found = self.client.query_batch_points(self.collection, requests=requests)
        return [_hits(response.points, side) for response in found]

    def _search_fused(self, queries: HybridEmbeddings, search: SearchPlan) -> list[list[Hit]]:
        if search.fusion == "dbsf":
            search.refuse_weights()
        models, filter = self._qdrant.models, self._filter(search.condition)
        requests = []
        for row in range(len(queries)):
            sides: list[Side] = ["dense", "sparse"] if queries.sparse.active_dims[row] else ["dense"]
            prefetch = [
                models.Prefetch(
                    query=models.NearestQuery(nearest=self._vector(queries, row, side)),
                    using=side,
                    filter=filter,
                    params=self._params(side),
                    limit=search.depth,
                )
                for side in sides
            ]
            if search.fusion == "rrf":
                query = models.RrfQuery(rrf=models.Rrf(k=RRF_K))
            else:
                query = models.FusionQuery(fusion=models.Fusion.DBSF)
            requests.append(models.QueryRequest(prefetch=prefetch, query=query, limit=search.top_k, with_payload=True))
        found = self.client.query_batch_points(self.collection, requests=requests)
        return [_hits(response.points, None) for response in found]

    def _count(self) -> int:
        return int(self.client.count(self.collection, exact=True).count)

    def _point(self, records: Records, row: int) -> models.PointStruct:
        """A point; one without terms has no sparse vector."""
        embeddings = records.hybrid
        vector: dict[str, Any] = {}
        if embeddings.dense is not None:
            vector["dense"] = self._vector(embeddings, row, "dense")
        if embeddings.sparse.active_dims[row]:
            vector["sparse"] = self._vector(embeddings, row, "sparse")
        return self._qdrant.models.PointStruct(
            id=point_id(records.ids[row]), vector=vector, payload=payload_of(records, row)
        )

    def _vector(self, embeddings: HybridEmbeddings, row: int, side: Side) -> Any:
        if side == "sparse":
            indices, values = embeddings.sparse.row(row)
            return self._qdrant.models.SparseVector(indices=indices.tolist(), values=values.tolist())
        return np.asarray(embeddings.dense)[row].astype(np.float32).tolist()

    def _params(self, side: Side) -> models.SearchParams | None:
        return self._qdrant.models.SearchParams(exact=True) if self.exact and side == "dense" else None

    def _filter(self, condition: Condition | None) -> models.Filter | None:
        return None if condition is None else self._qdrant.models.Filter(**qdrant_filter(condition))


def _hits(points: list[models.ScoredPoint], side: Side | None) -> list[Hit]:
    hits = []
    for rank, point in enumerate(points, 1):
        payload = point.payload or {}
        scores = {} if side is None else {str(side): point.score}
        hits.append(Hit(payload["id"], point.score, rank, payload["text"], payload["metadata"], scores))
    return hits
