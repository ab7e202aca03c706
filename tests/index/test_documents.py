"""Documents that were read are not read again, and small indexes are soon read whole."""

from __future__ import annotations

import numpy as np
import pytest

from st_keytokens import HybridIndex, SparseEmbeddings
from st_keytokens.index import known_documents

COUNT = 3000
ROWS = SparseEmbeddings.from_dicts([{number: 1.0} for number in range(COUNT)], vocab_size=COUNT)


@pytest.fixture
def index(tmp_path):
    with HybridIndex(tmp_path / "index") as index:
        texts = [f"text {number} \u00e9 \ud800" for number in range(COUNT)]
        index.add(list(map(str, range(COUNT))), texts, embeddings=ROWS, metadata=_metadata(range(COUNT)))
        index.search(ROWS[0])
        yield index


def _metadata(numbers):
    return [{"number": number} if number % 2 else None for number in numbers]


def reads(index, numbers):
    """Search for each of some documents; how many statements read documents."""
    statements = []
    with index._store.read() as connection:  # the one that is lent again
        connection.set_trace_callback(statements.append)
    for number in numbers:
        ((hit,),) = index.search(ROWS[number], mode="sparse")
        assert (hit.id, hit.text) == (str(number), f"text {number} \u00e9 \ud800")
        assert hit.metadata == ({"number": number} if number % 2 else {})
        hit.metadata["altered"] = True  # which is the caller's
    with index._store.read() as connection:
        connection.set_trace_callback(None)
    return sum("FROM documents" in statement for statement in statements)


def test_all_after_a_few(index):
    assert reads(index, range(10)) == 9
    assert reads(index, range(10)) == 0
    assert reads(index, np.random.default_rng(0).permutation(COUNT)[:400].tolist()) <= 64
    assert reads(index, range(COUNT)) == 0


def test_only_what_is_asked_for_where_there_is_too_much(index, monkeypatch):
    monkeypatch.setattr(known_documents, "_MAX_CHARACTERS", COUNT * 220)
    assert reads(index, range(500)) > 490


def test_later_changes(index):
    reads(index, range(500))
    index.delete(["7"])
    index.add(["8"], ["other"], embeddings=ROWS[8], on_conflict="replace")
    assert index.search(ROWS[7], mode="sparse") == [[]]
    assert [(hit.id, hit.text) for hit in index.search(ROWS[8], mode="sparse")[0]] == [("8", "other")]
    assert reads(index, range(9, COUNT)) == 0


def test_again_after_many_were_added(index, monkeypatch):
    monkeypatch.setattr(known_documents, "_MAX_CHARACTERS", COUNT * 700)  # less than all of them twice
    reads(index, range(500))
    for start in range(0, COUNT, 300):
        numbers = range(start, start + 300)
        index.delete(list(map(str, numbers)))
        texts = [f"text {number} \u00e9 \ud800" for number in numbers]
        index.add(list(map(str, numbers)), texts, embeddings=ROWS[start : start + 300], metadata=_metadata(numbers))
        assert reads(index, numbers) <= 2 * 64
    assert reads(index, range(COUNT)) == 0


def test_one_that_was_deleted_is_there_for_who_began_before(index):
    with index._store.read() as earlier:
        earlier.execute("SELECT generation FROM state").fetchone()  # from here on it sees this commit
        index.delete(["7"])
        reads(index, range(100, 500))  # after which all others are known
        assert reads(index, range(8, COUNT)) == 0
        (hit,) = index._store.documents.hits(earlier, [7], [1.0], "sparse")
    assert (hit.id, hit.text, hit.metadata) == ("7", "text 7 \u00e9 \ud800", {"number": 7})
