"""A flipped byte anywhere in an index is found by verify(), or changes no answer."""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import warnings
from contextlib import closing

import numpy as np
import pytest
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


def run(tmp_path, count, seed):
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
    assert missed == []
    return num_found, num_harmless


def test_a_hundred_places(tmp_path):
    num_found, num_harmless = run(tmp_path, 100, 0)
    assert num_found + num_harmless == 100
    assert num_found >= 30


@pytest.mark.slow
def test_two_thousand_places(tmp_path):
    num_found, num_harmless = run(tmp_path, 2000, 1)
    sys.stderr.write(f"\n2000 flips: {num_found} found, {num_harmless} without an effect\n")
    assert num_found + num_harmless == 2000


class TestEachPart:
    @pytest.mark.parametrize(
        ("statement", "message"),
        [
            ("UPDATE documents SET id = CAST('other' AS BLOB) WHERE key = 7", "the document with the key 7 does not"),
            ("UPDATE documents SET metadata = '{\"year\": 1}' WHERE key = 7", "the document with the key 7 does not"),
            ("UPDATE documents SET metadata = NULL WHERE key = 7", "the document with the key 7 does not"),
            ("UPDATE documents SET metadata = CAST(metadata AS BLOB) WHERE key = 7", "the document with the key 7"),
            ("UPDATE texts SET text = CAST('other' AS BLOB) WHERE key = 7", "the document with the key 7 does not"),
            ("DELETE FROM texts WHERE key = 7", "the document with the key 7 does not"),
            ("DELETE FROM checksums WHERE key = 7", "the document with the key 7 does not"),
            ("DELETE FROM documents WHERE key = 7", "its documents are not those of its segments"),
            ("INSERT INTO tombstones VALUES (99)", "its deleted rows do not have the checksum"),
            ("UPDATE tombstones SET key = 99 WHERE key = 30", "(its deleted rows|its documents) (do|are) not"),
            ("UPDATE state SET next_key = 2", "its state and its list of segments do not have the checksum"),
            ("UPDATE state SET generation = 2", "its state and its list of segments do not have the checksum"),
            ("UPDATE state SET settings = replace(settings, 'cosine', 'dot')", "its state and its list of segments"),
            ("UPDATE segments SET first_key = 1 WHERE first_key = 0", "its state and its list of segments do not"),
            ("DELETE FROM segments WHERE first_key = 0", "its state and its list of segments do not have"),
            ("UPDATE catalog SET first_key = 99", "its state and its list of segments do not have the checksum"),
            ("DELETE FROM catalog", "its state and its list of segments do not have the checksum"),
        ],
    )
    def test_a_changed_row(self, tmp_path, statement, message):
        fill(tmp_path / "index")
        with closing(sqlite3.connect(tmp_path / "index" / "index.sqlite")) as connection:
            assert connection.execute(statement).rowcount == 1
            connection.commit()
        with pytest.raises(ValueError, match=rf"the index .* is damaged: {message}"):
            with HybridIndex(tmp_path / "index") as index:
                index.verify()

    def test_an_older_format_says_what_has_no_checksum(self, tmp_path):
        path = tmp_path / "index"
        fill(path)
        with closing(sqlite3.connect(path / "index.sqlite")) as connection:
            for statement in ("DROP TABLE checksums", "DROP TABLE catalog", "PRAGMA user_version = 2"):
                connection.execute(statement)
            connection.commit()
        expected = answers(path)
        with HybridIndex(path, read_only=True) as index:
            with pytest.warns(UserWarning, match=r"^38 documents of .* have no checksum of their id, text and metad"):
                index.verify()
        with HybridIndex(path) as index:
            assert answers(path) == expected  # opening and reading leaves it as it is
            index.add(["new"], ["new"], embeddings=ROWS[:1])
            index.delete(["document 5"])
            with pytest.warns(UserWarning, match=r"^37 documents of .* have no checksum"):
                index.verify()
        with closing(sqlite3.connect(path / "index.sqlite")) as connection:
            connection.execute("UPDATE texts SET text = CAST('other' AS BLOB) WHERE key = 40")
            connection.commit()
        with HybridIndex(path) as index, pytest.raises(ValueError, match="the document with the key 40 does not"):
            index.verify()
