"""A process that is forked after `connect` answers from its parent's last state, then follows by itself."""

import multiprocessing
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import programs
from cluster import free_port
from database import Database, market
from oddscache import OddsCache
from waiting import eventually

# Each program prints "written?" when it waits for the test to write, and is told so by a line.
BEGIN = """
import logging, multiprocessing, os, sys, threading, time
from oddscache import Closed, OddsCache
logging.getLogger("oddscache").addHandler(logging.NullHandler())

def odds(cache):
    return cache.get_betpawa_snapshots([1])[1][1].markets[0].outcomes[0]["odds"]

def until(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "not true in time"
        time.sleep(0.01)

def written():
    print("written?", flush=True)
    sys.stdin.readline()

def child(cache):
    \"\"\"What a child does: it reads its parent's state at once, and later changes.\"\"\"
    assert odds(cache) == 2.0
    assert cache.is_warm
    epoch, version = cache.epoch, cache.version
    assert epoch >= 1
    cache.ready(15)
    written()
    until(lambda: odds(cache) == 3.0)
    assert cache.version > version and cache.epoch >= epoch
    cache.view(max_age=15)
"""

FORKS = {
    "os.fork": """
        pid = os.fork()
        if pid == 0:
            try:
                child(cache)
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
    "the_child_exits_normally": """
        pid = os.fork()
        child(cache) if pid == 0 else None
        if pid == 0:
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
    "grandchild": """
        pid = os.fork()
        if pid == 0:
            cache.ready(10)
            pid = os.fork()
            if pid == 0:
                child(cache)
            else:
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
    "multiprocessing": """
        process = multiprocessing.get_context("fork").Process(target=child, args=(cache,))
        process.start()
        process.join()
        assert process.exitcode == 0
    """,
    "with_a_callback": """
        calls = []
        cache.on_update(lambda event_ids, source: calls.append((os.getpid(), event_ids, source)))
        pid = os.fork()
        if pid == 0:
            child(cache)
            until(lambda: (os.getpid(), [1], "betpawa") in calls)
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        until(lambda: (os.getpid(), [1], "betpawa") in calls)
    """,
    "while_threads_use_the_cache": """
        def busy():
            while not cache.is_closed:
                try:
                    odds(cache), cache.event_list_json(), cache.stats(), cache.status
                except Closed:
                    return
        def waiting():
            while True:
                try:
                    cache.wait_for(2**60, 0.001)
                except TimeoutError:
                    pass
                except Closed:
                    return
        for target in (busy, busy, waiting):
            threading.Thread(target=target, daemon=True).start()
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                assert odds(cache) == 2.0
                cache.event_list_json(), cache.stats(), cache.status
                cache.ready(15)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = os.fork()
        if pid == 0:
            child(cache)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
    "the_child_only_closes": """
        pid = os.fork()
        if pid == 0:
            cache.close()
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        written()
    """,
    "the_child_does_nothing": """
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        written()
    """,
    "the_child_waits_in_tasks": """
        import asyncio
        async def follow():
            changes = cache.changes()
            await cache.wait_ready(15)
            written()
            async for change in changes:
                if odds(cache) == 3.0:
                    return
        subscribed = cache.changes()
        pid = os.fork()
        if pid == 0:
            asyncio.run(asyncio.wait_for(follow(), 15))
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
    "the_child_connects_another": """
        pid = os.fork()
        if pid == 0:
            with OddsCache.connect(sys.argv[1]) as other:
                other.ready(15)
                child(other)
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """,
    "detached": """
        from detached import snapshot
        mine = OddsCache()
        mine.put_betpawa_snapshot(7, 1, snapshot())
        pid = os.fork()
        if pid == 0:
            mine.put_betpawa_snapshot(8, 1, snapshot(8))
            assert mine.event_ids() == [7, 8]
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert mine.event_ids() == [7]
        written()
    """,
}
# After each of them the parent still follows.
END = """
until(lambda: odds(cache) == 3.0)
cache.close()
print("end", flush=True)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fork", FORKS)
def test_fork(database: Database, fork: str) -> None:
    """The child answers at once, follows later changes, and never hangs; the parent is not disturbed."""
    database.event(1)
    database.snapshot(1, 1, [market(odds=(2.0,))])
    code = f"{BEGIN}\ncache = OddsCache.connect(sys.argv[1])\ncache.ready(10)\n{textwrap.dedent(FORKS[fork])}\n{END}"
    follows_a_change(programs.start_code(code, database.url), database)


def follows_a_change(process: "subprocess.Popen[str]", database: Database) -> None:
    """Changes the odds once the program has seen the first ones. It must see these too, and end without an error."""
    try:
        assert programs.printed(process) == "written?"
        database.snapshot(1, 1, [market(odds=(3.0,))])
        assert process.stdin
        process.stdin.write("yes\n")
        process.stdin.flush()
        assert programs.printed(process) == "end"
        assert programs.finish(process, 10) == (0, "", "")
    finally:
        process.kill()
        process.wait()


def test_the_age_of_a_fork_grows(database: Database, cluster: Any) -> None:
    """A child that cannot connect keeps its parent's last state, which it says grows old."""
    database.event(1)
    database.snapshot(1, 1, [market(odds=(2.0,))])
    database.execute(f'ALTER DATABASE "{database.name}" CONNECTION LIMIT -1')
    out = programs.run_code(
        BEGIN
        + """
cache = OddsCache.connect(sys.argv[1])
cache.ready(10)
database = sys.argv[2]
import psycopg
with psycopg.connect(sys.argv[3], autocommit=True) as admin:
    admin.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
    pid = os.fork()
    if pid == 0:
        first = cache.age
        until(lambda: cache.age > first + 0.2)
        assert odds(cache) == 2.0
        try:
            cache.view(max_age=0.2)
        except Exception as error:
            print(type(error).__name__, flush=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    admin.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
    print(code, flush=True)
""",
        database.url,
        database.name,
        cluster.url("postgres"),
        timeout=25,
    )
    assert out == "TooStale\n0\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_cache_is_no_argument_of_another_process(method: str) -> None:
    """Where a process gets its arguments pickled, a cache among them is a clear TypeError."""
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=print, args=(OddsCache(),))
    with pytest.raises(TypeError, match="connect"):
        process.start()


class Gunicorn:
    """A gunicorn with two workers, and what it logs."""

    def __init__(self, folder: Path, application: str, database: Database, *options: str) -> None:
        self.port = free_port()
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "gunicorn",
                    *("--bind", f"127.0.0.1:{self.port}", "--workers", "2", "--graceful-timeout", "5", *options),
                    *("--chdir", str(folder), "--no-control-socket"),
                    application,
                ],
                cwd=folder,
                env={**programs.environment(), "DATABASE_URL": database.url},
                stdout=log,
                stderr=log,
            )

    def get(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.port}/", timeout=10).raise_for_status().json()
        return answer

    def answers(self) -> dict[int, dict[str, Any]]:
        """An answer of each worker."""
        found: dict[int, dict[str, Any]] = {}

        def both() -> bool:
            try:
                answer = self.get()
            except httpx.ConnectError:
                assert self.process.poll() is None, self.log.read_text()
                return False
            found[answer["pid"]] = answer
            return len(found) == 2

        eventually(both, 25)
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"gunicorn did not end:\n{self.log.read_text()}") from None
        text = self.log.read_text()
        assert code == 0, text
        for word in ("Traceback", "panick", "SIGKILL", "SIGSEGV", "SIGABRT"):
            assert word not in text, text


@pytest.mark.timeout(60)
def test_gunicorn_preload(database: Database, tmp_path: Path) -> None:
    """Both workers of gunicorn --preload answer at once, follow later changes, and end when they are told to."""
    database.event(1)
    database.snapshot(1, 1, [market(odds=(2.0,))])
    gunicorn = Gunicorn(tmp_path, "wsgi_app:app", database, "--preload")
    try:
        for answer in gunicorn.answers().values():
            assert answer["forked"]
            assert answer["warm"]
            assert answer["odds"] == [2.0]
            assert answer["listed"] == 1
        database.snapshot(1, 1, [market(odds=(3.0,))])
        database.snapshot(1, 2)
        eventually(
            lambda: all(
                (answer["odds"], answer["bookmakers"]) == ([3.0], [1, 2]) for answer in gunicorn.answers().values()
            ),
            25,
        )
    finally:
        gunicorn.stop()


@pytest.fixture
def asgi(database: Database, tmp_path: Path) -> Iterator[Gunicorn]:
    database.event(1)
    database.snapshot(1, 1, [market(odds=(2.0,))])
    gunicorn = Gunicorn(
        tmp_path, "asgi_app:app", database, "--preload", "--worker-class", "uvicorn_worker.UvicornWorker"
    )
    yield gunicorn
    gunicorn.stop()


@pytest.mark.timeout(60)
def test_gunicorn_preload_with_uvicorn(database: Database, asgi: Gunicorn) -> None:
    """The same with uvicorn's worker, whose event loop waits for changes."""
    answers = asgi.answers().values()
    assert [answer["odds"] for answer in answers] == [[2.0], [2.0]]
    assert all(answer["forked"] for answer in answers)
    database.snapshot(1, 1, [market(odds=(3.0,))])
    eventually(lambda: all(answer["odds"] == [3.0] and answer["changes"] for answer in asgi.answers().values()), 25)


RENDERING = """
cache = OddsCache.connect(sys.argv[1])
cache.ready(10)
ended = threading.Event()
def render():
    turn = 0
    while not ended.is_set():
        turn += 1
        cache.event_list_json(markets=[("3743", float(turn % 7))])  # more choices than lists: each is written anew
for _ in range(8):
    ended.clear()
    thread = threading.Thread(target=render)
    thread.start()
    pid = os.fork()
    if pid == 0:
        for turn in range(7):
            cache.event_list_json(markets=[("3743", float(turn))])
        os._exit(0)
    until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
    ended.set()
    thread.join()
cache.close()
"""


@pytest.mark.timeout(60)
def test_a_fork_while_a_list_is_written(database: Database) -> None:
    """The child once waited for ever for the lock of a thread that it does not have."""
    for event_id in range(1, 301):
        database.event(event_id)
        database.snapshot(event_id, 1, [market()] * 10)
    process = programs.start_code(f"{BEGIN}\n{RENDERING}", database.url)
    try:
        assert programs.finish(process, 50) == (0, "", "")
    finally:
        process.kill()
        process.wait()


CHANGES = """
import asyncio
from oddscache import Error
cache = OddsCache.connect(sys.argv[1])
cache.ready(10)
changes = cache.changes()
pid = os.fork()
if pid == 0:
    try:
        asyncio.run(changes.__anext__())
    except Error as error:
        os._exit(0 if "forked" in str(error) else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
cache.close()
"""


def test_changes_of_the_parent_say_so_in_the_child(database: Database) -> None:
    """An iterator that was made before the fork once waited for ever for a thread that the child does not have."""
    process = programs.start_code(f"{BEGIN}\n{CHANGES}", database.url)
    try:
        assert programs.finish(process, 20) == (0, "", "")
    finally:
        process.kill()
        process.wait()
