"""The index against a dictionary and a plain loop, through any sequence of operations."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from index_machine import IndexMachine

IndexMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
)
TestIndexMachine = IndexMachine.TestCase
