"""Integer impacts, and the files in which Anserini takes them: a collection in JSON lines, and queries."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from st_keytokens.checks import checked_float, checked_int

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ImpactScale", "document_line", "query_line", "read_collection", "read_queries", "read_run_lines"]

_RUN_LINE = re.compile(r"(\S+) Q0 (.*) (\d+) (\S+) (\S+)", re.DOTALL)
_QUERY_ID = re.compile(r"\S+")


@dataclass(frozen=True)
class ImpactScale:
    """How weights become integers: multiples of ``step``, to the nearest.

    Attributes:
        largest: The largest weight, which becomes the largest integer.
        bits: The largest integer is ``2 ** bits - 1``.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of range.

    >>> scale = ImpactScale(largest=5.1)
    >>> scale.impacts(np.array([5.1, 1.0, 0.005]))
    array([255,  50,   0])
    """

    largest: float
    bits: int = 8

    def __post_init__(self) -> None:
        checked_float("largest", self.largest, minimum=0)
        checked_int("bits", self.bits, minimum=1, maximum=12)

    @property
    def step(self) -> float:
        """The weight that an impact of 1 stands for. A weight changes by half of it at most."""
        return float(self.largest / (2**self.bits - 1))

    def impacts(self, weights: NDArray[np.floating]) -> NDArray[np.int64]:
        """Integers for weights; 0 for those below half a step, which are left out of the files."""
        if not self.largest:
            return np.zeros(len(weights), np.int64)
        scaled = np.asarray(weights, np.float64) / self.largest * (2**self.bits - 1)
        return np.asarray(np.rint(scaled), np.int64)

    def score_error(
        self, query_scale: ImpactScale, query: NDArray[np.floating], document: NDArray[np.floating]
    ) -> float:
        """The most that rounding can change an inner product by, times both steps as it is.

        With an error of at most ``e`` in a document's weight ``w``, and of ``f`` in a query's ``q``, the product
        changes by ``q * e + w * f + e * f`` at most.

        Args:
            query_scale: The query's own.
            query: The query's weights of the terms that both have.
            document: The document's weights of these terms, in the same order.

        >>> scale = ImpactScale(largest=2.55)
        >>> scale.score_error(ImpactScale(largest=5.1), np.array([1.0, 2.0]), np.array([1.0, 0.5]))
        0.0301
        """
        half, query_half = self.step / 2, query_scale.step / 2
        bound = half * np.sum(query) + query_half * np.sum(document) + len(query) * half * query_half
        return round(float(bound), 12)


def document_line(id: str, text: str | None, terms: NDArray[np.integer], impacts: NDArray[np.int64]) -> str:
    """A document for Anserini's ``JsonVectorCollection``. Terms are named by their numbers.

    >>> document_line("a", None, np.array([3, 7]), np.array([255, 0]))
    '{"id": "a", "contents": "", "vector": {"3": 255}}'
    """
    vector = {str(term): impact for term, impact in zip(terms.tolist(), impacts.tolist(), strict=True) if impact}
    return json.dumps({"id": id, "contents": text or "", "vector": vector}, ensure_ascii=False)


def query_line(id: str, terms: NDArray[np.integer], impacts: NDArray[np.int64]) -> str:
    r"""A query for the topic reader ``TsvString``, in which a term comes as often as its impact is.

    Raises:
        ValueError: If the id is empty or has blanks, which a run file could not keep.

    >>> query_line("q1", np.array([3, 7]), np.array([2, 1]))
    'q1\t3 3 7'
    """
    if not _QUERY_ID.fullmatch(id):
        raise ValueError(f"query_ids must have characters and no blanks, got {id!r:.60}.")
    repeated = np.repeat(terms, impacts).tolist()
    return f"{id}\t{' '.join(map(str, repeated))}"


def read_collection(folder: str | PathLike[str]) -> Iterator[tuple[str, dict[int, int]]]:
    """Ids and impacts of the documents in all files of a collection.

    Raises:
        ValueError: If a line is no document with integer impacts.
    """
    for path in sorted(Path(folder).glob("*.jsonl")):
        for number, line in _lines(path):
            try:
                document = json.loads(line)
                vector = {int(term): impact for term, impact in document["vector"].items()}
                yield document["id"], _checked(vector)
            except (ValueError, TypeError, KeyError, AttributeError) as err:
                raise ValueError(f"{path}, line {number}, must be a document with integer impacts.") from err


def read_queries(path: str | PathLike[str]) -> Iterator[tuple[str, dict[int, int]]]:
    """Ids and impacts of the queries in a file.

    Raises:
        ValueError: If a line is no query.
    """
    for number, line in _lines(Path(path)):
        id, _, terms = line.partition("\t")
        try:
            yield id, dict(Counter(map(int, terms.split())))
        except ValueError as err:
            raise ValueError(f"{path}, line {number}, must be an id, a tab and numbers of terms.") from err


def read_run_lines(path: str | PathLike[str]) -> Iterator[tuple[str, str, float]]:
    """Query ids, document ids and scores of a run in TREC's format, whose document ids may have blanks.

    Raises:
        ValueError: If a line is not of a run.
    """
    for number, line in _lines(Path(path)):
        found = _RUN_LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{path}, line {number}, must be of a run in TREC's format, got {line!r:.60}.")
        yield found[1], found[2], float(found[4])


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            yield number, line.removesuffix("\n")


def _checked(vector: Mapping[int, int]) -> dict[int, int]:
    if not all(type(impact) is int and impact > 0 for impact in vector.values()):
        raise ValueError("impacts must be positive integers")
    return dict(vector)
