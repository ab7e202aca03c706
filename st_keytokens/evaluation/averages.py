"""The same methods on several collections: macro averages, and one JSON file and table of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from st_keytokens.atomic_files import write_atomically
from st_keytokens.evaluation.comparison import Comparison, Difference
from st_keytokens.evaluation.measures import MEASURES
from st_keytokens.evaluation.significance import bootstrap_interval, holm, randomization_test
from st_keytokens.evaluation.tables import evaluation_table

__all__ = ["Evaluation", "MacroAverage"]


@dataclass(frozen=True)
class MacroAverage:
    """What one method reached, averaged over collections that count alike, whatever their numbers of queries.

    Attributes:
        means: For each measure the mean of the collections' means.
        differences: For each measure the difference from the baseline; empty for the baseline itself. Queries are
            resampled, and pairs swapped, within their collection.
    """

    means: dict[str, float]
    differences: dict[str, Difference]


class Evaluation:
    """Comparisons of the same methods on several collections.

    Args:
        comparisons: One for each collection, at least one.

    Attributes:
        comparisons: As given.

    Raises:
        ValueError: If there is none, two are of collections of the same name, or methods or baseline differ.
    """

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        self.comparisons = list(comparisons)
        names = [comparison.collection.name for comparison in self.comparisons]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"comparisons must be of one or more collections of different names, got {names}.")
        kinds = {(comparison.baseline, *comparison.methods) for comparison in self.comparisons}
        if len(kinds) > 1:
            raise ValueError(f"comparisons must have the same methods and baseline, got {sorted(kinds)}.")

    @cached_property
    def macro(self) -> dict[str, MacroAverage]:
        """Averages over the collections, by method; p-values are corrected as those of a single collection."""
        first = self.comparisons[0]
        others = [name for name in first.methods if name != first.baseline]
        differences: dict[str, dict[str, Difference]] = {name: {} for name in first.methods}
        for measure in MEASURES:
            for name, found in zip(others, self._differences(others, measure), strict=True):
                differences[name][measure] = found
        return {
            name: MacroAverage(
                {m: float(np.mean([c.methods[name].means[m] for c in self.comparisons])) for m in MEASURES},
                differences[name],
            )
            for name in first.methods
        }

    def _differences(self, names: list[str], measure: str) -> list[Difference]:
        """Differences of methods from the baseline, by one measure."""
        sizes = [len(comparison.collection.query_ids) for comparison in self.comparisons]
        weights = np.concatenate([np.full(size, 1 / size) for size in sizes]) / len(sizes)
        strata = np.repeat(np.arange(len(sizes)), sizes)
        settings = self.comparisons[0].settings
        options = {"samples": int(settings["samples"]), "seed": int(settings["seed"])}

        def values(name: str) -> np.ndarray:
            parts = [comparison.methods[name].per_query[measure] for comparison in self.comparisons]
            return np.concatenate(parts)

        theirs = values(self.comparisons[0].baseline)
        tests = [randomization_test(values(name) * weights, theirs * weights, **options) for name in names]
        found = []
        for name, p, p_holm in zip(names, tests, holm(tests), strict=True):
            low, high = bootstrap_interval(values(name), theirs, strata=strata, **options)
            mean = float(((values(name) - theirs) * weights).sum())
            found.append(Difference(mean, low, high, p, p_holm))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Averages and comparisons, the measures of each query among them, ready for JSON."""
        comparisons = [comparison.to_dict() for comparison in self.comparisons]
        environments = [comparison.pop("environment") for comparison in comparisons]
        return {
            "environment": environments[0],
            "baseline": self.comparisons[0].baseline,
            "macro_average": {
                name: {"means": average.means, "differences": {m: vars(d) for m, d in average.differences.items()}}
                for name, average in self.macro.items()
            },
            "collections": comparisons,
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    def to_markdown(self) -> str:
        """Tables of the averages and of each collection, the worst difference from the baseline first."""
        return evaluation_table(self.to_dict())

    def save(self, output: str | Path, table: str | Path | None = None) -> None:
        """Writes everything as JSON and, where wanted, the tables as Markdown.

        Args:
            output: Of the JSON file.
            table: Of the Markdown file. None: none.
        """
        content: Mapping[str, Any] = self.to_dict()
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
        write_atomically(Path(output), text.encode())
        if table is not None:
            write_atomically(Path(table), evaluation_table(content).encode())
