"""Starts processes with a cache, and asks them to measure."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caches import Kind


class Worker:
    def __init__(self, kind: Kind, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("worker.py"), kind, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.opened: dict[str, Any] = self._answer()

    def ask(self, do: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Ends at the end of its input."""
        self._process.communicate(timeout=30)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a measured process ended with code {self._process.wait()}")
        return json.loads(line)


@contextmanager
def worker(kind: Kind, url: str) -> Iterator[Worker]:
    started = Worker(kind, url)
    try:
        yield started
    finally:
        started.end()


@contextmanager
def pair(url: str, number: int) -> Iterator[dict[Kind, Worker]]:
    """One fresh process with each cache. Both measure on the same core: cores that are shared with other machines
    differ in speed by more than half. The number of the pair chooses the core."""
    cores = sorted(os.sched_getaffinity(0))
    with worker("floor", url) as floor, worker("ours", url) as ours:
        for process in (floor, ours):
            process.ask("pin", cpu=cores[number % len(cores)])
        yield {"floor": floor, "ours": ours}
