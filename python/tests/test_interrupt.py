"""Waits answer Ctrl-C and release the GIL."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

import programs
from cluster import free_port
from database import Database
from oddscache import NotReady, NotShown, OddsCache

# Transaction 2**31 has not begun. One much further ahead cannot begin for long, and so is refused at once.
WAITS = {
    "ready": "cache.ready()",
    "ready_with_timeout": "cache.ready(60)",
    "wait_ready": "asyncio.run(cache.wait_ready(60))",
    "wait_for": "cache.wait_for(2**31, timeout=60)",
    "wait_for_async": "asyncio.run(cache.wait_for_async(2**31, timeout=60))",
    "changes": "asyncio.run(follow(cache.changes()))",
}


def interrupt(process: "subprocess.Popen[str]") -> tuple[int, str, float]:
    """Sends what Ctrl-C sends. Returns exit code, errors and how long the process took to end."""
    assert programs.printed(process) == "waiting"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, errors = programs.finish(process, 10)
    return code, errors, time.monotonic() - begun


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_waits(database: Database, wait: str) -> None:
    """Ctrl-C raises KeyboardInterrupt out of each wait within two seconds, and the program ends as others do."""
    url = (
        database.url
        if wait in ("wait_for", "wait_for_async", "changes")
        else f"postgresql://x@127.0.0.1:{free_port()}/x"
    )
    process = programs.start_code(
        f"""
        import asyncio, logging, signal, sys, threading, time
        from oddscache import OddsCache

        # A shell starts background jobs with the signal ignored. Then Python leaves it so.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        async def follow(changes):
            async for _ in changes:
                pass

        def tell_when_waiting(main):
            # The main thread waits in the package, or in its event loop.
            while sys._current_frames()[main].f_code.co_name not in ("ready", "wait_for", "select"):
                time.sleep(0.001)
            # Python's event loop misses a signal that comes between its last look for one and the system call.
            time.sleep(0.05)
            print("waiting", flush=True)

        logging.getLogger("oddscache").addHandler(logging.NullHandler())
        cache = OddsCache.connect(sys.argv[1])
        threading.Thread(target=tell_when_waiting, args=(threading.get_ident(),), daemon=True).start()
        {WAITS[wait]}
        """,
        url,
    )
    code, errors, took = interrupt(process)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "panick" not in errors
    # A negative code: Python ends itself by the signal, so that a shell sees it.
    assert code in (-signal.SIGINT, 130)
    assert took < 2.5


def test_a_handler_of_the_program_runs_and_the_wait_goes_on(database: Database) -> None:
    """A signal handler that does not raise runs soon, and the wait goes on until its time-out."""
    process = programs.start_code(
        """
        import signal, sys, time
        from oddscache import NotShown, OddsCache

        seen = []
        signal.signal(signal.SIGINT, lambda *_: seen.append(time.monotonic()))
        cache = OddsCache.connect(sys.argv[1])
        cache.ready(10)
        print("waiting", flush=True)
        begun = time.monotonic()
        try:
            cache.wait_for(2**31, timeout=1.0)
        except NotShown:
            print(len(seen), 0.9 < time.monotonic() - begun < 5, time.monotonic() - seen[0] > 0.3)
        """,
        database.url,
    )
    assert programs.printed(process) == "waiting"
    process.send_signal(signal.SIGINT)
    code, out, errors = programs.finish(process, 10)
    assert (code, out, errors) == (0, "1 True True\n", "")


def progress_during(wait: Callable[[], object]) -> int:
    """How often another Python thread took turns while this thread waited."""
    turns, stop, begin = 0, threading.Event(), threading.Event()

    def count() -> None:
        nonlocal turns
        begin.wait()
        while not stop.is_set():
            turns += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    begin.set()
    before = turns
    wait()
    after = turns
    stop.set()
    thread.join()
    return after - before


def test_waits_release_the_gil(database: Database, cache: OddsCache) -> None:
    """While a thread waits in `ready` or `wait_for`, other Python threads make progress."""

    def wait_for() -> None:
        with pytest.raises(NotShown):
            cache.wait_for(2**31, timeout=0.4)

    def ready() -> None:
        with (
            OddsCache.connect(f"postgresql://x@127.0.0.1:{free_port()}/x") as dead,
            pytest.raises(NotReady),
        ):
            dead.ready(0.4)

    assert progress_during(wait_for) > 50
    assert progress_during(ready) > 50


def test_the_follower_needs_no_gil(database: Database, cache: OddsCache) -> None:
    """The cache follows while a Python thread keeps the GIL: no turn of another thread is needed."""
    database.event(1)
    cache.wait_for(database.xid())
    version = cache.version
    switch = sys.getswitchinterval()
    with psycopg.connect(database.url) as other:
        other.execute("INSERT INTO odds_snapshots (event_id, bookmaker_id) VALUES (1, 1)")
        # From here on this thread gives the GIL away only in `commit`.
        sys.setswitchinterval(100)
        try:
            other.commit()
            deadline = time.monotonic() + 10
            while cache.version == version:
                assert time.monotonic() < deadline
        finally:
            sys.setswitchinterval(switch)
    assert list(cache.get_betpawa_snapshots([1])[1]) == [1]
