"""Key tokens of LLM-based embedders: sparse vectors over the vocabulary from an unmodified SentenceTransformer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "Calibration",
    "HybridEmbeddings",
    "HybridIndex",
    "KeyTokenEncoder",
    "KeyTokenHead",
    "LMHead",
    "SparseEmbeddings",
    "Vocabulary",
    "Weighting",
    "__version__",
    "adaptive_fusion",
    "reciprocal_rank_fusion",
    "score_fusion",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from st_keytokens.calibration import Calibration
    from st_keytokens.encoder import KeyTokenEncoder
    from st_keytokens.fusion import adaptive_fusion, reciprocal_rank_fusion, score_fusion
    from st_keytokens.index import HybridIndex
    from st_keytokens.key_token_head import KeyTokenHead
    from st_keytokens.lm_head import LMHead
    from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
    from st_keytokens.vocabulary import Vocabulary
    from st_keytokens.weighting import Weighting
else:  # on first use: torch, transformers and sentence-transformers take seconds to import
    _MODULES = {
        "Calibration": "calibration",
        "HybridEmbeddings": "sparse_embeddings",
        "HybridIndex": "index",
        "KeyTokenEncoder": "encoder",
        "KeyTokenHead": "key_token_head",
        "LMHead": "lm_head",
        "SparseEmbeddings": "sparse_embeddings",
        "Vocabulary": "vocabulary",
        "Weighting": "weighting",
        "adaptive_fusion": "fusion",
        "reciprocal_rank_fusion": "fusion",
        "score_fusion": "fusion",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
