"""Milvus, through milvus-lite."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from conformance import DIMENSION, VOCAB_SIZE, EngineConformance, query

pytest.importorskip("pymilvus", reason="pymilvus is not installed")
pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")

from pymilvus import MilvusClient
from pymilvus.exceptions import ErrorCode, MilvusException, MilvusUnavailableException

from st_keytokens.engines import MilvusEngine, Records


@functools.cache
def client_of(directory):
    """One client of a file, since only one process may have it open."""
    return MilvusClient(str(Path(directory) / "milvus.db"))


def open_milvus(directory, collection):
    return MilvusEngine(collection, client_of(directory))


class TestMilvus(EngineConformance):
    opener = "test_milvus:open_milvus"

    def temporary_errors(self):
        errors = [MilvusException(ErrorCode.RATE_LIMIT), MilvusUnavailableException()]
        if hasattr(errors[0], "retriable"):  # from pymilvus 3 on
            errors.append(MilvusException(retriable=True))
        return errors


class TestLimits:
    @pytest.fixture
    def engine(self, tmp_path):
        engine = open_milvus(tmp_path, "limits")
        engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION)
        return engine

    @pytest.mark.parametrize(
        ("name", "id", "text", "metadata"),
        [
            ("ids", "é" * 32768, None, None),
            ("texts", "a", "é" * 32768, None),
            ("metadata", "a", None, {"key": "é" * 32768}),
        ],
    )
    def test_what_is_too_long_is_refused_whole(self, engine, name, id, text, metadata):
        rows = query({0: 1.0}, {0: 2.0})
        with pytest.raises(
            ValueError, match=f"{name} must have at most 65535 bytes in Milvus, got 655[0-9]+ in document"
        ):
            engine.upsert(Records(["before", id], rows, [None, text], [None, metadata]))
        assert engine.count() == 0

    def test_what_just_fits_is_kept(self, engine):
        text = "é" * 32767 + "a"
        engine.upsert(Records([text], query({0: 1.0}), [text]))
        (hits,) = engine.search(query({0: 1.0}), mode="sparse")
        assert [(hit.id, hit.text) for hit in hits] == [(text, text)]

    def test_too_many_keys(self, engine):
        metadata = {f"key {number}": number for number in range(1366)}
        with pytest.raises(ValueError, match="metadata must have at most 1365 keys in Milvus, got 1366 in 'a'"):
            engine.upsert(Records(["a"], query({0: 1.0}), None, [metadata]))

    def test_control_characters_in_a_comparison(self, engine):
        with pytest.raises(ValueError, match="must have no control characters in Milvus"):
            engine.search(query({0: 1.0}), filter={"language": {"$gt": "a\x01"}})

    def test_what_lasts_is_not_tried_again(self, engine):
        for error in (MilvusException(ErrorCode.COLLECTION_NOT_FOUND), ValueError("x"), KeyError("y")):
            assert engine.smallest_wait(error) is None
