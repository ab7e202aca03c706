"""A process for each side of scale.py: memory is told apart, and while one side works the others wait."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scale_postings import DuckDBPostings, SQLitePostings
from scale_sides import Dense, EmbeddedIndex, QdrantEdge
from scale_tasks import Found, Side, filter_kinds, where_of
from threadpoolctl import threadpool_limits

from st_keytokens.sparse_embeddings import SparseEmbeddings

MOST_THREADS = 2
ARRAYS = ("indptr", "indices", "values")


def write_rows(folder: Path, name: str, rows: SparseEmbeddings) -> None:
    for array in ARRAYS:
        np.save(folder / f"{name}-{array}.npy", getattr(rows, array))


def read_rows(folder: Path, name: str, vocab_size: int) -> SparseEmbeddings:
    arrays = [np.load(folder / f"{name}-{array}.npy", mmap_mode="r") for array in ARRAYS]
    return SparseEmbeddings.trusted(*map(np.asarray, arrays), vocab_size)


def memory() -> dict[str, int]:
    """Bytes of this process: what is resident, of that what no file is mapped to, and the most there ever was."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    held = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}
    return {"resident": held["VmRSS"], "anonymous": held["RssAnon"], "peak": held["VmHWM"]}


def timed(action: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def side_of(name: str, path: Path) -> Side:
    """The side of that name, in a directory of its own; ``"dense-256"`` has 256 dimensions."""
    if name.startswith("dense-"):
        return Dense(path, int(name.removeprefix("dense-")))
    if name == "wide":
        return EmbeddedIndex(path, is_wide=True)
    sides = {"index": EmbeddedIndex, "qdrant": QdrantEdge, "sqlite": SQLitePostings, "duckdb": DuckDBPostings}
    return sides[name](path)


class Tasks:
    """What a worker can be told, on its side and its data."""

    def __init__(self, name: str, path: Path, data: Path, num_documents: int, vocab_size: int) -> None:
        torch.set_num_threads(1)
        threadpool_limits(1)
        self.side, self.path, self.num_documents = side_of(name, path), path, num_documents
        self.documents = read_rows(data, "documents", vocab_size)
        self.queries: dict[str, list[Any]] = {}
        for kind in ("short", "default"):
            rows = read_rows(data, kind, vocab_size)
            self.queries[kind] = [self.side.prepare(rows[row : row + 1]) for row in range(len(rows))]
        self.threads = ThreadPoolExecutor(MOST_THREADS)
        self.before = memory()

    def load(self) -> dict[str, Any]:
        times = timed(lambda: self.side.load(self.documents[: self.num_documents]))
        return {**times, "peak_bytes": memory()["peak"] - self.before["resident"], "disk_bytes": self.disk_bytes()}

    def disk_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def open(self) -> dict[str, float]:
        opened = timed(self.side.open)
        first = timed(lambda: self.side.search(self.queries["short"][0], None))
        return {"open_s": opened["wall_s"], "first_query_s": first["wall_s"], "first_query_cpu_s": first["cpu_s"]}

    def answer(self, kind: str, query: int, filter: str | None) -> Found:
        found: Found = self.side.search(self.queries[kind][query], where_of(filter, query))
        return found

    def ask(self, kind: str, queries: list[int], filter: str | None, threads: int) -> dict[str, Any]:
        """Seconds of each query, and of the processor for each; with two threads, each asks half of the queries."""
        wall, cpu = time.perf_counter(), time.process_time()
        shares = [queries[thread::threads] for thread in range(threads)]
        one = partial(self._ask_in_turn, kind, filter)
        pairs = list(map(one, shares) if threads == 1 else self.threads.map(one, shares))
        elapsed, used = time.perf_counter() - wall, time.process_time() - cpu
        each = [pair for share in pairs for pair in share]
        order = np.argsort([query for share in shares for query in share], kind="stable").tolist()
        seconds = [each[place][0] for place in order]
        used_by = [each[place][1] for place in order] if threads == 1 else [used / len(queries)] * len(queries)
        return {"wall": seconds, "cpu": used_by, "elapsed": elapsed}

    def _ask_in_turn(self, kind: str, filter: str | None, queries: list[int]) -> list[tuple[float, float]]:
        pairs, prepared, search = [], self.queries[kind], self.side.search
        for query in queries:
            where = where_of(filter, query)
            cpu, wall = time.process_time(), time.perf_counter()
            search(prepared[query], where)
            pairs.append((time.perf_counter() - wall, time.process_time() - cpu))
        return pairs

    def filters(self) -> dict[str, dict[str, float]]:
        """Of each kind of filter, what the first costs, which touches its key, and what new ones cost afterwards."""
        found, prepared = {}, self.queries["short"]
        for kind, filters in filter_kinds(self.num_documents).items():
            before, (first, *rest) = memory()["anonymous"], filters
            touched = timed(lambda first=first: self.side.search(prepared[0], first))
            held = memory()["anonymous"] - before
            times = [timed(lambda where=where: self.side.search(prepared[0], where)) for where in rest]
            wall, cpu = (np.array([one[name] for one in times]) for name in ("wall_s", "cpu_s"))
            first_ms = {"first_ms": 1e3 * touched["wall_s"], "first_cpu_ms": 1e3 * touched["cpu_s"]}
            held_bytes = {"bytes_a_document": held / self.num_documents}
            found[kind] = {**first_ms, **held_bytes, **summary(wall, cpu, float(wall.sum()))}
        return found

    def memory(self) -> dict[str, int]:
        now = memory()
        return {name: now[name] - self.before["resident" if name == "peak" else name] for name in now}

    def add(self) -> dict[str, float]:
        return timed(lambda: self.side.add(self.documents[self.num_documents :], self.num_documents))

    def delete(self, numbers: list[int]) -> dict[str, float]:
        return timed(lambda: self.side.delete(numbers))

    def compact(self) -> dict[str, Any]:
        times = timed(self.side.compact)
        return {**times, "disk_bytes": self.disk_bytes()}


def _work(pipe: Any, *arguments: Any) -> None:
    try:
        tasks = Tasks(*arguments)
        while (order := pipe.recv()) is not None:
            pipe.send((None, getattr(tasks, order[0])(*order[1:])))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
        raise


class Worker:
    """A process with one side; to be told one thing at a time."""

    def __init__(self, name: str, path: Path, data: Path, num_documents: int, vocab_size: int) -> None:
        path.mkdir(exist_ok=True)
        context = multiprocessing.get_context("forkserver")  # imports what takes long once, and holds no data
        context.set_forkserver_preload(["st_keytokens.evaluation.encoded", "st_keytokens.index"])
        self._pipe, other = context.Pipe()
        arguments = (other, name, path, data, num_documents, vocab_size)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        other.close()

    def tell(self, order: str, *arguments: Any) -> Any:
        """Have it done, and what came of it.

        Raises:
            RuntimeError: If it failed.
        """
        self._pipe.send((order, *arguments))
        failure, result = self._pipe.recv()
        if failure:
            raise RuntimeError(failure)
        return result

    def end(self) -> None:
        self._pipe.send(None)
        self._process.join()


def summary(times: NDArray[np.float64], cpu: NDArray[np.float64], elapsed: float) -> dict[str, float]:
    return {
        "queries": len(times),
        "median_ms": float(np.median(times) * 1e3),
        "p99_ms": float(np.quantile(times, 0.99) * 1e3),
        "cpu_median_ms": float(np.median(cpu) * 1e3),
        "cpu_p99_ms": float(np.quantile(cpu, 0.99) * 1e3),
        "queries_a_second": len(times) / elapsed,
    }
