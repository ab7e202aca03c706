"""Measuring retrieval: collections, measures, significance, and comparisons of methods from one forward pass."""

from __future__ import annotations

from st_keytokens.evaluation.collections import Collection, Report, read_collection
from st_keytokens.evaluation.comparison import Comparison, evaluate, run_comparison
from st_keytokens.evaluation.evaluators import HybridInformationRetrievalEvaluator
from st_keytokens.evaluation.measures import MEASURES, measure_queries
from st_keytokens.evaluation.methods import COMPARED_METHODS
from st_keytokens.evaluation.significance import bootstrap_interval, holm, randomization_test

__all__ = [
    "COMPARED_METHODS",
    "MEASURES",
    "Collection",
    "Comparison",
    "HybridInformationRetrievalEvaluator",
    "Report",
    "bootstrap_interval",
    "evaluate",
    "holm",
    "measure_queries",
    "randomization_test",
    "read_collection",
    "run_comparison",
]
