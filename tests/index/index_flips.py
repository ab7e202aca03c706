"""Flipped bits in the files of an index."""

from __future__ import annotations

import random
import shutil
import warnings

import numpy as np
from index_samples import hybrid_rows

from st_keytokens.index import HybridIndex

ROWS = hybrid_rows(40, np.random.default_rng(11))
QUERIES = ROWS[:4]
WORDS = "gene protein hydrogen carbon market index energy star wave field".split()


def fill(path):
    """Some segments, replaced and deleted documents, texts of several lengths, metadata."""
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.choice([3, 30, 900]))) for _ in range(40)]
    with HybridIndex(path, fingerprint="sample") as index:
        for start, stop in ((0, 24), (24, 36), (36, 40)):
            names = [f"document {number}" for number in range(start, stop)]
            metadata = [{"year": 1990 + number, "tag": WORDS[number % 10]} for number in range(start, stop)]
            index.add(names, texts[start:stop], embeddings=ROWS[start:stop], metadata=metadata)
        index.delete(["document 3", "document 30"])


def answers(path):
    """What a reader is answered, or that it gets the documented error."""
    try:
        with HybridIndex(path, read_only=True, kernel="scipy") as index:
            found = [
                index.search(QUERIES, mode=mode, top_k=50, filter=filter)
                for mode in ("sparse", "dense", "hybrid")
                for filter in (None, {"year": {"$gte": 2000}}, {"tag": "gene"})
            ]
            names = [f"document {number}" for number in range(40)]
            return found, [index.get([name])[0] for name in names if name in index], index.settings
    except (ValueError, OSError, KeyError) as err:
        return repr(err)


def is_found(path):
    """Whether verify() finds damage, with the documented error."""
    try:
        with warnings.catch_warnings(), HybridIndex(path, read_only=True) as index:
            warnings.simplefilter("ignore", UserWarning)
            index.verify()
    except (ValueError, OSError):
        return True
    return False


def flip(samples, folder, rng):
    """Flip a bit at a random place of a random file; the file, the place, whether it is found, whether it matters."""
    shutil.copytree(samples, folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "writer")
    weights = [file.stat().st_size * (1 if file.suffix == ".sqlite" else 4) for file in files]
    file = rng.choices(files, weights)[0]
    content = bytearray(file.read_bytes())
    held = [place for place, byte in enumerate(content) if byte]  # most of a small database is empty
    place = rng.choice(held) if rng.random() < 0.75 else rng.randrange(len(content))
    content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    found, after = is_found(folder), answers(folder)
    shutil.rmtree(folder)
    return file.relative_to(folder), place, found, after


def flip_many(tmp_path, count, seed):
    """How many flips verify() finds, how many have no effect, and the places of those that are missed."""
    fill(tmp_path / "samples")
    before = answers(tmp_path / "samples")
    assert not isinstance(before, str)
    assert not is_found(tmp_path / "samples")
    rng = random.Random(seed)
    missed, num_found, num_harmless = [], 0, 0
    for _ in range(count):
        file, place, found, after = flip(tmp_path / "samples", tmp_path / "flipped", rng)
        num_found += found
        num_harmless += not found and after == before
        if not found and after != before:
            missed.append((str(file), place))
    return num_found, num_harmless, missed
