"""Writers of an index, killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
from index_processes import CONTEXT
from index_samples import hybrid_rows

from st_keytokens.index import HybridIndex


def operations(seed):
    """An endless sequence of changes that depends on the seed alone: name, ids, size of the texts."""
    rng = random.Random(seed)
    number = 0
    while True:
        kind = rng.choice(["add", "add", "add", "replace", "delete", "compact"])
        ids = [f"{number + i}" for i in range(rng.randrange(1, 40))]
        if kind == "add":
            number += len(ids)
        elif kind != "compact":
            ids = sorted({f"{rng.randrange(number + 1)}" for _ in range(10)})
        yield kind, ids, rng.randrange(4000)


def rows_of(ids, step):
    """Embeddings that tell the id and the step."""
    return hybrid_rows(len(ids), np.random.default_rng([step, len(ids)]))


def run(index, step, kind, ids, size):
    texts = [f"{name} at {step} " + "x" * size for name in ids]
    if kind in ("add", "replace"):
        metadata = [{"step": step}] * len(ids)
        index.add(ids, texts, embeddings=rows_of(ids, step), metadata=metadata, on_conflict="replace")
    elif kind == "delete":
        index.delete(ids)
    else:
        index.compact()


def apply(model, step, kind, ids, size):
    if kind == "compact":
        return
    rows = rows_of(ids, step)
    for number, name in enumerate(ids):
        model.pop(name, None)
        if kind != "delete":
            model[name] = (f"{name} at {step} " + "x" * size, step, rows[number])


def work(path, seed, start, sender):
    """Change the index until killed, telling every change before and after."""
    with HybridIndex(path, kernel="numba") as index:
        for step, operation in enumerate(operations(seed)):
            if step >= start:
                sender.send(step)
                run(index, step, *operation)
                sender.send(step)


def state(index, names):
    return {document.id: (document.text, document.metadata["step"]) for document in index.get(names)}


def check(path, model):
    """The index holds exactly the model: documents, order, dense and sparse rows."""
    with HybridIndex(path, kernel="numba") as index:
        index.verify()
        if len(index) != len(model) or any(name not in index for name in model):
            return False
        if state(index, list(model)) != {name: entry[:2] for name, entry in model.items()}:
            return False
        if not model:
            return True
        for name in random.Random(0).sample(list(model), min(5, len(model))):
            query = model[name][2]
            (hits,) = index.search(query, mode="dense", top_k=len(model))
            assert {hit.id for hit in hits} == set(model)
            (hits,) = index.search(query, mode="sparse", top_k=len(model), filter=[name])
            expected = float((query.sparse.values**2).sum())
            assert [hit.score for hit in hits] == ([expected] if expected else [])
        return True


def killed_writers(path, seed, trials):
    """Kill writers, each going on where the last one was; yields the kind of change it was killed in, or None.

    Raises:
        AssertionError: If the index is not what was acknowledged, with or without the change under way.
    """
    rng = random.Random(seed)
    model, done = {}, 0
    for _ in range(trials):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=work, args=(path, seed, done, sender))
        process.start()
        sender.close()
        assert receiver.poll(120)  # the first change has begun
        time.sleep(rng.random() ** 2 * 1.5)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        told = []
        while receiver.poll():
            try:
                told.append(receiver.recv())
            except EOFError:
                break
        kind, operation = None, operations(seed)
        upcoming = [next(operation) for _ in range(max(told) + 1)]
        finished = [step for step in set(told) if told.count(step) == 2]
        for step in sorted(finished):
            apply(model, step, *upcoming[step])
        done = max(finished, default=done - 1) + 1
        if done in told:  # killed within this change: it is there in full, or not at all
            kind = upcoming[done][0]
            if not check(path, model):
                apply(model, done, *upcoming[done])
                assert check(path, model), f"step {done}, {upcoming[done][0]}: neither before nor after"
                done += 1
        else:
            assert check(path, model)
        with HybridIndex(path) as index, index._store.write() as connection:
            live = set(index._store.segment_files(connection))
            assert {entry.name for entry in (path / "segments").iterdir()} == live  # leftovers are gone
        yield kind
