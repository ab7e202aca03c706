"""Key tokens of LLM-based embedders: sparse vectors over the vocabulary from an unmodified SentenceTransformer."""

from __future__ import annotations

from st_keytokens.calibration import Calibration
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.fusion import reciprocal_rank_fusion, score_fusion
from st_keytokens.index import HybridIndex
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.lm_head import LMHead
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.vocabulary import Vocabulary
from st_keytokens.weighting import Weighting

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
    "reciprocal_rank_fusion",
    "score_fusion",
]

__version__ = "0.1.0"
