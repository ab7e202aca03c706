from __future__ import annotations

import random

import pytest

from st_keytokens.engines import Retry


class Busy(Exception):
    """What a test's engine calls temporary."""


def smallest_wait(error):
    return None if not isinstance(error, Busy) else float(error.args[0] if error.args else 0.0)


def failing(*errors):
    """A function that raises each of these and then answers, and its calls."""
    left, calls = list(errors), []

    def ask():
        calls.append(len(calls))
        if left:
            raise left.pop(0)
        return "answer"

    return ask, calls


class TestRetry:
    def test_waits_double_up_to_the_longest(self):
        waits = []
        retry = Retry(max_attempts=8, first_wait=0.5, max_wait=10, sleep=waits.append, uniform=lambda low, high: high)
        ask, calls = failing(*[Busy()] * 7)
        assert retry.call(ask, smallest_wait) == "answer"
        assert len(calls) == 8
        assert waits == [0.5, 1, 2, 4, 8, 10, 10]

    def test_jitter_is_full(self):
        waits = []
        generator = random.Random(0)
        retry = Retry(max_attempts=2, first_wait=4, sleep=waits.append, uniform=generator.uniform)
        for _ in range(2000):
            retry.call(failing(Busy())[0], smallest_wait)
        assert 0 <= min(waits) < 0.02
        assert 3.98 < max(waits) <= 4
        assert sum(waits) / len(waits) == pytest.approx(2, abs=0.1)
        quarters = [sum(low <= wait < low + 1 for wait in waits) for low in range(4)]
        assert min(quarters) > 430

    def test_what_the_engine_asks_for_is_added(self):
        waits = []
        retry = Retry(first_wait=1, sleep=waits.append, uniform=lambda low, high: high / 2)
        retry.call(failing(Busy(7), Busy(0.25))[0], smallest_wait)
        assert waits == [7.5, 1.25]

    def test_what_lasts_is_raised_at_once(self):
        waits = []
        ask, calls = failing(Busy(), KeyError("gone"), Busy())
        with pytest.raises(KeyError, match="gone"):
            Retry(sleep=waits.append).call(ask, smallest_wait)
        assert (len(calls), len(waits)) == (2, 1)

    def test_the_last_error_is_kept(self):
        waits = []
        last = Busy(3)
        ask, calls = failing(Busy(1), Busy(2), last, Busy(4))
        with pytest.raises(RuntimeError, match="within 3 attempts, got Busy: 3") as caught:
            Retry(max_attempts=3, sleep=waits.append).call(ask, smallest_wait)
        assert caught.value.__cause__ is last
        assert (len(calls), len(waits)) == (3, 2)  # no wait after the last attempt

    def test_an_interrupt_is_no_error_of_the_engine(self):
        ask, calls = failing(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            Retry().call(ask, lambda error: 0.0)
        assert len(calls) == 1

    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [("max_attempts", 0, ValueError), ("first_wait", -1.0, ValueError), ("max_wait", float("nan"), ValueError)],
    )
    def test_bad_settings(self, name, value, error):
        with pytest.raises(error, match=f"{name} must be"):
            Retry(**{name: value})
