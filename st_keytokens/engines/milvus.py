"""Milvus through pymilvus: a server by URL, or milvus-lite in this process on a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from st_keytokens.engines.engine import CollectionSettings, Engine
from st_keytokens.engines.qdrant import point_id
from st_keytokens.engines.records import Records, check_whole_numbers
from st_keytokens.engines.retrying import Retry, is_temporary_grpc
from st_keytokens.index.documents import Hit
from st_keytokens.index.filters import (
    AllOf,
    AnyOf,
    Compares,
    Condition,
    Exists,
    HasId,
    IsIn,
    Not,
    Scalar,
    refused_condition,
)
from st_keytokens.index.search import SIDES, SearchPlan, Side
from st_keytokens.index.store import Encoder
from st_keytokens.shared.imports import imported
from st_keytokens.sparse_embeddings import HybridEmbeddings

if TYPE_CHECKING:
    from pymilvus import MilvusClient

__all__ = ["MilvusEngine"]


_FACET_LENGTH = 24  # hexadecimal digits, 96 bits
_OPERATORS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_NOTHING = "key in []"


def _facets_of(metadata: Mapping[str, Any]) -> list[str]:
    """Facets of metadata: of every key, and of the type and the value where that is a scalar."""
    facets = []
    for key, value in metadata.items():
        facets.append(_facet("key", key))
        if value is None or isinstance(value, (str, int, float)):
            facets += [_facet(_kind(value), key), _value_facet(key, value)]
    return facets


def _milvus_filter(condition: Condition) -> str:
    """A filter as an expression."""
    if isinstance(condition, AllOf):
        return _joined(" and ", [_milvus_filter(part) for part in condition.parts]) if condition.parts else "true"
    if isinstance(condition, AnyOf):
        return _joined(" or ", [_milvus_filter(part) for part in condition.parts])
    if isinstance(condition, Not):
        return f"(not {_milvus_filter(condition.part)})"
    if isinstance(condition, HasId):
        return f"(key in {json.dumps([point_id(id) for id in condition.ids])})"
    if isinstance(condition, Exists):
        return _has([_facet("key", condition.key)])
    if isinstance(condition, IsIn):
        return _has([_value_facet(condition.key, value) for value in condition.values])
    if isinstance(condition, Compares):
        return _comparison(condition)
    raise refused_condition(condition)


def _comparison(condition: Compares) -> str:
    bound = condition.bound
    if isinstance(bound, str) and any(character < " " or character == "\x7f" for character in bound):
        raise ValueError(f"filter {condition.operator} must have no control characters in Milvus, got {bound!r:.60}.")
    field = f"metadata[{json.dumps(condition.key, ensure_ascii=False)}]"
    compared = f"{field} {_OPERATORS[condition.operator]} {json.dumps(bound, ensure_ascii=False)}"
    return _joined(" and ", [_has([_facet(_kind(bound), condition.key)]), compared])


def _joined(operator: str, parts: list[str]) -> str:
    return f"({operator.join(parts)})"


def _has(facets: list[str]) -> str:
    if not facets:
        return f"({_NOTHING})"
    if len(facets) == 1:
        return f'array_contains(facets, "{facets[0]}")'
    return f"array_contains_any(facets, {json.dumps(facets)})"


def _kind(value: Scalar) -> str:
    if value is None or isinstance(value, bool):
        return "constant"
    return "string" if isinstance(value, str) else "number"


def _value_facet(key: str, value: Scalar) -> str:
    """Of equal numbers one facet, whether whole or not; true is not 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _facet("value", key, value)


def _facet(*parts: Scalar) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_FACET_LENGTH]


_MAX_BYTES = 65_535  # of a VARCHAR, and of a JSON value
_MAX_FACETS = 4_096
_PROPERTY = "keytokens"
_FUSION_K = 60
_METRICS = {"cosine": "COSINE", "dot": "IP"}


class MilvusEngine(Engine):
    """A collection of Milvus: ``id``, ``text``, ``metadata`` (JSON), ``sparse`` and, where wanted, ``dense``.

    The primary key is the UUIDv5 of the id, and ``facets`` is what filters look at; see
    :mod:`st_keytokens.engines.milvus`. As Milvus refuses sparse vectors without terms, a document that has
    none gets a term beyond the vocabulary, which no query has. Searches are exact unless ``dense_index`` is another.
    An id, a text or one document's metadata have at most 65,535 bytes in Milvus; what is longer is refused.

    Args:
        collection: Name of the collection: letters, digits and underscores.
        client: A ``pymilvus.MilvusClient``, which stays open.
        dense_index: Kind of the dense index that ``create`` makes: ``"FLAT"`` is exact and reads every row; of large
            collections ``"HNSW"`` or ``"AUTOINDEX"``, the server's choice, find most of the best in less time.
        encoder: See :class:`Engine`.
        retry: See :class:`Engine`.

    Raises:
        ImportError: If pymilvus is not installed.
    """

    server_fusions: ClassVar[tuple[str, ...]] = ("rrf", "weighted")

    def __init__(
        self,
        collection: str,
        client: MilvusClient,
        *,
        dense_index: str = "FLAT",
        encoder: Encoder | None = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(collection, encoder=encoder, retry=retry)
        self._milvus = imported("pymilvus", '"st-keytokens[milvus]"')
        self.client = client
        self.dense_index = dense_index

    def flush(self) -> None:
        """Seal what was written, so that it is indexed."""
        _ = self.settings
        self._try(lambda: self.client.flush(self.collection))

    def smallest_wait(self, error: Exception) -> float | None:
        """Temporary: no connection, and what Milvus calls retriable, such as a rate limit."""
        exceptions = self._milvus.exceptions
        if not isinstance(error, exceptions.MilvusException):
            return 0.0 if is_temporary_grpc(error) else None
        is_limit = error.code == exceptions.ErrorCode.RATE_LIMIT or is_temporary_grpc(error)
        is_away = isinstance(error, (exceptions.MilvusUnavailableException, exceptions.ConnectError))
        is_retriable = getattr(error, "retriable", False)  # pymilvus 2 does not know
        return 0.0 if is_limit or is_away or is_retriable else None

    def _read_settings(self) -> CollectionSettings | None:
        if not self.client.has_collection(self.collection):
            return None
        described = self.client.describe_collection(self.collection)
        settings = CollectionSettings.from_json(described["properties"].get(_PROPERTY), self._where)
        self.client.load_collection(self.collection)  # into memory, where it is not, as after milvus-lite's restart
        return settings

    def _create(self, settings: CollectionSettings) -> None:
        types = self._milvus.DataType
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", types.VARCHAR, is_primary=True, max_length=36)
        schema.add_field("id", types.VARCHAR, max_length=_MAX_BYTES)
        schema.add_field("text", types.VARCHAR, max_length=_MAX_BYTES, nullable=True)
        schema.add_field("metadata", types.JSON)
        schema.add_field(
            "facets",
            types.ARRAY,
            element_type=types.VARCHAR,
            max_capacity=_MAX_FACETS,
            max_length=_FACET_LENGTH,
        )
        schema.add_field("sparse", types.SPARSE_FLOAT_VECTOR)
        indexes = self.client.prepare_index_params()
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        if settings.embedding_dimension:
            schema.add_field("dense", types.FLOAT_VECTOR, dim=settings.embedding_dimension)
            metric = _METRICS[settings.similarity]
            indexes.add_index("dense", index_type=self.dense_index, metric_type=metric)
        self.client.create_collection(
            self.collection,
            schema=schema,
            index_params=indexes,
            consistency_level="Strong",
            properties={_PROPERTY: settings.to_json()},
        )

    def _upsert(self, records: Records) -> None:
        self.client.upsert(self.collection, [self._row(records, row) for row in range(len(records))])

    def _delete(self, ids: list[str]) -> None:
        self.client.delete(self.collection, filter=_milvus_filter(HasId(tuple(ids))))

    def _search_side(
        self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None
    ) -> list[list[Hit]]:
        found = self.client.search(
            self.collection,
            data=self._vectors(queries, side),
            anns_field=side,
            limit=limit,
            filter="" if condition is None else _milvus_filter(condition),
            search_params={"metric_type": self._metric(side)},
            output_fields=["id", "text", "metadata"],
        )
        return [_hits(hits, side) for hits in found]

    def _search_fused(self, queries: HybridEmbeddings, plan: SearchPlan) -> list[list[Hit]]:
        if plan.fusion == "weighted":
            given = plan.weights or {}
            ranker = self._milvus.WeightedRanker(*(float(given.get(side, 1.0)) for side in SIDES), norm_score=True)
        else:
            ranker = self._milvus.RRFRanker(_FUSION_K)
        requests = [
            self._milvus.AnnSearchRequest(
                data=self._vectors(queries, side),
                anns_field=side,
                param={"metric_type": self._metric(side)},
                limit=plan.depth,
                expr=None if plan.condition is None else _milvus_filter(plan.condition),
            )
            for side in SIDES
        ]
        fields = ["id", "text", "metadata"]
        found = self.client.hybrid_search(self.collection, requests, ranker, limit=plan.top_k, output_fields=fields)
        return [_hits(hits, None) for hits in found]

    def _count(self) -> int:
        (row,) = self.client.query(self.collection, filter="", output_fields=["count(*)"])
        return int(row["count(*)"])

    def _row(self, records: Records, row: int) -> dict[str, Any]:
        id, text, metadata = records.ids[row], records.text(row), records.metadata_of(row)
        facets = _facets_of(metadata)
        packed = json.dumps(metadata, ensure_ascii=False)
        for name, value in (("ids", id), ("texts", text or ""), ("metadata", packed)):
            if len(value.encode()) > _MAX_BYTES:
                raise ValueError(
                    f"{name} must have at most {_MAX_BYTES} bytes in Milvus, got {len(value.encode())} in document "
                    f"{id!r:.60}. Split the document, or keep that part elsewhere."
                )
        if len(facets) > _MAX_FACETS:
            raise ValueError(
                f"metadata must have at most {_MAX_FACETS // 3} keys in Milvus, got {len(metadata)} in {id!r:.60}."
            )
        check_whole_numbers(metadata, id)
        made = {"key": point_id(id), "id": id, "text": text, "metadata": metadata, "facets": facets}
        sides: tuple[Side, ...] = ("sparse",) if records.hybrid.dense is None else ("sparse", "dense")
        for side in sides:
            (made[side],) = self._vectors(records.hybrid[row], side)
        return made

    def _vectors(self, embeddings: HybridEmbeddings, side: Side) -> list[Any]:
        if side == "dense":
            return list(np.asarray(embeddings.dense, dtype=np.float32).tolist())
        beyond = {embeddings.sparse.vocab_size: 1.0}
        return [row or beyond for row in embeddings.sparse.to_dicts()]

    def _metric(self, side: Side) -> str:
        return "IP" if side == "sparse" else _METRICS[self.settings.similarity]


def _hits(found: Any, side: Side | None) -> list[Hit]:
    hits = []
    for rank, hit in enumerate(found, 1):
        entity, score = hit["entity"], float(hit["distance"])
        scores = {} if side is None else {str(side): score}
        hits.append(Hit(entity["id"], score, rank, entity["text"], entity["metadata"], scores))
    return hits
