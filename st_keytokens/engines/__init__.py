"""Collections of vector and search engines behind one small interface; each engine's client is imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_keytokens.index.filters import AllOf, AnyOf, Compares, Condition, Exists, HasId, IsIn, Not
from st_keytokens.shared.imports import lazy_names

__all__ = [
    "AllOf",
    "AnyOf",
    "CollectionSettings",
    "Compares",
    "Condition",
    "ElasticsearchEngine",
    "Engine",
    "Exists",
    "HasId",
    "IsIn",
    "LuceneExport",
    "MilvusEngine",
    "Not",
    "OpenSearchEngine",
    "PgVectorEngine",
    "QdrantEdgeEngine",
    "QdrantEngine",
    "Records",
    "Retry",
    "SearchPlan",
    "SeismicField",
    "Side",
    "load",
]

if TYPE_CHECKING:
    from st_keytokens.engines.elasticsearch import ElasticsearchEngine
    from st_keytokens.engines.engine import CollectionSettings, Engine
    from st_keytokens.engines.loading import load
    from st_keytokens.engines.lucene import LuceneExport
    from st_keytokens.engines.milvus import MilvusEngine
    from st_keytokens.engines.opensearch import OpenSearchEngine, SeismicField
    from st_keytokens.engines.pgvector import PgVectorEngine
    from st_keytokens.engines.qdrant import QdrantEdgeEngine, QdrantEngine
    from st_keytokens.engines.records import Records
    from st_keytokens.engines.retrying import Retry
    from st_keytokens.index.search import SearchPlan, Side
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "CollectionSettings": "engine",
            "ElasticsearchEngine": "elasticsearch",
            "Engine": "engine",
            "LuceneExport": "lucene",
            "MilvusEngine": "milvus",
            "OpenSearchEngine": "opensearch",
            "PgVectorEngine": "pgvector",
            "QdrantEdgeEngine": "qdrant",
            "QdrantEngine": "qdrant",
            "Records": "records",
            "Retry": "retrying",
            "SearchPlan": "engine",
            "SeismicField": "opensearch",
            "Side": "engine",
            "load": "loading",
        },
    )
