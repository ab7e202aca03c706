"""What retrievers can do, found out by doing it. A probe answers "yes" or "no", and says what it saw."""

from __future__ import annotations

import asyncio
import math
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retriever_contenders import Contender, Found, Missing, Passage

PASSAGES = (
    Passage("stars", "The stars in the sky are far away, and stars shine at night.", "a"),
    Passage("star", "Every star shines until its hydrogen is burnt.", "b"),
    Passage("river", "The river carries sand down to the sea.", "a"),
    Passage("genes", "Genes encode the proteins of a cell.", "b"),
    Passage("prime", "No even number above two is a prime number.", "a"),
    Passage("rain", "Rain falls on the hills and on the river.", "b"),
)
QUERIES = ("stars shine at night", "the river", "prime number", "a star shone")
CHINESE = (
    ("行星围绕恒星运行。恒星发出光芒。", "恒星"),
    ("疫苗保护人们免受疾病的侵害。", "疫苗"),
    ("电子带有负电荷。质子带有正电荷。", "电子"),
    ("河流把沙子和石头带到大海。", "河流"),
    ("每个细胞都含有相同的基因组。", "基因组"),
    ("算法对数字列表进行排序。", "算法"),
)
Answer = tuple[str, str]
WAIT = 5.0


def add(contender: Contender, retriever: Any) -> Answer:
    contender.add(retriever, Passage("zebra", "Zebras graze on the savanna.", "a"))
    best = contender.search(retriever, "Zebras graze")[0].id
    return _answer(best == "zebra", f"the best hit for an added text is {best}")


def delete(contender: Contender, retriever: Any) -> Answer:
    contender.delete(retriever, "stars")
    found = [hit.id for hit in contender.search(retriever, QUERIES[0])]
    return _answer("stars" not in found, f"after deleting stars, found {found}")


def filter_per_call(contender: Contender, retriever: Any) -> Answer:
    groups = [hit.group for hit in contender.filtered(retriever, QUERIES[0], "b")]
    return _answer(bool(groups) and set(groups) == {"b"}, f"groups of the hits for group b: {groups}")


def persist_with_settings(contender: Contender, retriever: Any) -> Answer:
    special = contender.make(PASSAGES, k=3, **contender.settings)
    before = [_comparable(contender.search(special, query)) for query in QUERIES]
    with tempfile.TemporaryDirectory() as folder:
        contender.save(special, Path(folder, "saved"))
        loaded = contender.load(type(special), Path(folder, "saved"))
        after = [_comparable(contender.search(loaded, query)) for query in QUERIES]
    same = sum(a == b for a, b in zip(before, after, strict=True))
    return _answer(same == len(QUERIES), f"same answers to {same} of {len(QUERIES)} queries after loading")


def scores(contender: Contender, retriever: Any) -> Answer:
    found = [hit.score for hit in contender.search(retriever, QUERIES[0])]
    falling = all(isinstance(score, float) for score in found) and found == sorted(found, reverse=True)
    return _answer(falling and len(set(found)) > 1, f"scores: {found}")


def asynchronous(contender: Contender, retriever: Any) -> Answer:
    """Wherever the search computes, it waits there for the next beat of the event loop."""
    beat, blocked = threading.Event(), []

    def hold() -> None:
        beat.clear()
        blocked.append(not beat.wait(WAIT))

    async def tick() -> None:
        while True:
            beat.set()
            await asyncio.sleep(0.005)

    async def ask() -> None:
        ticking = asyncio.create_task(tick())
        await contender.asearch(retriever, "a question that nobody asked before")
        ticking.cancel()

    with contender.held(retriever, hold):
        asyncio.run(ask())
    if not blocked:
        raise RuntimeError("the search was never held")
    return _answer(not any(blocked), f"the event loop stood still in {sum(blocked)} of {len(blocked)} computations")


def chinese(contender: Contender, retriever: Any) -> Answer:
    special = contender.make([Passage(str(number), text) for number, (text, _) in enumerate(CHINESE)], k=2)
    best = [contender.search(special, query)[:2] for _, query in CHINESE]
    right = [
        bool(hits) and hits[0].id == str(number) and (len(hits) == 1 or hits[0].score != hits[1].score)
        for number, hits in enumerate(best)
    ]
    if all(hit.score is None for hits in best for hit in hits):  # no scores: a tie cannot be seen
        right = [bool(hits) and hits[0].id == str(number) for number, hits in enumerate(best)]
    return _answer(all(right), f"the right text first for {sum(right)} of {len(CHINESE)} words")


def explanation(contender: Contender, retriever: Any) -> Answer:
    """Some list that came with a hit names tokens with numbers, and these sum to one of its scores."""
    hit = contender.search(contender.make(PASSAGES, k=4, **contender.explaining), QUERIES[0])[0]
    totals = _numbers(hit.details)
    for name, value in hit.details.items():
        pairs = [tuple(item.values()) if isinstance(item, dict) else item for item in value] if _is_list(value) else []
        if pairs and all(_is_list(pair) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
            total = math.fsum(number for _, number in pairs)
            if any(math.isclose(total, other, rel_tol=1e-3) for other in totals):
                return "yes", f"{name}: {', '.join(token for token, _ in pairs[:4])}, ... sum to {total:.2f}"
    return "no", f"what comes with a hit: {sorted(hit.details)}"


PROBES: dict[str, Callable[[Contender, Any], Answer]] = {
    "add": add,
    "delete": delete,
    "filter per call": filter_per_call,
    "persist with settings": persist_with_settings,
    "scores": scores,
    "async": asynchronous,
    "Chinese": chinese,
    "explanation": explanation,
}


def probe(contender: Contender, name: str) -> dict[str, str]:
    """Runs a probe on a new retriever; a call that the framework has not is a no, any other error is one of ours."""
    try:
        cell, evidence = PROBES[name](contender, contender.make(PASSAGES, k=4))
    except Missing as error:
        cell, evidence = "no", str(error)
    return {"cell": cell, "evidence": evidence.splitlines()[0][:200]}


def _answer(is_right: bool, evidence: str) -> Answer:
    return ("yes" if is_right else "no"), evidence


def _comparable(hits: list[Found]) -> list[tuple[str, float | None]]:
    return [(hit.id, None if hit.score is None else round(hit.score, 4)) for hit in hits]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _numbers(details: dict[str, Any]) -> list[float]:
    nested = [number for value in details.values() if isinstance(value, dict) for number in value.values()]
    return [value for value in [*details.values(), *nested] if isinstance(value, float)]
