"""The same methods on several collections: macro averages, and one JSON file and table of all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.bm25 import Bm25Check, check_bm25, check_bm25_installed
from st_keytokens.evaluation.collections import Collection, read_collection
from st_keytokens.evaluation.encoded import encode_collection
from st_keytokens.evaluation.environment import describe_environment
from st_keytokens.evaluation.measures import MEASURES, import_ir_measures, measure_collection
from st_keytokens.evaluation.methods import COMPARED_METHODS, run_methods
from st_keytokens.evaluation.runs import Run
from st_keytokens.evaluation.significance import bootstrap_interval, holm, randomization_test
from st_keytokens.evaluation.tables import comparison_table, evaluation_table
from st_keytokens.files import write_atomically

__all__ = ["Comparison", "Difference", "Evaluation", "MacroAverage", "MethodResult", "evaluate", "run_comparison"]


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """A method's mean of one measure less the baseline's.

    Attributes:
        mean: The difference.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        p: Two-sided p-value of the paired randomisation test.
        p_holm: The same, corrected for the number of methods that are compared with the baseline by this measure.
    """

    mean: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class MethodResult:
    """What one method reached, and what it cost.

    Attributes:
        run: Rankings and costs.
        per_query: For each measure one value a query, in the order of the collection's queries.
        differences: For each measure the difference from the baseline; empty for the baseline itself.
    """

    run: Run
    per_query: dict[str, NDArray[np.float64]]
    differences: dict[str, Difference]

    @property
    def means(self) -> dict[str, float]:
        """Mean over the queries, for each measure."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}


@dataclass(frozen=True)
class Comparison:
    """Methods on one collection, all from one pass over documents and queries.

    Attributes:
        collection: What they searched.
        baseline: The method that the others are compared with.
        methods: Results by method, in the order they were asked for.
        seconds: Wall time of what they share: ``encode_documents``, ``encode_queries`` and, where a calibration was
            fitted on the collection's documents, ``calibrate``.
        checks: For ``bm25-words`` and ``bm25-tokens``, where they were run on 10,000 documents or fewer, what
            rank-bm25 gives for the first 100 queries.
        settings: Model, calibration, and what random numbers and depths were used.
        environment: Versions, hardware and date.
    """

    collection: Collection
    baseline: str
    methods: dict[str, MethodResult]
    seconds: dict[str, float]
    checks: dict[str, Bm25Check]
    settings: dict[str, Any]
    environment: dict[str, object]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the rankings, with the measures of each query, ready for JSON."""
        return {
            "collection": {"name": self.collection.name, "report": self.collection.report.to_dict()},
            "baseline": self.baseline,
            "settings": self.settings,
            "seconds": self.seconds,
            "query_ids": self.collection.query_ids,
            "methods": {
                name: {
                    "description": COMPARED_METHODS[name].description,
                    "means": result.means,
                    "differences": {measure: vars(found) for measure, found in result.differences.items()},
                    "costs": {key: value for key, value in vars(result.run).items() if key != "rankings"},
                    "per_query": {measure: values.tolist() for measure, values in result.per_query.items()},
                }
                for name, result in self.methods.items()
            },
            "bm25_checks": {name: vars(check) for name, check in self.checks.items()},
            "environment": self.environment,
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    def to_markdown(self) -> str:
        """A table of the methods, the worst difference from the baseline first, with what was odd below."""
        return comparison_table(self.to_dict())

    def save(self, directory: str | Path) -> tuple[Path, Path]:
        """Writes ``<collection>.json`` and ``<collection>.md``.

        Args:
            directory: Made where it does not exist.

        Returns:
            Both paths.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / f"{self.collection.name}.json", folder / f"{self.collection.name}.md"
        for path, text in zip(paths, (self.to_json(), self.to_markdown()), strict=True):
            write_atomically(path, text.encode())
        return paths


def chosen_methods(methods: Sequence[str] | None, baseline: str) -> list[str]:
    """The methods of a comparison, checked before anything is embedded.

    Args:
        methods: Of ``COMPARED_METHODS``. None: all of them.
        baseline: Comes first where it is not among them.

    Returns:
        Their names.

    Raises:
        ValueError: If a method is unknown or named twice.
        ImportError: If ir-measures, or bm25s and rank-bm25 where BM25 is among the methods, are not installed.
    """
    names = list(COMPARED_METHODS if methods is None else methods)
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"methods must be named once, got {repeated[0]!r} twice.")
    if baseline not in names:
        names.insert(0, baseline)
    if unknown := [name for name in names if name not in COMPARED_METHODS]:
        raise ValueError(f"methods must be among {', '.join(COMPARED_METHODS)}, got {unknown[0]!r}.")
    import_ir_measures()
    if any("bm25" in name for name in names):
        check_bm25_installed()
    return names


def run_comparison(
    collection: Collection,
    encoder: KeyTokenEncoder,
    *,
    methods: Sequence[str] | None = None,
    baseline: str = "dense",
    calibrate: bool | None = None,
    depth: int = 1000,
    fusion_depth: int = 1000,
    samples: int = 10_000,
    seed: int = 0,
    batch_size: int = 32,
    cache: str | Path | None = None,
    name: str | None = None,
    show_progress_bar: bool = False,
) -> Comparison:
    """Compares methods on a collection, from a single pass of the encoder over documents and queries.

    Args:
        collection: What is searched.
        encoder: The embedder with its head. Not modified.
        methods: Of ``COMPARED_METHODS``. None: all of them.
        baseline: What the others are compared with; run as well where it is not among the methods.
        calibrate: Whether to fit a calibration on the collection's own documents, without labels and from the same
            pass. None: where the encoder has none with document frequencies.
        depth: How many documents are ranked for a query.
        fusion_depth: How many of each part of a hybrid are fused.
        samples: Of the randomisation test and the bootstrap.
        seed: Of both.
        batch_size: Texts a forward pass.
        cache: Directory that keeps the vectors between runs; see ``encode_collection``.
        name: What tables call the model. None: its ``model_name``, a hash.
        show_progress_bar: Whether to show one.

    Returns:
        The comparison. p-values are corrected within each measure for the number of methods.

    Raises:
        ValueError: If a method is unknown or named twice, or a number is out of its range.
        ImportError: If ir-measures, or bm25s and rank-bm25 where BM25 is among the methods, are not installed.
    """
    names = chosen_methods(methods, baseline)
    for label, finding in collection.report.findings.items():
        logger.warning("%s: %s: %d (%s)", collection.name, label, finding.count, ", ".join(finding.examples))
    encoded = encode_collection(
        collection,
        encoder,
        calibrate=calibrate,
        batch_size=batch_size,
        cache=cache,
        show_progress_bar=show_progress_bar,
    )
    runs = run_methods(encoded, names, depth=depth, fusion_depth=fusion_depth, show_progress_bar=show_progress_bar)
    values = {method: measure_collection(collection, run.rankings) for method, run in runs.items()}
    differences = _differences(values, baseline, samples, seed)
    return Comparison(
        collection=collection,
        baseline=baseline,
        methods={method: MethodResult(runs[method], values[method], differences[method]) for method in names},
        seconds=encoded.seconds,
        checks=check_bm25(collection, encoder, runs, depth),
        settings={
            "model": name or encoder.model_name,
            "embedding_dimension": encoder.get_embedding_dimension(),
            "fingerprint": encoder.fingerprint,
            "calibration": "collection" if "calibrate" in encoded.seconds else "encoder",
            "head": encoder.head.get_config_dict(),
            "weighting": vars(encoder.weighting),
            "depth": depth,
            "fusion_depth": fusion_depth,
            "samples": samples,
            "seed": seed,
            "batch_size": batch_size,
        },
        environment=describe_environment(str(encoder.model.device)),
    )


def evaluate(
    collection: str | Path,
    encoder: KeyTokenEncoder,
    *,
    split: str = "test",
    queries: str | None = None,
    output: str | Path | None = None,
    **arguments: Any,
) -> Comparison:
    """Reads a collection, compares methods on it and, where wanted, writes JSON and Markdown.

    Args:
        collection: Directory in the BEIR layout.
        encoder: The embedder with its head.
        split: Which judgements.
        queries: File of the queries, where it is not ``queries.jsonl``.
        output: Directory for ``<collection>.json`` and ``<collection>.md``. None: nothing is written.
        **arguments: Of :func:`run_comparison`.

    Returns:
        The comparison.
    """
    comparison = run_comparison(read_collection(collection, split=split, queries=queries), encoder, **arguments)
    if output is not None:
        comparison.save(output)
    return comparison


def _differences(
    values: dict[str, dict[str, NDArray[np.float64]]], baseline: str, samples: int, seed: int
) -> dict[str, dict[str, Difference]]:
    differences: dict[str, dict[str, Difference]] = {name: {} for name in values}
    others = [name for name in values if name != baseline]
    for measure in MEASURES:
        theirs = values[baseline][measure]
        tests = [randomization_test(values[name][measure], theirs, samples=samples, seed=seed) for name in others]
        for name, p, p_holm in zip(others, tests, holm(tests), strict=True):
            ours = values[name][measure]
            low, high = bootstrap_interval(ours, theirs, samples=samples, seed=seed)
            differences[name][measure] = Difference(float((ours - theirs).mean()), low, high, p, p_holm)
    return differences


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
