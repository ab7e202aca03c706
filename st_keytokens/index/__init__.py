"""An embedded, exact index of dense and sparse embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_keytokens.shared.imports import lazy_names

__all__ = ["Document", "Hit", "HybridIndex", "MatchedTerm"]

if TYPE_CHECKING:
    from st_keytokens.index.documents import Document, Hit, MatchedTerm
    from st_keytokens.index.hybrid_index import HybridIndex
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {"Document": "documents", "Hit": "documents", "HybridIndex": "hybrid_index", "MatchedTerm": "documents"},
    )
