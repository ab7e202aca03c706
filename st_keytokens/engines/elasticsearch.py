"""Elasticsearch: a ``sparse_vector`` field without pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from st_keytokens.engines.retrying import Retry
from st_keytokens.engines.search_server import SearchServerEngine, feature_weights
from st_keytokens.index.store import Encoder
from st_keytokens.shared.imports import imported

if TYPE_CHECKING:
    import numpy as np
    from elasticsearch import Elasticsearch
    from numpy.typing import NDArray

__all__ = ["ElasticsearchEngine"]


class ElasticsearchEngine(SearchServerEngine):
    """An index of Elasticsearch 8.19, 9.1 or newer.

    A weight keeps nine significant bits, so that a sparse score is within 0.2 % of the exact one
    (:data:`st_keytokens.engines.search_server.RELATIVE_ERROR`). Token pruning, which is on by default in new
    indices and leaves out terms of a query, is off. Dense vectors are kept in float32, of unit length for cosine, and
    found through HNSW, which is approximate. Rankings are fused here: the server's own fusion needs an Enterprise
    licence, and the rest of this does not need one.

    Args:
        collection: Name of the index.
        client: A client of the package ``elasticsearch``, or a URL.
        num_candidates: How many candidates a dense search looks at in each shard, at most 10,000; by default
            ``max(1000, 2 * depth)``.
        encoder: See :class:`Engine`.
        retry: See :class:`Engine`.

    Raises:
        ImportError: If the package is not installed.

    Source:
        https://www.elastic.co/docs/reference/elasticsearch/mapping-reference/sparse-vector
    """

    server: ClassVar[str] = "Elasticsearch"
    max_dimension: ClassVar[int] = 4_096

    def __init__(
        self,
        collection: str,
        client: Elasticsearch | str,
        *,
        num_candidates: int | None = None,
        encoder: Encoder | None = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(collection, encoder=encoder, retry=retry)
        self._package = imported("elasticsearch", '"st-keytokens[elasticsearch]"')
        self._opened = self._package.Elasticsearch(client, request_timeout=60) if isinstance(client, str) else None
        chosen: Any = client if self._opened is None else self._opened
        self._client = chosen.options(max_retries=0)  # it would try again at once, without waiting
        self.num_candidates = num_candidates

    def _status(self, error: Exception) -> int | None:
        if isinstance(error, self._package.ConnectionError | self._package.ConnectionTimeout):
            return 0
        return error.status_code if isinstance(error, self._package.ApiError) else None

    def _bulk(self, lines: list[dict[str, Any]]) -> Mapping[str, Any]:
        return dict(self._client.bulk(index=self.collection, operations=lines))

    def _msearch(self, lines: list[dict[str, Any]]) -> Mapping[str, Any]:
        return dict(self._client.msearch(index=self.collection, searches=lines))

    def _make_index(self, settings: dict[str, Any], mappings: dict[str, Any]) -> None:
        try:
            self._client.indices.create(index=self.collection, settings=settings, mappings=mappings)
        except self._package.BadRequestError as err:
            if err.error != "resource_already_exists_exception":
                raise

    def _sparse_mapping(self) -> dict[str, Any]:
        return {"type": "sparse_vector", "index_options": {"prune": False}}

    def _dense_mapping(self, dimension: int) -> dict[str, Any]:
        return {
            "type": "dense_vector",
            "dims": dimension,
            "similarity": "max_inner_product",
            "index_options": {"type": "hnsw"},  # the default quantises
        }

    def _document_weights(self, id: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return feature_weights(weights)

    def _sparse_query(
        self, terms: list[str], weights: NDArray[np.float32], limit: int, filter: dict[str, Any] | None
    ) -> tuple[dict[str, Any], float]:
        vector = dict(zip(terms, weights.tolist(), strict=True))
        query = {"sparse_vector": {"field": "sparse", "query_vector": vector, "prune": False}}
        return {"bool": {"must": [query], "filter": [] if filter is None else [filter]}}, 1.0

    def _dense_query(self, vector: list[float], limit: int, filter: dict[str, Any] | None) -> dict[str, Any]:
        candidates = max(limit, min(10_000, self.num_candidates or max(1_000, 2 * limit)))
        knn = {"field": "dense", "query_vector": vector, "k": limit, "num_candidates": candidates}
        return {"knn": knn if filter is None else {**knn, "filter": filter}}
