"""Waits for conditions. No test sleeps instead of waiting for what it needs."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = 10.0) -> T:
    """What `condition` returns, once it is true."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not true after {timeout} s: {condition}"
        time.sleep(0.005)
