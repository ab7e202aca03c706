"""SIGKILL between any two file operations of copy_index and persist leaves the old index or the new one."""

from __future__ import annotations

import pytest
from index_copies_killed import killed_copy, make


@pytest.mark.parametrize("has_old", [True, False])
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_operations(tmp_path, has_old, step):
    make(tmp_path / "source", "wxyz")
    states, number, was_killed = [], 0, True
    while was_killed:
        state, was_killed = killed_copy(tmp_path, has_old, number)
        states.append(state)
        number += step
    assert states == sorted(states, key=["none", "abc", "wxyz"].index)  # old, and from one operation on new
    assert len(set(states)) == 2
    assert number > 40
