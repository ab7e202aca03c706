"""Qdrant's engine in this process, without a server, on a directory (qdrant-edge-py)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from st_keytokens.engines.engine import CollectionSettings, Engine
from st_keytokens.engines.qdrant import RRF_K, payload_of, point_id, qdrant_filter
from st_keytokens.engines.records import Records
from st_keytokens.engines.retrying import Retry
from st_keytokens.files import write_atomically
from st_keytokens.imports import imported
from st_keytokens.index.documents import Hit
from st_keytokens.index.filters import Condition
from st_keytokens.index.search import SearchPlan, Side
from st_keytokens.index.store import Encoder
from st_keytokens.sparse_embeddings import HybridEmbeddings

if TYPE_CHECKING:
    from qdrant_edge import EdgeShard

__all__ = ["QdrantEdgeEngine"]

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
            vector: dict[str, Any] = {}
            if records.hybrid.dense is not None:
                vector["dense"] = self._vector(records.hybrid, row, "dense")
            if records.hybrid.sparse.active_dims[row]:
                vector["sparse"] = self._vector(records.hybrid, row, "sparse")
            points.append(edge.Point(id=uuid.UUID(point_id(id)), vector=vector, payload=payload_of(records, row)))
        self._shard.update(edge.UpdateOperation.upsert_points(points))

    def _delete(self, ids: list[str]) -> None:
        self._shard.update(self._edge.UpdateOperation.delete_points([uuid.UUID(point_id(id)) for id in ids]))

    def _search_side(
        self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None
    ) -> list[list[Hit]]:
        filter = None if condition is None else self._filter(qdrant_filter(condition))
        return [
            self._hits(side, query=self._nearest(queries, row, side), limit=limit, filter=filter)
            for row in range(len(queries))
        ]

    def _search_fused(self, queries: HybridEmbeddings, search: SearchPlan) -> list[list[Hit]]:
        if search.fusion == "dbsf":
            search.refuse_weights()
        filter = None if search.condition is None else self._filter(qdrant_filter(search.condition))
        found = []
        for row in range(len(queries)):
            sides: list[Side] = ["dense", "sparse"] if queries.sparse.active_dims[row] else ["dense"]
            prefetches = [
                self._edge.Prefetch(limit=search.depth, query=self._nearest(queries, row, side), filter=filter)
                for side in sides
            ]
            is_rrf = search.fusion == "rrf"
            query = self._edge.Fusion.Rrf(k=RRF_K) if is_rrf else self._edge.Fusion.Dbsf()
            found.append(self._hits(None, query=query, limit=search.top_k, prefetches=prefetches))
        return found

    def _count(self) -> int:
        return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def _vector(self, embeddings: HybridEmbeddings, row: int, side: Side) -> Any:
        if side == "sparse":
            indices, values = embeddings.sparse.row(row)
            return self._edge.SparseVector(indices=indices.tolist(), values=values.tolist())
        return np.asarray(embeddings.dense)[row].astype(np.float32).tolist()

    def _nearest(self, queries: HybridEmbeddings, row: int, side: Side) -> Any:
        return self._edge.Query.Nearest(query=self._vector(queries, row, side), using=side)

    def _hits(self, side: Side | None, **request: Any) -> list[Hit]:
        points = self._shard.query(self._edge.QueryRequest(with_payload=True, **request))
        hits = []
        for rank, point in enumerate(points, 1):
            scores = {} if side is None else {str(side): point.score}
            payload = point.payload or {}
            hits.append(Hit(payload["id"], point.score, rank, payload["text"], payload["metadata"], scores))
        return hits

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
