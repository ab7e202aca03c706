"""Calibration: what is usual for an embedder's vectors and a corpus's terms, fitted in one pass."""

from __future__ import annotations

from st_keytokens.calibration.calibration import Calibration
from st_keytokens.calibration.moments import EmbeddingSample
from st_keytokens.calibration.ridge import RidgeDecoder

__all__ = ["Calibration", "EmbeddingSample", "RidgeDecoder"]
