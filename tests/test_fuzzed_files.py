"""Every kind of file that is read, with bytes altered: what was written comes back, or the documented error."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from fuzzed_files import FAISS, fuzz, make_cases

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
    "old retriever",
]
FAISS_KINDS = [f"faiss {factory}" for factory in FAISS]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("fuzzed"))


@pytest.mark.parametrize("kind", KINDS)
def test_altered_files(cases, kind):
    outcome, faults = fuzz(cases[kind], seed=0, count=12)
    assert faults == []
    assert outcome["refused"] > 5


@pytest.mark.skipif(find_spec("faiss") is None, reason="needs faiss-cpu")
class TestFaiss:
    """Each is read in a process of its own, which is what takes the time."""

    @pytest.mark.parametrize("kind", FAISS_KINDS)
    def test_some(self, cases, kind):
        outcome, faults = fuzz(cases[kind], seed=0, count=5)
        assert faults == []
        assert outcome["refused"] > 0

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    @pytest.mark.parametrize("kind", FAISS_KINDS)
    def test_two_hundred(self, cases, kind):
        outcome, faults = fuzz(cases[kind], seed=1, count=200)
        assert faults == []
        assert outcome["refused"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_altered_files_by_the_thousand(cases, kind):
    for seed in range(1, 11):
        outcome, faults = fuzz(cases[kind], seed=seed, count=150)
        assert faults == []
        assert outcome["refused"] > 5
