"""Trying again what failed for the moment: exponential backoff with full jitter."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from st_keytokens.shared.checks import checked_float, checked_int

__all__ = ["Retry", "is_temporary_grpc"]

_LOGGER = logging.getLogger(__name__)
_TEMPORARY_CODES = ("ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Retry:
    """How often to try, and how long to wait in between.

    The wait after attempt ``n`` is drawn evenly from 0 to ``min(max_wait, first_wait * 2 ** (n - 1))`` seconds, so
    that many writers that were refused together do not come back together. Where the engine names a time to wait, it
    is added.

    Attributes:
        max_attempts: How often to try, the first time included.
        first_wait: Longest wait after the first attempt, in seconds.
        max_wait: Longest wait after any attempt, in seconds, without what the engine asks for.
        sleep: Waits; replaced in tests.
        uniform: Draws a number between two; replaced in tests.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of range.

    Source:
        Brooker 2015, "Exponential Backoff And Jitter" (AWS Architecture Blog), the variant "full jitter".

    >>> answers = iter([OSError("busy"), OSError("busy"), "done"])
    >>> def ask():
    ...     answer = next(answers)
    ...     if isinstance(answer, OSError):
    ...         raise answer
    ...     return answer
    >>> waits = []
    >>> Retry(sleep=waits.append, uniform=lambda low, high: high).call(ask, lambda error: 0.0), waits
    ('done', [0.5, 1.0])
    """

    max_attempts: int = 8
    first_wait: float = 0.5
    max_wait: float = 30.0
    sleep: Callable[[float], object] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        checked_int("max_attempts", self.max_attempts, minimum=1)
        checked_float("first_wait", self.first_wait, minimum=0)
        checked_float("max_wait", self.max_wait, minimum=0)

    def call(self, function: Callable[[], Result], smallest_wait: Callable[[Exception], float | None]) -> Result:
        """Call a function until it succeeds.

        Args:
            function: What to call; may be called again although it did its work.
            smallest_wait: Of an error, the seconds to wait at least before the next attempt; None where trying again
                is no use.

        Returns:
            What the function returns.

        Raises:
            RuntimeError: If the last attempt failed as well, from its error.
            Exception: What the function raises where trying again is no use.
        """
        for attempt in range(1, self.max_attempts + 1):
            try:
                return function()
            except Exception as err:
                smallest = smallest_wait(err)
                if smallest is None:
                    raise
                error = err
            if attempt < self.max_attempts:
                longest = min(self.max_wait, self.first_wait * 2.0 ** min(attempt - 1, 60))
                wait = smallest + self.uniform(0, longest)
                _LOGGER.warning("Attempt %d failed (%s). Trying again in %.1f s.", attempt, error, wait)
                self.sleep(wait)
        raise RuntimeError(
            f"The engine must answer within {self.max_attempts} attempts, got {type(error).__name__}: {error}. "
            "Try later, or allow more with Retry(max_attempts=...)."
        ) from error


def is_temporary_grpc(error: Exception) -> bool:
    """Whether an error has a status code of gRPC under which trying again may help.

    >>> is_temporary_grpc(ValueError("no status"))
    False
    """
    code = getattr(error, "code", None)
    return getattr(code() if callable(code) else code, "name", None) in _TEMPORARY_CODES
