"""Measuring retrieval: collections, measures, significance, and comparisons of methods from one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_keytokens.shared.imports import lazy_names

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
    from st_keytokens.evaluation.measures import (
        MEASURES,
        bootstrap_interval,
        holm,
        measure_queries,
        randomization_test,
    )
    from st_keytokens.evaluation.methods import COMPARED_METHODS
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
            "bootstrap_interval": "measures",
            "evaluate": "comparison",
            "holm": "measures",
            "measure_queries": "measures",
            "randomization_test": "measures",
            "read_collection": "collections",
            "run_comparison": "comparison",
        },
    )
