"""What the adapters of frameworks share: texts in, hits out, one forward pass for dense and sparse vectors."""

from __future__ import annotations

from st_keytokens.index.filters import Filter
from st_keytokens.retrieval.any_embedder import (
    ENCODER_FOLDER,
    as_encoder,
    calls_functions,
    is_embedder_of,
    remember_vectors,
    saved_encoder,
)
from st_keytokens.retrieval.host_filters import host_filter, host_filter_keys
from st_keytokens.retrieval.metadata import as_json, json_value, restored
from st_keytokens.retrieval.outside_ranking import OutsideHit
from st_keytokens.retrieval.paired_embeddings import PairedEmbeddings
from st_keytokens.retrieval.retriever import OnConflict, Retriever
from st_keytokens.retrieval.searching import Fusion, RetrievedHit, SearchSettings, checked_sides
from st_keytokens.shared.checks import checked_int

__all__ = [
    "ENCODER_FOLDER",
    "Filter",
    "Fusion",
    "OnConflict",
    "OutsideHit",
    "PairedEmbeddings",
    "RetrievedHit",
    "Retriever",
    "SearchSettings",
    "as_encoder",
    "as_json",
    "calls_functions",
    "checked_int",
    "checked_sides",
    "host_filter",
    "host_filter_keys",
    "is_embedder_of",
    "json_value",
    "remember_vectors",
    "restored",
    "saved_encoder",
]
