"""What the adapters of frameworks share: texts in, hits out, one forward pass for dense and sparse vectors."""

from __future__ import annotations

from st_keytokens.retrieval.outside_ranking import OutsideHit
from st_keytokens.retrieval.paired_embeddings import PairedEmbeddings
from st_keytokens.retrieval.retriever import Retriever
from st_keytokens.retrieval.searching import Fusion, RetrievedHit, SearchSettings

__all__ = ["Fusion", "OutsideHit", "PairedEmbeddings", "RetrievedHit", "Retriever", "SearchSettings"]
