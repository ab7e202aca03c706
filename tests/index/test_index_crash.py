"""A process killed at a random moment loses nothing that was committed, and leaves nothing half done."""

from __future__ import annotations

import pytest
from index_writers_killed import killed_writers

TRIALS = 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_random_moments(tmp_path, seed):
    in_flight = [kind for kind in killed_writers(tmp_path / "index", seed, TRIALS) if kind is not None]
    assert len(in_flight) > TRIALS / 6
    assert len(set(in_flight)) > 1
