"""An embedded, exact index of dense and sparse embeddings."""

from __future__ import annotations

from st_keytokens.index.documents import Document, Hit, MatchedTerm
from st_keytokens.index.hybrid_index import HybridIndex

__all__ = ["Document", "Hit", "HybridIndex", "MatchedTerm"]
