"""OpenSearch: ``rank_features``, searched exactly, or ``sparse_vector``, searched approximately in large segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from st_keytokens.engines.engine import CollectionSettings
from st_keytokens.engines.retrying import Retry
from st_keytokens.engines.search_server import SearchServerEngine, feature_weights
from st_keytokens.index.store import Encoder
from st_keytokens.shared.checks import checked_float, checked_int
from st_keytokens.shared.imports import imported

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from opensearchpy import OpenSearch

__all__ = ["OpenSearchEngine", "SeismicField"]

_MAX_VOCAB_SIZE = 32_768  # term ids are kept as 15 bits: larger ones would be taken for others
_MAX_BYTE = 255


@dataclass(frozen=True)
class SeismicField:
    """A ``sparse_vector`` field (OpenSearch 3.3 or newer), for approximate search in segments of many documents.

    There, a document's weight is rounded to a multiple of ``max_weight / 255``, and a query's to a multiple of its
    largest weight's 255th part; :meth:`score_error` says what that makes of a score. Weights above ``max_weight`` are
    refused rather than cut. In smaller segments search is exact, and weights keep nine significant bits.

    Attributes:
        max_weight: The largest weight that any document may have.
        approximate_threshold: From so many documents in a segment on, search is approximate.
        parameters: Other parameters of the method, such as ``n_postings`` or ``cluster_ratio``.
        heap_factor: How readily clusters are searched: larger finds more, and takes longer.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of range.

    Source:
        https://docs.opensearch.org/latest/mappings/supported-field-types/sparse-vector
    """

    max_weight: float
    approximate_threshold: int = 1_000_000
    parameters: Mapping[str, Any] = field(default_factory=dict)
    heap_factor: float = 1.0

    def __post_init__(self) -> None:
        checked_float("max_weight", self.max_weight, minimum=np.finfo(np.float32).tiny)
        checked_int("approximate_threshold", self.approximate_threshold, minimum=0)
        checked_float("heap_factor", self.heap_factor, minimum=np.finfo(np.float32).tiny)

    def mapping(self) -> dict[str, Any]:
        """The field's mapping."""
        parameters = {
            **self.parameters,
            "approximate_threshold": self.approximate_threshold,
            "quantization_ceiling_ingest": self.max_weight,
            "quantization_ceiling_search": 1.0,
        }
        return {"type": "sparse_vector", "method": {"name": "seismic", "parameters": parameters}}

    def score_error(self, query: NDArray[np.float32], document: NDArray[np.float32], largest: float) -> float:
        """The most that rounding to bytes can change a score by.

        With an error of at most ``e`` in a document's weight ``w``, and of ``f`` in a query's ``q``, the product
        changes by ``q * e + w * f + e * f`` at most.

        Args:
            query: The query's weights of the terms that both have.
            document: The document's weights of these terms, in the same order.
            largest: The largest of all of the query's weights.

        >>> SeismicField(max_weight=5.1).score_error(np.array([1.0, 2.0]), np.array([1.0, 0.5]), largest=5.1)
        0.0452
        """
        half, query_half = self.max_weight / _MAX_BYTE / 2, largest / _MAX_BYTE / 2
        bound = half * np.sum(query) + query_half * np.sum(document) + len(query) * half * query_half
        return round(float(bound), 12)


class OpenSearchEngine(SearchServerEngine):
    """An index of OpenSearch 2.13 or newer, with its plugins ``neural-search`` and ``k-NN``, which are part of it.

    Without ``seismic``, terms are a ``rank_features`` field: search is exact, and a weight keeps nine significant
    bits, so that a score is within 0.2 % of the exact one
    (:data:`st_keytokens.engines.search_server.RELATIVE_ERROR`). Dense vectors are kept in float32, of unit length
    for cosine, and found through Lucene's HNSW, which is approximate. Rankings are fused here, as the server's own
    fusion normalises in another way and needs a search pipeline.

    Args:
        collection: Name of the index.
        client: A client of the package ``opensearch-py``, or a URL.
        seismic: Search approximately through a ``sparse_vector`` field; decided when the index is made.
        encoder: See :class:`Engine`.
        retry: See :class:`Engine`.

    Raises:
        ImportError: If the package is not installed.

    Source:
        https://docs.opensearch.org/latest/query-dsl/specialized/neural-sparse/index
    """

    server: ClassVar[str] = "OpenSearch"
    max_dimension: ClassVar[int] = 16_000

    def __init__(
        self,
        collection: str,
        client: OpenSearch | str,
        *,
        seismic: SeismicField | None = None,
        encoder: Encoder | None = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(collection, encoder=encoder, retry=retry)
        self._package = imported("opensearchpy", '"st-keytokens[opensearch]"')
        self._opened = self._package.OpenSearch(client, timeout=60, max_retries=0) if isinstance(client, str) else None
        self._client: Any = client if self._opened is None else self._opened
        self.seismic = seismic

    def _check_settings(self, settings: CollectionSettings) -> None:
        super()._check_settings(settings)
        if self.seismic is not None and settings.vocab_size > _MAX_VOCAB_SIZE:
            raise ValueError(
                f"vocab_size must be at most {_MAX_VOCAB_SIZE} for a sparse_vector field, got {settings.vocab_size}: "
                "it takes terms whose numbers differ by a multiple of that for one. Leave out seismic, or use "
                "KeyTokenEncoder(model, terms='tokens')."
            )

    def _status(self, error: Exception) -> int | None:
        if isinstance(error, self._package.ConnectionError):
            return 0
        status = error.status_code if isinstance(error, self._package.TransportError) else None
        return status if isinstance(status, int) else None

    def _bulk(self, lines: list[dict[str, Any]]) -> Mapping[str, Any]:
        return dict(self._client.bulk(index=self.collection, body=lines))

    def _msearch(self, lines: list[dict[str, Any]]) -> Mapping[str, Any]:
        return dict(self._client.msearch(index=self.collection, body=lines))

    def _check_field(self, mapping: Mapping[str, Any]) -> None:
        """Refuse to write into a field of another kind, whose weights would be rounded otherwise or cut."""
        wanted, names = self._sparse_mapping(), ("quantization_ceiling_ingest", "quantization_ceiling_search")
        found = mapping.get("method", {}).get("parameters", {})
        expected = wanted.get("method", {}).get("parameters", {})
        if mapping.get("type") != wanted["type"] or any(
            float(found.get(name, 0)) != float(expected.get(name, 0)) for name in names
        ):
            raise ValueError(f"{self._where} must have the field {wanted}, got {dict(mapping)}. Pass its seismic=.")

    def _make_index(self, settings: dict[str, Any], mappings: dict[str, Any]) -> None:
        try:
            self._client.indices.create(index=self.collection, body={"settings": settings, "mappings": mappings})
        except self._package.RequestError as err:
            if err.error != "resource_already_exists_exception":
                raise

    def _index_settings(self, settings: CollectionSettings) -> dict[str, Any]:
        wanted = {"knn": settings.embedding_dimension > 0, "sparse": self.seismic is not None}
        return {"index": {name: True for name, is_wanted in wanted.items() if is_wanted}}

    def _sparse_mapping(self) -> dict[str, Any]:
        return {"type": "rank_features"} if self.seismic is None else self.seismic.mapping()

    def _dense_mapping(self, dimension: int) -> dict[str, Any]:
        method = {"name": "hnsw", "engine": "lucene", "space_type": "innerproduct"}
        return {"type": "knn_vector", "dimension": dimension, "method": method}

    def _document_weights(self, id: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.seismic is None:
            return feature_weights(weights)
        if weights.max(initial=0) > self.seismic.max_weight:
            raise ValueError(
                f"weights must be at most {self.seismic.max_weight} (max_weight), got {weights.max()} in {id!r:.60}. "
                "Make the collection with a larger one."
            )
        return np.asarray(np.maximum(weights, np.finfo(np.float32).tiny), np.float32)

    def _sparse_query(
        self, terms: list[str], weights: NDArray[np.float32], limit: int, filter: dict[str, Any] | None
    ) -> tuple[dict[str, Any], float]:
        largest = float(weights.max())
        # the largest weight of a query becomes 1, which changes no ranking, uses all bytes, and is below all limits
        scaled = np.maximum(weights.astype(np.float64) / largest, np.finfo(np.float32).tiny).tolist()
        query: dict[str, Any] = {"query_tokens": dict(zip(terms, scaled, strict=True))}
        filters = [] if filter is None else [filter]
        if self.seismic is None:
            return {"bool": {"must": [{"neural_sparse": {"sparse": query}}], "filter": filters}}, largest
        # by default, only the ten largest terms of a query would find candidates, and only ten hits come back
        method = {"top_n": len(terms), "k": limit, "heap_factor": self.seismic.heap_factor}
        query["method_parameters"] = method if filter is None else {**method, "filter": filter}
        return {"neural_sparse": {"sparse": query}}, largest

    def _dense_query(self, vector: list[float], limit: int, filter: dict[str, Any] | None) -> dict[str, Any]:
        knn = {"vector": vector, "k": limit}
        return {"query": {"knn": {"dense": knn if filter is None else {**knn, "filter": filter}}}}
