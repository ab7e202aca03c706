"""What OpenSearch and Elasticsearch have in common: bulk requests, their partial failures, searches by the batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from st_keytokens.engines.collection_settings import CollectionSettings
from st_keytokens.engines.engine import Engine
from st_keytokens.engines.filter_tree import Condition
from st_keytokens.engines.fused_search import Side
from st_keytokens.engines.records import Records
from st_keytokens.engines.search_server_documents import (
    STORED_FIELDS,
    as_hit,
    dense_score,
    dense_vectors,
    document_source,
)
from st_keytokens.engines.search_server_filters import FILTER_MAPPING, FILTER_TEMPLATES, filter_query
from st_keytokens.engines.search_server_ids import document_id
from st_keytokens.index.documents import Hit
from st_keytokens.sparse_embeddings import HybridEmbeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SearchServerEngine"]

Operations = list[tuple[str, list[dict[str, Any]]]]

_TEMPORARY = (429, 502, 503, 504)
_MAX_HITS = 10_000


class _TemporaryError(Exception):
    """Parts of a request were refused for the moment."""


class SearchServerEngine(Engine):
    """An index of a search server. Terms are fields named by their numbers, as tokens may have dots or be blank.

    What was written is found by searches after :meth:`flush`, or when the server refreshes the index on its own. An
    answer has at most 10,000 hits, which is the servers' default.

    Attributes:
        server: Its name, for errors.
        max_dimension: Largest dimension of a dense vector.
    """

    server: ClassVar[str]
    max_dimension: ClassVar[int]
    _client: Any  # what both clients name alike is called here
    _opened: Any  # the client, where it was opened here, else None
    _package: Any  # the client's package

    @abstractmethod
    def _status(self, error: Exception) -> int | None:
        """The HTTP status behind an error of the client, 0 for connections that fail, None for anything else."""

    @abstractmethod
    def _bulk(self, lines: list[dict[str, Any]]) -> Mapping[str, Any]:
        """Send actions and documents, and give the answer."""

    @abstractmethod
    def _msearch(self, lines: list[dict[str, Any]]) -> Mapping[str, Any]:
        """Send searches, each after an empty header, and give the answer."""

    @abstractmethod
    def _make_index(self, settings: dict[str, Any], mappings: dict[str, Any]) -> None:
        """Make the index. Somebody else may have made it just before."""

    @abstractmethod
    def _sparse_mapping(self) -> dict[str, Any]:
        """The mapping of the field ``sparse``."""

    @abstractmethod
    def _dense_mapping(self, dimension: int) -> dict[str, Any]:
        """The mapping of the field ``dense``, by inner product."""

    @abstractmethod
    def _document_weights(self, id: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is written for the weights of a document."""

    @abstractmethod
    def _sparse_query(
        self, terms: list[str], weights: NDArray[np.float32], limit: int, filter: dict[str, Any] | None
    ) -> tuple[dict[str, Any], float]:
        """The query of a sparse search, and what its scores are multiplied with to become inner products."""

    @abstractmethod
    def _dense_query(self, vector: list[float], limit: int, filter: dict[str, Any] | None) -> dict[str, Any]:
        """The body of a dense search."""

    def flush(self) -> None:
        """Make what was written visible to searches."""
        self._try(lambda: self._client.indices.refresh(index=self.collection))

    def close(self) -> None:
        """Close the client, where a URL was given."""
        if self._opened is not None:
            self._opened.close()

    def smallest_wait(self, error: Exception) -> float | None:
        """Connections that fail, too many requests, and a server that is not ready are temporary."""
        return 0.0 if isinstance(error, _TemporaryError) or self._status(error) in (0, *_TEMPORARY) else None

    def _check_settings(self, settings: CollectionSettings) -> None:
        if settings.embedding_dimension > self.max_dimension:
            raise ValueError(
                f"embedding_dimension must be at most {self.max_dimension} for {self.server}, "
                f"got {settings.embedding_dimension}. Make the embeddings shorter."
            )

    def _read_settings(self) -> CollectionSettings | None:
        try:
            (index,) = self._client.indices.get_mapping(index=self.collection).values()
        except self._package.NotFoundError:
            return None
        mappings = index["mappings"]
        settings = CollectionSettings.from_dict(mappings.get("_meta", {}).get("keytokens"), self._where)
        self._check_field(mappings.get("properties", {}).get("sparse", {}))
        return settings

    def _check_field(self, mapping: Mapping[str, Any]) -> None:
        """Refuse an index whose field ``sparse`` is of another kind, where there are several."""

    def _create(self, settings: CollectionSettings) -> None:
        unsearched = {"index": False, "doc_values": False}
        properties: dict[str, Any] = {
            "id": {"type": "keyword", **unsearched},
            "text": {"type": "text", "index": False},
            "metadata": {"type": "object", "enabled": False},
            "sparse": self._sparse_mapping(),
            **FILTER_MAPPING,
        }
        if settings.embedding_dimension:
            properties["dense"] = self._dense_mapping(settings.embedding_dimension)
        mappings = {
            "dynamic": "strict",
            "_meta": {"keytokens": settings.to_dict()},
            "dynamic_templates": FILTER_TEMPLATES,
            "properties": properties,
        }
        self._make_index(self._index_settings(settings), mappings)

    def _index_settings(self, settings: CollectionSettings) -> dict[str, Any]:
        """Settings of the index."""
        return {}

    def _upsert(self, records: Records) -> None:
        dense = records.hybrid.dense
        vectors = None if dense is None else dense_vectors(dense, self.settings.similarity)
        operations: Operations = []
        for row, (indices, values) in enumerate(records.hybrid.sparse):
            id = records.ids[row]
            weights = self._document_weights(id, values).tolist()
            source = document_source(
                records, row, dict(zip(map(str, indices.tolist()), weights, strict=True)), vectors
            )
            operations.append((id, [{"index": {"_id": document_id(id)}}, source]))
        self._write(operations)

    def _delete(self, ids: list[str]) -> None:
        self._write([(id, [{"delete": {"_id": document_id(id)}}]) for id in ids])

    def _write(self, operations: Operations) -> None:
        """Send operations; those that the server refuses for the moment again, and only those.

        A request that is too large is halved.
        """
        pending = operations

        def send() -> None:
            nonlocal pending
            answer = self._bulk([line for _, lines in pending for line in lines])
            refused = list(_refused(pending, answer))
            if refused:
                pending = [operation for operation, _ in refused]
                raise _TemporaryError(f"{len(pending)} of the documents: {refused[0][1]}")

        try:
            self._try(send)
        except Exception as err:
            if self._status(err) != 413:
                raise
            if len(pending) == 1:
                raise ValueError(
                    f"documents must fit into a request of {self.server}, got {pending[0][0]!r:.60}, which is too "
                    "large. Split its text."
                ) from err
            middle = len(pending) // 2
            self._write(pending[:middle])
            self._write(pending[middle:])

    def _count(self) -> int:
        self._client.indices.refresh(index=self.collection)  # or what a killed load wrote might not be counted
        return int(self._client.count(index=self.collection)["count"])

    def _search_side(
        self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None
    ) -> list[list[Hit]]:
        if limit > _MAX_HITS:
            raise ValueError(f"top_k and depth must be at most {_MAX_HITS} in {self.server}, got {limit}.")
        filter = None if condition is None else filter_query(condition)
        bodies, factors = [], []
        if side == "sparse":
            for indices, values in queries.sparse:
                query, factor = self._sparse_query(list(map(str, indices.tolist())), values, limit, filter)
                bodies.append({"query": query})
                factors.append(factor)
        else:
            vectors = dense_vectors(np.asarray(queries.dense), self.settings.similarity)
            bodies = [self._dense_query(vector, limit, filter) for vector in vectors.tolist()]
        results = []
        for number, found in enumerate(self._answers(bodies, limit)):
            scores = [hit["_score"] * factors[number] if factors else dense_score(hit["_score"]) for hit in found]
            ranked = enumerate(zip(found, scores, strict=True), 1)
            results.append([as_hit(hit, rank, side, score) for rank, (hit, score) in ranked])
        return results

    def _answers(self, bodies: Sequence[dict[str, Any]], limit: int) -> Iterator[list[dict[str, Any]]]:
        """The hits of each search."""
        common = {"size": limit, "_source": STORED_FIELDS, "track_total_hits": False}
        answer = self._msearch([line for body in bodies for line in ({}, {**common, **body})])
        for response in answer["responses"]:
            if "error" in response:
                reason = f"status {response['status']}: {_reason(response['error'])}"
                if response["status"] in _TEMPORARY:
                    raise _TemporaryError(reason)
                raise ValueError(f"queries must be what {self.server} can answer, got {reason}")
            failed = response["_shards"]["failed"]
            if failed or response["timed_out"]:
                raise _TemporaryError(f"an answer without {failed} shards, timed out: {response['timed_out']}")
            yield response["hits"]["hits"]


def _refused(operations: Operations, answer: Mapping[str, Any]) -> Iterator[tuple[tuple[str, list[Any]], str]]:
    """Operations that were refused for the moment, with the reason.

    Raises:
        ValueError: If one was refused for good. The others were done all the same.
    """
    if not answer["errors"]:
        return
    lasting = []
    for operation, item in zip(operations, answer["items"], strict=True):
        (result,) = item.values()
        if result["status"] in _TEMPORARY:
            yield operation, _reason(result["error"])
        elif "error" in result:
            lasting.append((operation[0], _reason(result["error"])))
    if lasting:
        id, reason = lasting[0]
        raise ValueError(
            f"documents must be what the collection takes, got {len(lasting)} refused, first {id!r:.60}: {reason}"
        )


def _reason(error: Any) -> str:
    """An error with what caused it."""
    if not isinstance(error, Mapping):
        return str(error)
    causes = [error, *error.get("root_cause", [])[:1], error.get("caused_by") or {}]
    return " / ".join(dict.fromkeys(str(cause["reason"]) for cause in causes if cause.get("reason")))
