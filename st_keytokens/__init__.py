"""Key tokens of LLM-based embedders: sparse vectors over the vocabulary from an unmodified SentenceTransformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_keytokens.shared.imports import lazy_names

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
    from st_keytokens.decoding.lm_head import LMHead
    from st_keytokens.encoder.encoder import KeyTokenEncoder
    from st_keytokens.index import HybridIndex
    from st_keytokens.index.fusion import adaptive_fusion, reciprocal_rank_fusion, score_fusion
    from st_keytokens.key_token_head import KeyTokenHead
    from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
    from st_keytokens.terms.vocabulary import Vocabulary
    from st_keytokens.terms.weighting import Weighting
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Calibration": "calibration",
            "HybridEmbeddings": "sparse_embeddings",
            "HybridIndex": "index",
            "KeyTokenEncoder": "encoder.encoder",
            "KeyTokenHead": "key_token_head",
            "LMHead": "decoding.lm_head",
            "SparseEmbeddings": "sparse_embeddings",
            "Vocabulary": "terms.vocabulary",
            "Weighting": "terms.weighting",
            "adaptive_fusion": "index.fusion",
            "reciprocal_rank_fusion": "index.fusion",
            "score_fusion": "index.fusion",
        },
    )
