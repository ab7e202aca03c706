"""Collections of vector and search engines behind one small interface; each engine's client is imported on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "CollectionSettings",
    "ElasticsearchEngine",
    "Engine",
    "LuceneExport",
    "MilvusEngine",
    "OpenSearchEngine",
    "PgVectorEngine",
    "QdrantEdgeEngine",
    "QdrantEngine",
    "Records",
    "Retry",
    "SeismicField",
    "load",
]

if TYPE_CHECKING:
    from st_keytokens.engines.bulk_loading import load
    from st_keytokens.engines.collection_settings import CollectionSettings
    from st_keytokens.engines.elasticsearch import ElasticsearchEngine
    from st_keytokens.engines.engine import Engine
    from st_keytokens.engines.lucene import LuceneExport
    from st_keytokens.engines.milvus import MilvusEngine
    from st_keytokens.engines.opensearch import OpenSearchEngine, SeismicField
    from st_keytokens.engines.pgvector import PgVectorEngine
    from st_keytokens.engines.qdrant import QdrantEngine
    from st_keytokens.engines.qdrant_edge import QdrantEdgeEngine
    from st_keytokens.engines.records import Records
    from st_keytokens.engines.retrying import Retry
else:
    _MODULES = {
        "CollectionSettings": "collection_settings",
        "ElasticsearchEngine": "elasticsearch",
        "Engine": "engine",
        "LuceneExport": "lucene",
        "MilvusEngine": "milvus",
        "OpenSearchEngine": "opensearch",
        "PgVectorEngine": "pgvector",
        "QdrantEdgeEngine": "qdrant_edge",
        "QdrantEngine": "qdrant",
        "Records": "records",
        "Retry": "retrying",
        "SeismicField": "opensearch",
        "load": "bulk_loading",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
