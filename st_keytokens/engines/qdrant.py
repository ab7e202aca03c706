"""Qdrant: a server or in-process mode by its own client, or its engine in this process on a directory."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from st_keytokens.engines.engine import CollectionSettings, Engine
from st_keytokens.engines.records import Records, check_whole_numbers
from st_keytokens.engines.retrying import Retry, is_temporary_grpc
from st_keytokens.index.documents import Hit
from st_keytokens.index.filters import AllOf, AnyOf, Compares, Condition, Exists, HasId, IsIn, Not, refused_condition
from st_keytokens.index.search import SIDES, SearchPlan, Side
from st_keytokens.index.store import Encoder
from st_keytokens.shared.files import write_atomically
from st_keytokens.shared.imports import imported
from st_keytokens.sparse_embeddings import HybridEmbeddings

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models
    from qdrant_edge import EdgeShard

__all__ = ["QdrantEdgeEngine", "QdrantEngine", "point_id"]


_NAMESPACE = uuid.UUID("6f1c5b0e-3f5d-5a0e-9b1a-0d2f7a6c4e11")  # never change it: ids depend on it


def point_id(id: str) -> str:
    """The UUID (version 5) that stands for a document's id.

    >>> point_id("arXiv:2406.17378")
    '55a22039-368f-5a94-b3f2-40d813251f09'
    """
    return str(uuid.uuid5(_NAMESPACE, id))


_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXACT = 2**53  # whole numbers below it are exact in double precision, in which Qdrant compares
_RRF_K = 61  # Qdrant counts ranks from 0: 1 / (61 + 0) is our 1 / (60 + 1)


def _payload(records: Records, row: int) -> dict[str, Any]:
    metadata = records.metadata_of(row)
    check_whole_numbers(metadata, records.ids[row])
    payload = {"id": records.ids[row], "text": records.text(row), "metadata": metadata}
    empty = [key for key, value in metadata.items() if value == []]
    return {**payload, "empty_lists": empty} if empty else payload


def _filter_body(condition: Condition) -> dict[str, Any]:
    """A filter of the REST interface, with the same meaning as in our index: a list matches none of its elements."""
    if isinstance(condition, AllOf):
        return {"must": [_filter_body(part) for part in condition.parts]}
    if isinstance(condition, AnyOf):
        return {"should": [_filter_body(part) for part in condition.parts]}
    if isinstance(condition, Not):
        return {"must_not": [_filter_body(condition.part)]}
    if isinstance(condition, HasId):
        return {"must": [{"has_id": [point_id(id) for id in condition.ids]}]}
    path = f"metadata.{condition.key}" if _PLAIN_KEY.fullmatch(condition.key) else f'metadata."{condition.key}"'
    if isinstance(condition, Exists):
        is_empty_list = {"key": "empty_lists", "match": {"value": condition.key}}
        return {"should": [{"must_not": [{"is_empty": {"key": path}}]}, {"is_null": {"key": path}}, is_empty_list]}
    is_no_list = {"is_empty": {"key": f"{path}[]"}}
    if isinstance(condition, Compares):
        if isinstance(condition.bound, str):
            raise ValueError(
                f"filter {condition.operator} must have a number in Qdrant, got {condition.bound!r:.60}. "
                "Keep such values as numbers, dates as timestamps for example."
            )
        return {"must": [{"key": path, "range": {condition.operator[1:]: condition.bound}}, is_no_list]}
    if not isinstance(condition, IsIn):
        raise refused_condition(condition)
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


def _vector(sparse_type: Any, embeddings: HybridEmbeddings, row: int, side: Side) -> Any:
    if side == "sparse":
        indices, values = embeddings.sparse.row(row)
        return sparse_type(indices=indices.tolist(), values=values.tolist())
    return np.asarray(embeddings.dense)[row].astype(np.float32).tolist()


def _vectors(sparse_type: Any, embeddings: HybridEmbeddings, row: int) -> dict[Side, Any]:
    """The vectors of a point or a query by side; one without terms has no sparse vector."""
    has_side = {"dense": embeddings.dense is not None, "sparse": bool(embeddings.sparse.active_dims[row])}
    return {side: _vector(sparse_type, embeddings, row, side) for side in SIDES if has_side[side]}


def _hits(points: Sequence[Any], side: Side | None) -> list[Hit]:
    hits = []
    for rank, point in enumerate(points, 1):
        payload = point.payload or {}
        scores = {} if side is None else {str(side): point.score}
        hits.append(Hit(payload["id"], point.score, rank, payload["text"], payload["metadata"], scores))
    return hits


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
                query=models.NearestQuery(nearest=_vector(models.SparseVector, queries, row, side)),
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

    def _search_fused(self, queries: HybridEmbeddings, plan: SearchPlan) -> list[list[Hit]]:
        if plan.fusion == "dbsf":
            plan.refuse_weights()
        models, filter = self._qdrant.models, self._filter(plan.condition)
        requests = []
        for row in range(len(queries)):
            prefetch = [
                models.Prefetch(
                    query=models.NearestQuery(nearest=vector),
                    using=side,
                    filter=filter,
                    params=self._params(side),
                    limit=plan.depth,
                )
                for side, vector in _vectors(models.SparseVector, queries, row).items()
            ]
            if plan.fusion == "rrf":
                query = models.RrfQuery(rrf=models.Rrf(k=_RRF_K))
            else:
                query = models.FusionQuery(fusion=models.Fusion.DBSF)
            requests.append(models.QueryRequest(prefetch=prefetch, query=query, limit=plan.top_k, with_payload=True))
        found = self.client.query_batch_points(self.collection, requests=requests)
        return [_hits(response.points, None) for response in found]

    def _count(self) -> int:
        return int(self.client.count(self.collection, exact=True).count)

    def _point(self, records: Records, row: int) -> models.PointStruct:
        models = self._qdrant.models
        vectors = _vectors(models.SparseVector, records.hybrid, row)
        return models.PointStruct(id=point_id(records.ids[row]), vector=vectors, payload=_payload(records, row))

    def _params(self, side: Side) -> models.SearchParams | None:
        return self._qdrant.models.SearchParams(exact=True) if self.exact and side == "dense" else None

    def _filter(self, condition: Condition | None) -> models.Filter | None:
        return None if condition is None else self._qdrant.models.Filter(**_filter_body(condition))


_SETTINGS, _SHARD = "keytokens.json", "shard"


class QdrantEdgeEngine(Engine):
    """A shard of Qdrant in a directory, with the points, payloads and filters of :class:`QdrantEngine`.

    What ``upsert`` wrote is in the shard's log and survives the process; :meth:`flush` makes it survive the machine.
    Only one process may have the directory open. Dense rows are searched exactly until :meth:`optimize`.

    Args:
        path: Directory, made where it is missing (its parent is not).
        encoder: See :class:`Engine`.
        retry: See :class:`Engine`.

    Raises:
        FileNotFoundError: If the parent directory is missing.
        ImportError: If qdrant-edge-py is not installed.
    """

    server_fusions: ClassVar[tuple[str, ...]] = ("rrf", "dbsf")

    def __init__(
        self, path: str | PathLike[str], *, encoder: Encoder | None = None, retry: Retry | None = None
    ) -> None:
        super().__init__(str(path), encoder=encoder, retry=retry)
        self._edge = imported("qdrant_edge", '"st-keytokens[qdrant-edge]"')
        self.path = Path(path)
        self.path.mkdir(exist_ok=True)
        self._open: EdgeShard | None = None

    def flush(self) -> None:
        """Write everything to disk."""
        self._shard.flush()

    def optimize(self) -> None:
        """Build indexes and remove what was deleted, until there is nothing left to do."""
        while self._shard.optimize():
            pass

    def close(self) -> None:
        """Close the shard."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def smallest_wait(self, error: Exception) -> float | None:
        """Nothing is temporary in the same process."""
        return None

    @property
    def _shard(self) -> EdgeShard:
        if self._open is None:
            settings, directory, edge = self.settings, self.path / _SHARD, self._edge
            distance = edge.Distance.Cosine if settings.similarity == "cosine" else edge.Distance.Dot
            dense = {"dense": edge.EdgeVectorParams(size=settings.embedding_dimension, distance=distance)}
            if directory.exists() and any(directory.iterdir()):
                self._open = edge.EdgeShard.load(str(directory))
            else:
                config = edge.EdgeConfig(
                    vectors=dense if settings.embedding_dimension else None,
                    sparse_vectors={"sparse": edge.EdgeSparseVectorParams()},
                )
                directory.mkdir(exist_ok=True)
                self._open = edge.EdgeShard.create(str(directory), config)
        return self._open

    def _read_settings(self) -> CollectionSettings | None:
        path = self.path / _SETTINGS
        if not path.exists():
            if any(self.path.iterdir()):
                raise ValueError(f"path must be an empty directory or one that create() made, got {str(self.path)!r}.")
            return None
        return CollectionSettings.from_json(path.read_text(encoding="utf-8"), self._where)

    def _create(self, settings: CollectionSettings) -> None:
        write_atomically(self.path / _SETTINGS, settings.to_json().encode())

    def _upsert(self, records: Records) -> None:
        edge, points = self._edge, []
        for row, id in enumerate(records.ids):
            vectors = _vectors(edge.SparseVector, records.hybrid, row)
            points.append(edge.Point(id=uuid.UUID(point_id(id)), vector=vectors, payload=_payload(records, row)))
        self._shard.update(edge.UpdateOperation.upsert_points(points))

    def _delete(self, ids: list[str]) -> None:
        self._shard.update(self._edge.UpdateOperation.delete_points([uuid.UUID(point_id(id)) for id in ids]))

    def _search_side(
        self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None
    ) -> list[list[Hit]]:
        filter = None if condition is None else self._filter(_filter_body(condition))
        return [
            self._queried(side, query=self._nearest(vector, side), limit=limit, filter=filter)
            for vector in (_vector(self._edge.SparseVector, queries, row, side) for row in range(len(queries)))
        ]

    def _search_fused(self, queries: HybridEmbeddings, plan: SearchPlan) -> list[list[Hit]]:
        if plan.fusion == "dbsf":
            plan.refuse_weights()
        filter = None if plan.condition is None else self._filter(_filter_body(plan.condition))
        found = []
        for row in range(len(queries)):
            prefetches = [
                self._edge.Prefetch(limit=plan.depth, query=self._nearest(vector, side), filter=filter)
                for side, vector in _vectors(self._edge.SparseVector, queries, row).items()
            ]
            is_rrf = plan.fusion == "rrf"
            query = self._edge.Fusion.Rrf(k=_RRF_K) if is_rrf else self._edge.Fusion.Dbsf()
            found.append(self._queried(None, query=query, limit=plan.top_k, prefetches=prefetches))
        return found

    def _count(self) -> int:
        return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def _nearest(self, vector: Any, side: str) -> Any:
        return self._edge.Query.Nearest(query=vector, using=side)

    def _queried(self, side: Side | None, **request: Any) -> list[Hit]:
        return _hits(self._shard.query(self._edge.QueryRequest(with_payload=True, **request)), side)

    def _filter(self, body: Mapping[str, Any]) -> Any:
        """A filter of the REST interface in the types of this package."""
        edge = self._edge
        if body.keys() & {"must", "should", "must_not"}:
            return edge.Filter(**{name: [self._filter(part) for part in parts] for name, parts in body.items()})
        if "has_id" in body:
            return edge.HasIdCondition({uuid.UUID(id) for id in body["has_id"]})
        if "is_null" in body:
            return edge.IsNullCondition(body["is_null"]["key"])
        if "is_empty" in body:
            return edge.IsEmptyCondition(body["is_empty"]["key"])
        if "range" in body:
            return edge.FieldCondition(key=body["key"], range=edge.RangeFloat(**body["range"]))
        value = body["match"].get("value")
        if isinstance(value, bool):
            value = np.bool_(value)  # Python's own would be taken for an integer
        found = edge.MatchAny(body["match"]["any"]) if value is None else edge.MatchValue(value)
        return edge.FieldCondition(key=body["key"], match=found)
