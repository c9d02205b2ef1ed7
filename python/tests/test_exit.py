"""A program that uses a cache ends as it would without: its exit code, nothing on standard error, soon."""

import select
import socket
import subprocess
import textwrap
import time

import pytest

import programs
from cluster import free_port
from database import Database

BEGIN = """
import asyncio, logging, os, sys, threading, time
from oddscache import NotShown, OddsCache
logging.getLogger("oddscache").addHandler(logging.NullHandler())
cache = OddsCache.connect(sys.argv[1])
"""

ENDS = {
    "without_close": "cache.ready(10)",
    "before_it_is_warm": "",
    "with_close": "cache.ready(10); cache.close()",
    "with_a_view_in_a_global": "cache.ready(10); view = cache.view(); held = cache.get_betpawa_snapshots([1])[1]",
    "with_a_cycle": """
        cache.ready(10)
        cache.on_update(lambda event_ids, source, cache=cache: None)
        cycle = [cache]
        cycle.append(cycle)
    """,
    "with_callbacks": "cache.ready(10); cache.on_update(lambda ids, source: None)",
    "with_a_blocked_callback": """
        blocked = threading.Event()
        def block(event_ids, source):
            blocked.set()
            time.sleep(60)
        cache.on_update(block)
        assert blocked.wait(10)
    """,
    "with_a_busy_callback": """
        blocked = threading.Event()
        def block(event_ids, source):
            blocked.set()
            while True:
                cache.is_closed
        cache.on_update(block)
        assert blocked.wait(10)
    """,
    "with_a_pending_async_for": """
        async def main():
            async def follow():
                async for change in cache.changes():
                    pass
            following = asyncio.create_task(follow())
            await cache.wait_ready()
            await asyncio.sleep(0)
        asyncio.run(main())
    """,
    "with_a_loop_left_open": """
        changes = cache.changes()
        async def follow():
            async for change in changes:
                pass
        loop = asyncio.new_event_loop()
        loop.run_until_complete(cache.wait_ready())
        thread = threading.Thread(target=loop.run_until_complete, args=(follow(),), daemon=True)
        thread.start()
    """,
    "with_daemon_threads_in_wait_for": """
        cache.ready(10)
        def wait():
            while True:
                try:
                    cache.wait_for(2**31, 0.01)
                except NotShown:
                    pass
                except Exception:
                    return
        def wait_long():
            try:
                cache.wait_for(2**31, 60)
            except Exception:
                pass
        for target in (wait, wait, wait_long, wait_long):
            threading.Thread(target=target, daemon=True).start()
    """,
    "with_daemon_threads_in_ready": """
        dead = OddsCache.connect("postgresql://x@127.0.0.1:1/x")
        def wait():
            try:
                dead.ready()
            except Exception:
                pass
        for _ in range(4):
            threading.Thread(target=wait, daemon=True).start()
    """,
    "with_daemon_threads_in_lookups": """
        cache.ready(10)
        def look():
            try:
                while True:
                    for snapshot in cache.get_betpawa_snapshots([1])[1].values():
                        [market.outcomes for market in snapshot.markets]
                    cache.event_list_json()
                    cache.stats()
            except Exception:
                pass
        for _ in range(4):
            threading.Thread(target=look, daemon=True).start()
        time.sleep(0.05)
    """,
    "with_many_caches": "caches = [OddsCache.connect(sys.argv[1]) for _ in range(8)]; caches[0].ready(10)",
    "by_a_lookup_in_an_exit_handler": """
        import atexit
        cache.ready(10)
        atexit.register(lambda: cache.get_betpawa_snapshots([1]))
    """,
    "by_a_lookup_in_a_finalizer": """
        cache.ready(10)
        class Late:
            def __del__(self, view=cache.view()):
                view.get_betpawa_snapshots([1])
        late = Late()
        late.itself = late
    """,
}


@pytest.mark.parametrize("end", ENDS)
def test_exit(database: Database, end: str) -> None:
    """The program ends with code 0 and prints nothing, within seconds, however it leaves its cache."""
    database.event(1)
    database.snapshot(1, 1, [{**MARKET}])
    runs = 3 if "daemon" in end else 1
    for _ in range(runs):
        process = programs.start(
            "-c", BEGIN + textwrap.dedent(ENDS[end]) + "\nprint('end', flush=True)\n", database.url
        )
        if "callback" in end:
            write_until(database, process)
        assert programs.printed(process) == "end"
        begun = time.monotonic()
        assert programs.finish(process, 10) == (0, "", "")
        assert time.monotonic() - begun < 4


MARKET = {"betpawa_market_id": "1", "betpawa_market_name": "x", "outcomes": [{"name": "1", "odds": 1.5}]}


def write_until(database: Database, process: "subprocess.Popen[str]") -> None:
    """Changes something again and again, until the program has printed or ended, so that a callback is called."""
    assert process.stdout
    for n in range(200):
        database.snapshot(1, 1 + n % 2)
        if select.select([process.stdout], [], [], 0.05)[0]:
            return
    raise AssertionError("the program has not printed anything")


def test_other_exit_codes(database: Database) -> None:
    """An exception, sys.exit and os._exit give the exit code that they give without a cache."""
    for end, expected in (("raise SystemExit(7)", 7), ("sys.exit('sentence')", 1), ("os._exit(5)", 5), ("1 / 0", 1)):
        code, _, errors = programs.run("-c", f"{BEGIN}\ncache.ready(10)\n{end}\n", database.url)
        assert code == expected
        assert "panick" not in errors


def test_exit_while_the_database_is_silent() -> None:
    """A server that accepts and never answers does not hold up the end of the program."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x"
        begun = time.monotonic()
        assert programs.run("-c", BEGIN, url) == (0, "", "")
        assert time.monotonic() - begun < 4


def test_import_starts_nothing() -> None:
    """Importing the package, and a cache without a database, start no thread and cost the exit nothing."""
    out = programs.run_code(
        """
        import threading, os
        import oddscache
        cache = oddscache.OddsCache()
        print(threading.active_count(), len(os.listdir("/proc/self/task")))
        """
    )
    assert out == "1 1\n"


def test_a_dead_port_is_free() -> None:
    """The helper that the tests of unreachable servers use gives a port that nobody listens on."""
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", free_port()))
