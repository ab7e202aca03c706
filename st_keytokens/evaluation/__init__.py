"""Measuring retrieval: collections, measures, significance, and comparisons of methods from one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_keytokens.imports import lazy_names

__all__ = [
    "COMPARED_METHODS",
    "MEASURES",
    "Collection",
    "Comparison",
    "Evaluation",
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

if TYPE_CHECKING:
    from st_keytokens.evaluation.collections import Collection, Report, read_collection
    from st_keytokens.evaluation.comparison import Comparison, Evaluation, evaluate, run_comparison
    from st_keytokens.evaluation.evaluators import HybridInformationRetrievalEvaluator
    from st_keytokens.evaluation.measures import MEASURES, measure_queries
    from st_keytokens.evaluation.methods import COMPARED_METHODS
    from st_keytokens.evaluation.significance import bootstrap_interval, holm, randomization_test
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "COMPARED_METHODS": "methods",
            "Collection": "collections",
            "Comparison": "comparison",
            "Evaluation": "comparison",
            "HybridInformationRetrievalEvaluator": "evaluators",
            "MEASURES": "measures",
            "Report": "collections",
            "bootstrap_interval": "significance",
            "evaluate": "comparison",
            "holm": "significance",
            "measure_queries": "measures",
            "randomization_test": "significance",
            "read_collection": "collections",
            "run_comparison": "comparison",
        },
    )
