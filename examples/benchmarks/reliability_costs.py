"""What changes of an index cost as it grows: adds, one id again and again, deleted rows, filters that are new."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from st_keytokens import HybridIndex, SparseEmbeddings

VOCAB_SIZE, TERMS = 1000, 8
TAGS = ("gene", "star", "river", "bank", "law")


def rows(count: int, seed: int) -> SparseEmbeddings:
    generator = np.random.default_rng(seed)
    indices = np.sort(generator.integers(0, VOCAB_SIZE // TERMS, (count, TERMS)) + np.arange(TERMS) * 125, axis=1)
    values = generator.random((count, TERMS), dtype=np.float32) + 0.5
    offsets = np.arange(count + 1) * TERMS
    return SparseEmbeddings(offsets, indices.ravel(), values.ravel(), VOCAB_SIZE)


def curve(change: Callable[[int], Any], count: int, num_points: int = 10) -> list[dict[str, Any]]:
    """Milliseconds of one change, median and mean and worst, over each of some stretches of many."""
    points, size = [], count // num_points
    for point in range(num_points):
        taken = []
        for number in range(point * size, (point + 1) * size):
            start = time.perf_counter()
            change(number)
            taken.append(1000 * (time.perf_counter() - start))
        points.append(
            {
                "changes": (point + 1) * size,
                "median_ms": round(statistics.median(taken), 3),
                "mean_ms": round(statistics.fmean(taken), 3),
                "worst_ms": round(max(taken), 1),
            }
        )
    return points


def costs(folder: Path, is_quick: bool, num_adds: int = 100_000) -> dict[str, Any]:
    """Curves of the costs, on the disk, each change a durable commit; a tenth as many of one id."""
    few = rows(1000, 0)
    found: dict[str, Any] = {}
    with HybridIndex(folder / "single") as index:
        count = 300 if is_quick else num_adds
        found["single adds"] = curve(lambda n: index.add([f"{n}"], embeddings=few[n % 1000]), count)
    with HybridIndex(folder / "again") as index:
        count = 200 if is_quick else num_adds // 10
        found["one id again"] = curve(
            lambda n: index.add(["id"], embeddings=few[n % 1000], on_conflict="replace"), count
        )
    size = 5000 if is_quick else 100_000
    with HybridIndex(folder / "deleted") as index:
        index.add([f"{n}" for n in range(size)], embeddings=rows(size, 1))
        points = []
        for part in range(8):
            index.delete([f"{n}" for n in range(part * size // 10, (part + 1) * size // 10)])
            (point,) = curve(lambda n, p=part: index.add([f"new {p} {n}"], embeddings=few[n]), 50, 1)
            points.append({"deleted": (part + 1) * size // 10, **point})
        found["an add beside deleted rows"] = points
    return found


def filters(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Milliseconds of the processor of a search with a filter that is new, and of the same search without one."""
    size = 10_000 if is_quick else 1_000_000
    step = min(size, 100_000)
    query = rows(1, 9)
    with HybridIndex(folder / "filtered") as index:
        for start in range(0, size, step):
            metadata = [{"year": 1950 + n % 75, "tag": TAGS[n % 5], "n": n} for n in range(start, start + step)]
            names = [f"{n}" for n in range(start, start + step)]
            index.add(names, [f"short text {n}" for n in names], embeddings=rows(step, start), metadata=metadata)
        kinds: dict[str, Callable[[int], dict[str, Any]]] = {
            "equal": lambda n: {"year": 1950 + n},
            "range": lambda n: {"n": {"$gte": n * 1000, "$lt": size // 2 + n}},
            "two keys": lambda n: {"tag": TAGS[n % 5], "year": {"$gte": 1951 + n}},
        }
        taken: dict[str, Any] = {"documents": size, "search_ms": median(lambda n: index.search(query))}
        for name, filter in kinds.items():
            taken[f"{name}, first_ms"] = timed(lambda n, f=filter: index.search(query, filter=f(n)), 0)
            taken[f"{name}, second_ms"] = timed(lambda n, f=filter: index.search(query, filter=f(n)), 1)
            taken[f"{name}_ms"] = median(lambda n, f=filter: index.search(query, filter=f(n + 2)), 20)
    return taken


def timed(call: Callable[[int], Any], number: int) -> float:
    start = time.process_time()
    call(number)
    return round(1000 * (time.process_time() - start), 2)


def median(call: Callable[[int], Any], count: int = 7) -> float:
    return round(statistics.median(timed(call, number) for number in range(count)), 2)
