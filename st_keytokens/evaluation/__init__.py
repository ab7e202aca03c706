"""Measuring retrieval: collections, measures, significance, and comparisons of methods from one forward pass."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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
    from st_keytokens.evaluation.averages import Evaluation
    from st_keytokens.evaluation.collections import Collection, Report, read_collection
    from st_keytokens.evaluation.comparison import Comparison, evaluate, run_comparison
    from st_keytokens.evaluation.evaluators import HybridInformationRetrievalEvaluator
    from st_keytokens.evaluation.measures import MEASURES, measure_queries
    from st_keytokens.evaluation.methods import COMPARED_METHODS
    from st_keytokens.evaluation.significance import bootstrap_interval, holm, randomization_test
else:  # on first use, as in the package above
    _MODULES = {
        "COMPARED_METHODS": "methods",
        "MEASURES": "measures",
        "Collection": "collections",
        "Comparison": "comparison",
        "Evaluation": "averages",
        "HybridInformationRetrievalEvaluator": "evaluators",
        "Report": "collections",
        "bootstrap_interval": "significance",
        "evaluate": "comparison",
        "holm": "significance",
        "measure_queries": "measures",
        "randomization_test": "significance",
        "read_collection": "collections",
        "run_comparison": "comparison",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
