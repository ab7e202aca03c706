"""An interrupt at any moment of a conversion leaves the lock free, and a second run ends it."""

from __future__ import annotations

import sys

import pytest
from conversion_interrupted import fill_source, interrupt_conversion_at

pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("most", [12, pytest.param(10_000, marks=pytest.mark.slow)])
def test_audit_events(encoder, tmp_path, most):
    num_trials, num_raised = interrupt_conversion_at(encoder, fill_source(tmp_path), tmp_path, most)
    sys.stderr.write(f"\naudit: {num_trials} interrupts of a conversion, {num_raised} seen by the caller\n")
    assert num_trials == 12 if most == 12 else num_trials > 50
    assert num_raised > 0.5 * num_trials
