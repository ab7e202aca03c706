from __future__ import annotations

import datetime
import json
import math
import uuid
from pathlib import Path

import numpy as np
import pytest

from st_keytokens.retrieval.metadata import KINDS_KEY, as_json, as_json_list, json_value, restored

ZONE = datetime.timezone(datetime.timedelta(hours=2))


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"year": 2024, "score": 0.5, "title": "Sterne ✨", "is_new": True, "nothing": None},
        {"tags": ["a", "b"], "nested": {"deep": [{"x": 1}]}},
        {"date": datetime.date(2024, 5, 1)},
        {"at": datetime.datetime(2024, 5, 1, 12, 30, 0, 250, ZONE)},
        {"path": Path("a") / "b.txt"},
        {"id": uuid.UUID(int=5)},
        {"pages": (1, 2), "empty": ()},
        {"nested": {"list": [(datetime.date(2024, 5, 1), (Path("x"),)), 3]}},
        {"a.b": (1,), "a": {"b": (2,)}},
    ],
    ids=str,
)
def test_round_trip(metadata):
    converted = as_json(metadata)
    back = restored(json.loads(json.dumps(converted)))
    assert back == metadata
    assert repr(back) == repr(metadata)


def test_numpy_numbers_become_python_numbers():
    converted = as_json({"int": np.int64(3), "float": np.float32(0.5), "bool": np.bool_(True), "str": np.str_("x")})
    assert repr(converted) == "{'int': 3, 'float': 0.5, 'bool': True, 'str': 'x'}"


def test_the_original_is_not_modified():
    metadata = {"pages": (1, 2), "nested": {"path": Path("x")}}
    as_json(metadata)
    assert metadata == {"pages": (1, 2), "nested": {"path": Path("x")}}


def test_filters_hold_what_metadata_hold():
    given = {"$and": [{"date": {"$gte": datetime.date(2024, 5, 1)}}, {"path": {"$in": (Path("x"), Path("y"))}}]}
    assert json_value(given) == {"$and": [{"date": {"$gte": "2024-05-01"}}, {"path": {"$in": ["x", "y"]}}]}


def test_several():
    assert as_json_list([None, {"x": (1,)}]) == [None, {"x": [1], KINDS_KEY: [[["x"], "tuple"]]}]


class TestValidation:
    @pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), np.arange(3), 1j])
    def test_other_types_are_named_with_their_key(self, value):
        with pytest.raises(TypeError, match=rf"got {type(value).__name__} for 'a\.0\.b'"):
            as_json({"a": [{"b": value}]})

    @pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
    def test_numbers(self, value):
        with pytest.raises(ValueError, match=r"metadata must have finite numbers, got (nan|inf) for 'x'"):
            as_json({"x": value})

    def test_keys(self):
        with pytest.raises(TypeError, match="metadata must have strings as keys, got 1 in 'x'"):
            as_json({"x": {1: 2}})

    def test_reserved_key(self):
        with pytest.raises(ValueError, match=f"must not have the key '{KINDS_KEY}'"):
            as_json({KINDS_KEY: []})

    def test_no_mapping(self):
        with pytest.raises(TypeError, match="metadata must be dictionaries, got str"):
            as_json_list(["x"])
