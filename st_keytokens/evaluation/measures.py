"""Measures of rankings against judgements, for each query, through ir-measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from st_keytokens.evaluation.collections import Collection
    from st_keytokens.evaluation.runs import Ranking

__all__ = ["MEASURES", "import_ir_measures", "measure_collection", "measure_queries"]

MEASURES: dict[str, str] = {"nDCG@10": "nDCG@10", "R@100": "R@100", "MRR@10": "RR@10", "MAP": "AP"}
"""The measures by the name that tables use, and what ir-measures calls them."""


def measure_queries(
    qrels: Mapping[str, Mapping[str, int]],
    rankings: Mapping[str, Sequence[str]],
    measures: Mapping[str, str] = MEASURES,
) -> dict[str, NDArray[np.float64]]:
    """Each measure for each query. Ranks alone count, so that ties are the ranking's own business.

    Args:
        qrels: Relevance of documents by id, for each query; above 0 is relevant, and nDCG's gain is the relevance.
        rankings: Document ids of each query, best first. A query that is missing here counts as an empty ranking.
        measures: Names, and what ir-measures calls them.

    Returns:
        For each measure one value a query, float64, in the order of ``qrels``; 0 for an empty ranking.

    Raises:
        ImportError: If ir-measures is not installed.
        ValueError: If a ranking is of a query without judgements, or names a document twice.

    >>> values = measure_queries({"q": {"d1": 1, "d2": 1}}, {"q": ["d3", "d1"]})
    >>> {name: round(float(value[0]), 3) for name, value in values.items()}
    {'nDCG@10': 0.387, 'R@100': 0.5, 'MRR@10': 0.5, 'MAP': 0.25}
    """
    ir_measures = import_ir_measures()
    run: dict[str, dict[str, float]] = {}
    for query_id, ranking in rankings.items():
        if query_id not in qrels:
            raise ValueError(f"rankings must be of queries in qrels, got one of {query_id!r}.")
        run[query_id] = {doc_id: float(-rank) for rank, doc_id in enumerate(ranking)}
        if len(run[query_id]) != len(ranking):
            raise ValueError(f"rankings must name a document once, got one twice for query {query_id!r}.")
    position = {query_id: i for i, query_id in enumerate(qrels)}
    parsed = {ir_measures.parse_measure(theirs): ours for ours, theirs in measures.items()}
    values = {name: np.zeros(len(qrels)) for name in measures}
    judged = {query_id: dict(judgements) for query_id, judgements in qrels.items()}
    for metric in ir_measures.iter_calc(list(parsed), judged, run):
        values[parsed[metric.measure]][position[metric.query_id]] = metric.value
    return values


def measure_collection(collection: Collection, rankings: Sequence[Ranking]) -> dict[str, NDArray[np.float64]]:
    """Each measure for each query of a collection.

    Args:
        collection: Whose judgements.
        rankings: Rows of documents for each query, in the order of the collection's queries, or for the first of them.

    Returns:
        For each measure one value a ranking, float64.

    Raises:
        ImportError: If ir-measures is not installed.
    """
    ids = collection.query_ids[: len(rankings)]
    found = {
        query_id: [collection.doc_ids[row] for row in rows] for query_id, (rows, _) in zip(ids, rankings, strict=True)
    }
    return measure_queries({query_id: collection.qrels[query_id] for query_id in ids}, found)


def import_ir_measures() -> Any:
    """The module ir_measures.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import ir_measures
    except ImportError as err:
        raise ImportError('Measuring needs ir-measures: pip install "st-keytokens[evaluation]"') from err
    return ir_measures
