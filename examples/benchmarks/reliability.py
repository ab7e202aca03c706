"""What an index, its copies and every kind of file survive: kills, interrupts, flipped bits, altered files.

    python examples/benchmarks/reliability.py [--quick] [--only kills flips …] [--output docs/results/reliability.json]

Needs a checkout with ``tests/``, whose machinery it runs many more times, and hypothesis. Every trial that ends in
another state than it may is a loss; each is counted and told. ``--quick`` takes about a minute. With ``--output``, the
page of the same name is written beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path += [str(TESTS), str(TESTS / "index"), str(TESTS / "bulk")]

from conversion_interrupted import converted, fill_source, interrupted_conversion  # noqa: E402
from environment import environment  # noqa: E402
from fuzzed_files import fuzz, make_cases  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402
from index_copies_killed import killed_copy, make  # noqa: E402
from index_flips import flip_many  # noqa: E402
from index_interrupted import CHANGES, fill_samples, interrupted  # noqa: E402
from index_machine import IndexMachine  # noqa: E402
from index_writers_killed import killed_writers  # noqa: E402
from interrupter import evenly  # noqa: E402
from reliability_costs import costs, filters  # noqa: E402
from reliability_page import page  # noqa: E402
from small_models import SENTENCES, build_sentence_transformer, save_language_model  # noqa: E402

from st_keytokens import KeyTokenEncoder  # noqa: E402

Found = dict[str, Any]


def copies(folder: Path, is_quick: bool) -> Found:
    """Copies killed before each of their file operations, onto nothing and onto another index."""
    make(folder / "source", "wxyz")
    states: Counter[str] = Counter()
    losses: list[str] = []
    for has_old in (True, False):
        number, was_killed = 0, True
        while was_killed and number < 10_000:
            try:
                state, was_killed = killed_copy(folder, has_old, number)
                states[state] += was_killed
            except (AssertionError, ValueError, OSError) as err:
                losses.append(f"before operation {number}, {'over another' if has_old else 'new'}: {err!r:.200}")
            number += 9 if is_quick else 1
    return {"trials": sum(states.values()) + len(losses), "left": dict(states), "losses": losses}


def writers(folder: Path, is_quick: bool) -> Found:
    """Writers killed at random moments, each going on where the last one was."""
    changes: Counter[str] = Counter()
    losses: list[str] = []
    for seed in range(1 if is_quick else 10):
        try:
            for kind in killed_writers(folder / str(seed), seed, 4 if is_quick else 30):
                changes[str(kind or "between two")] += 1
        except (AssertionError, ValueError, OSError) as err:
            losses.append(f"seed {seed}, {err!r:.200}")
    return {"trials": sum(changes.values()) + len(losses), "killed_in": dict(changes), "losses": losses}


def interrupts(folder: Path, is_quick: bool) -> Found:
    """Every change interrupted at its audit events, each with two errors, and at lines of the package."""
    (folder / "samples").mkdir()
    samples = fill_samples(folder / "samples")
    trials: dict[str, list[tuple[str, Callable[[Path, int | None], int | None]]]] = {
        kind: [(change.__name__, partial(_interrupted, samples, kind, change)) for change in CHANGES]
        for kind in ("audit", "lines")
    }
    if find_spec("pyarrow"):
        encoder, source = _encoder(folder / "model"), fill_source(folder)
        wanted = converted(encoder, source, folder / "wanted")
        trials["audit"].append(("convert", partial(interrupted_conversion, encoder, source, wanted)))
    found: Found = {"trials": 0, "losses": []}
    for kind, most, times in (("audit", 3 if is_quick else 10_000, 2), ("lines", 3 if is_quick else 60, 1)):
        raised = count = 0
        for name, trial in trials[kind]:
            numbers = (1 if is_quick else times) * evenly(trial(folder / "whole", None), most)
            for position, number in enumerate(numbers):
                try:
                    raised += trial(folder / f"{kind}-{name}-{position}", number) is None
                except (AssertionError, ValueError, OSError) as err:
                    found["losses"].append(f"{name} at {kind} {number}: {err!r:.200}")
            count += len(numbers)
        found[kind] = {"trials": count, "raised_to_the_caller": raised}
        found["trials"] += count
    return found


def _interrupted(samples: Path, kind: str, change: Any, folder: Path, number: int | None) -> int | None:
    count: int | None = interrupted(samples, folder, kind, change, number)
    return count


def _encoder(folder: Path) -> KeyTokenEncoder:
    save_language_model(folder, "llama")
    encoder = KeyTokenEncoder(build_sentence_transformer(folder, "llama"), cache_size=0, max_active_dims=12)
    encoder.calibrate(list(SENTENCES), show_progress_bar=False)
    return encoder


def flips(folder: Path, is_quick: bool) -> Found:
    """One bit flipped at each of many places of an index."""
    trials = 40 if is_quick else 2000
    num_found, num_harmless, missed = flip_many(folder, trials, 1)
    losses = [f"{file} at byte {place}" for file, place in missed]
    return {"trials": trials, "found_by_verify": num_found, "without_effect": num_harmless, "losses": losses}


def operations(folder: Path, is_quick: bool) -> Found:
    """Random operations on an index and on a dictionary, compared after each."""
    most = settings(
        max_examples=8 if is_quick else 600,
        stateful_step_count=25,
        deadline=None,
        database=None,
        derandomize=is_quick,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    before, losses = IndexMachine.num_operations, []
    try:
        run_state_machine_as_test(IndexMachine, settings=most)
    except Exception as err:
        losses.append(f"{type(err).__name__}: {err!s:.300}")
    return {"trials": IndexMachine.num_operations - before, "losses": losses}


def files(folder: Path, is_quick: bool) -> Found:
    """Every kind of file that is read, altered."""
    total: Counter[str] = Counter()
    found: Found = {"trials": 0, "kinds": {}, "losses": []}
    for name, case in make_cases(folder).items():
        sums: Counter[str] = Counter()
        for seed in range(1 if is_quick else 4):
            count = 50 if name.startswith("faiss") else 120  # which is read in another process, 0.3 s each
            outcome, faults = fuzz(case, seed, 3 if is_quick else count)
            sums.update(outcome)
            found["losses"] += [f"{name}: {fault}" for fault in faults]
        found["kinds"][name] = dict(sums)
        total.update(sums)
    return {**found, "trials": total.total(), **total}


PARTS: dict[str, Callable[[Path, bool], Found]] = {
    "copies": copies,
    "writers": writers,
    "interrupts": interrupts,
    "flips": flips,
    "operations": operations,
    "files": files,
    "costs": costs,
    "filters": filters,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few trials of each kind")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts; others are kept")
    parser.add_argument("--output", type=Path, help="the JSON file; parts that are in it and not run stay")
    parser.add_argument("--adds", type=int, default=100_000, help="single adds of the costs, a multiple of 100")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found: Found = {}
    if arguments.output and arguments.output.exists():
        found = json.loads(arguments.output.read_text())["parts"]
    num_losses = 0
    for name in arguments.only:
        start, env = time.perf_counter(), environment()
        with tempfile.TemporaryDirectory() as folder:
            run = partial(costs, num_adds=arguments.adds) if name == "costs" else PARTS[name]
            part = run(Path(folder), arguments.quick)
        part["seconds"] = round(time.perf_counter() - start, 1)
        part["is_quick"] = arguments.quick
        part["made"] = {name: env[name] for name in ("date", "commit", "load_average")}
        found[name] = part
        losses = part.get("losses", [])
        num_losses += len(losses)
        print(f"{name}: {part.get('trials', '')} trials, {len(losses)} lost, {part['seconds']} s", flush=True)
        for loss in losses[:20]:
            print(f"  lost: {loss}", flush=True)
        if arguments.output:
            results = {"env": env, "parts": found}
            arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            arguments.output.with_suffix(".md").write_text(page(results), encoding="utf-8")
    sys.exit(1 if num_losses else 0)


if __name__ == "__main__":
    main()
