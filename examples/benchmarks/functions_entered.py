"""Counts the functions and files of the package that one call enters: encoding, searching, retrieving.

    python examples/benchmarks/functions_entered.py [--output docs/results/functions-entered.json]

Counts calls of Python functions whose code lies in ``st_keytokens`` (a profile hook), after a first call has warmed
what is computed once. No time is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import st_keytokens
from st_keytokens import HybridIndex, KeyTokenEncoder
from st_keytokens.retrieval import Retriever

PACKAGE = str(Path(st_keytokens.__file__).parent)
TINY = Path(__file__).resolve().parents[1] / "tiny-embedder" / "embedder"
SUBJECTS = ("Genes", "Stars", "Rivers", "Banks")
THINGS = ("proteins in a cell", "light through space", "water to the sea", "money between people")
TEXTS = [f"{subject} {verb} {thing}." for subject in SUBJECTS for verb in ("make", "move") for thing in THINGS]
QUERY = "Which genes make proteins?"


def entered(call: Callable[[], Any]) -> dict[str, int]:
    """Calls, functions and files that a call enters."""
    calls: Counter[tuple[str, int]] = Counter()

    def hook(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[frame.f_code.co_filename, frame.f_code.co_firstlineno] += 1

    call()
    call()
    sys.setprofile(hook)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {"calls": calls.total(), "functions": len(calls), "files": len({name for name, _ in calls})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    encoder = KeyTokenEncoder(str(TINY), cache_size=0)
    encoder.calibrate(TEXTS, show_progress_bar=False)
    with tempfile.TemporaryDirectory() as folder:
        index = HybridIndex(folder, encoder=encoder)
        index.add([str(i) for i in range(len(TEXTS))], TEXTS)
        retriever = Retriever(encoder)
        retriever.add(TEXTS)
        found = {
            "encode one text": entered(lambda: encoder.encode("Genes make proteins")),
            "search, hybrid": entered(lambda: index.search(QUERY, top_k=3)),
            "retrieve": entered(lambda: retriever.search(QUERY)),
        }
        encoder.query = "lookup"
        found["search, no forward pass"] = entered(lambda: index.search(QUERY, top_k=3, mode="sparse"))
        index.close()
        retriever.close()
    for name, counts in found.items():
        print(f"{name}: {counts['calls']} calls of {counts['functions']} functions in {counts['files']} files")
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
