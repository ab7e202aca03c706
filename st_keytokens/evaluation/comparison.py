"""Methods compared on a collection, and on several: measures, differences from a baseline, macro averages."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.bm25 import SPLITTERS, Bm25Check, check_bm25
from st_keytokens.evaluation.collections import Collection, read_collection
from st_keytokens.evaluation.encoded import encode_collection
from st_keytokens.evaluation.measures import (
    MEASURES,
    bootstrap_interval,
    holm,
    import_extra,
    measure_collection,
    randomization_test,
)
from st_keytokens.evaluation.methods import COMPARED_METHODS, check_methods, run_methods
from st_keytokens.evaluation.runs import FUSION_DEPTH, Run
from st_keytokens.evaluation.tables import comparison_table, evaluation_table
from st_keytokens.shared.files import write_atomically

__all__ = ["Comparison", "Difference", "Evaluation", "MacroAverage", "MethodResult", "evaluate", "run_comparison"]

logger = logging.getLogger(__name__)

_PACKAGES = (
    "st-keytokens",
    "sentence-transformers",
    "transformers",
    "torch",
    "numpy",
    "scipy",
    "ir-measures",
    "bm25s",
    "rank-bm25",
    "PyStemmer",
)
_PACKAGE = Path(__file__).resolve().parents[1]


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
        per_query: For each measure one value per query, in the order of the collection's queries.
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
        return _as_json(self.to_dict())

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
        values = [{name: result.per_query for name, result in made.methods.items()} for made in self.comparisons]
        samples, seed = int(first.settings["samples"]), int(first.settings["seed"])
        differences = _differences(values, first.baseline, samples, seed)
        return {
            name: MacroAverage(
                {m: float(np.mean([made.methods[name].means[m] for made in self.comparisons])) for m in MEASURES},
                differences[name],
            )
            for name in first.methods
        }

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
        return _as_json(self.to_dict())

    def to_markdown(self) -> str:
        """Tables of the averages and of each collection, the worst difference from the baseline first."""
        return evaluation_table(self.to_dict())

    def save(self, output: str | Path, table: str | Path | None = None) -> None:
        """Writes everything as JSON and, where wanted, the tables as Markdown.

        Args:
            output: Of the JSON file.
            table: Of the Markdown file. None: none.
        """
        content = self.to_dict()
        write_atomically(Path(output), _as_json(content).encode())
        if table is not None:
            write_atomically(Path(table), evaluation_table(content).encode())


def chosen_methods(methods: Sequence[str] | None, baseline: str) -> list[str]:
    """The names of the methods, the baseline among them, checked with the packages they need before any embedding."""
    names = list(COMPARED_METHODS if methods is None else methods)
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"methods must be named once, got {repeated[0]!r} twice.")
    if baseline not in names:
        names.insert(0, baseline)
    check_methods(names)
    has_bm25 = any(part in name for name in names for part in SPLITTERS)
    for package in ("ir_measures", "bm25s", "rank_bm25") if has_bm25 else ("ir_measures",):
        import_extra(package)
    return names


def run_comparison(
    collection: Collection,
    encoder: KeyTokenEncoder,
    *,
    methods: Sequence[str] | None = None,
    baseline: str = "dense",
    calibrate: bool | None = None,
    depth: int = 1000,
    fusion_depth: int = FUSION_DEPTH,
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
        depth: How many documents are ranked for each query.
        fusion_depth: How many of each part of a hybrid are fused, at most ``depth``; by default as many as a search
            for ten hits fuses.
        samples: Of the randomisation test and the bootstrap.
        seed: Of both.
        batch_size: Texts a forward pass at most.
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
    check_methods(names, depth=depth, fusion_depth=fusion_depth)
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
    differences = _differences([values], baseline, samples, seed)
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
            "fusion_depth": min(depth, fusion_depth),
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


def describe_environment(device: str = "cpu") -> dict[str, object]:
    """Versions, hardware and date, ready for JSON; a package that is not installed is None.

    The commit is that of the git checkout that this package is in, with ``+`` where its files differ from it, and None
    where it is in none.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(_PACKAGE),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _commit(package: Path) -> str | None:
    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # installed below somebody else's checkout, it is not in it
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _differences(
    collections: Sequence[Mapping[str, Mapping[str, NDArray[np.float64]]]], baseline: str, samples: int, seed: int
) -> dict[str, dict[str, Difference]]:
    """Differences from the baseline by method and measure; collections count alike, and queries stay in theirs."""
    sizes = [len(next(iter(values[baseline].values()))) for values in collections]
    weights = np.repeat([sum(sizes) / len(sizes) / size for size in sizes], sizes)  # 1 in a single collection
    strata = np.repeat(np.arange(len(sizes)), sizes)
    differences: dict[str, dict[str, Difference]] = {name: {} for name in collections[0]}
    others = [name for name in differences if name != baseline]
    for measure in MEASURES:
        joined = {name: np.concatenate([values[name][measure] for values in collections]) for name in differences}
        theirs = joined[baseline]
        tests = [
            randomization_test(joined[name] * weights, theirs * weights, samples=samples, seed=seed) for name in others
        ]
        for name, p, p_holm in zip(others, tests, holm(tests), strict=True):
            mean = float(((joined[name] - theirs) * weights).mean())
            low, high = bootstrap_interval(joined[name], theirs, strata=strata, samples=samples, seed=seed)
            differences[name][measure] = Difference(mean, low, high, p, p_holm)
    return differences


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
