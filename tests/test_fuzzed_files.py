"""Every kind of file that is read, with bytes altered: what was written comes back, or the documented error."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from fuzzed_files import fuzz, make_cases

needs_arrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")
KINDS = [
    "npy",
    "safetensors",
    *(
        pytest.param(name, marks=needs_arrow)
        for name in ("parquet", "arrow", "manifest", "old manifest", "shards", "unverified", "collected")
    ),
    "segments",
    "encoder",
    "calibration",
    "progress",
    "lm_head",
    "checkpoint",
    "retriever",
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("fuzzed"))


@pytest.mark.parametrize("kind", KINDS)
def test_altered_files(cases, kind):
    outcome, faults = fuzz(cases[kind], seed=0, count=12)
    assert faults == []
    assert outcome["refused"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_altered_files_by_the_thousand(cases, kind):
    for seed in range(1, 11):
        outcome, faults = fuzz(cases[kind], seed=seed, count=150)
        assert faults == []
        assert outcome["refused"] > 5
