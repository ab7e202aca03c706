"""A flipped byte anywhere in an index is found by verify(), or changes no answer."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

import pytest
from index_flips import ROWS, answers, fill, flip_many

from st_keytokens.index import HybridIndex


def test_a_hundred_places(tmp_path):
    num_found, num_harmless, missed = flip_many(tmp_path, 100, 0)
    assert missed == []
    assert num_found + num_harmless == 100
    assert num_found >= 30


@pytest.mark.slow
def test_two_thousand_places(tmp_path):
    num_found, num_harmless, missed = flip_many(tmp_path, 2000, 1)
    sys.stderr.write(f"\n2000 flips: {num_found} found, {num_harmless} without an effect\n")
    assert missed == []
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
